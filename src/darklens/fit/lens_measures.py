"""Properties of the main lens of a fit, with standard deviations: Einstein radius, axis ratio, multipoles."""

import math

import numpy as np
from jaxtyping import Float

from darklens.fit.fit_result import FitResult
from darklens.fit.scene_starts import main_lens
from darklens.scene.mass_profiles import Multipole, Shear

MEASURES = ("slope", "q", "phi", "gamma1", "gamma2", "centre_x", "centre_y", "a3", "a4")  # beside theta_E
_ISOTHERMAL = 2.0

Estimate = tuple[float, float]
"""Value and standard deviation."""
Covariance = Float[np.ndarray, "2 2"]


def measures(result: FitResult) -> dict[str, Estimate]:
    """Return the properties of the main lens with standard deviations; NaN for those that the scene does not have.

    `theta_E` (arcsec) is the effective Einstein radius: that of the circle with the mass of the ellipse inside which
    the mean convergence of the main lens is one. `q` is the axis ratio, `phi` the position angle of the major axis in
    degrees from x towards y, from -90 to 90. `a3` and `a4` are the amplitudes of the multipoles divided by theta_E.
    """
    scene = result.scene
    lens = main_lens(scene)
    missing = (math.nan, math.nan)

    def parameter(component: str, symbol: str) -> Estimate:
        error = float(np.sqrt(max(covariance(component, symbol)[0, 0], 0.0)))
        return scene.values_of(component, result.parameters)[symbol], error

    def covariance(component: str, *symbols: str) -> Float[np.ndarray, "k k"]:
        """Return the covariance of parameters of a component; zero for fixed ones."""
        free = [scene.free_parameter(f"{component}.{symbol}") for symbol in symbols]
        rows = [scene.names.index(name) if name else None for name in free]
        entries = [[0.0 if None in (i, j) else result.covariance[i, j] for j in rows] for i in rows]
        return np.array(entries)

    def vector(component: str, *symbols: str) -> tuple[tuple[float, float], Covariance]:
        values = scene.values_of(component, result.parameters)
        return (values[symbols[0]], values[symbols[1]]), covariance(component, *symbols)

    symbols = scene.profiles[lens].parameters
    estimates = {symbol: parameter(lens, symbol) for symbol in ("theta_E", "centre_x", "centre_y")}
    estimates["slope"] = parameter(lens, "slope") if "slope" in symbols else (_ISOTHERMAL, 0.0)
    if "e1" in symbols:
        estimates["q"], estimates["phi"] = axis_ratio(*vector(lens, "e1", "e2"))
    else:
        estimates["q"], estimates["phi"] = (1.0, 0.0), missing
    shear = next((name for name, profile in scene.profiles.items() if isinstance(profile, Shear)), None)
    for symbol in ("gamma1", "gamma2"):
        estimates[symbol] = missing if shear is None else parameter(shear, symbol)
    theta_E = estimates["theta_E"]
    for m in (3, 4):
        name = next((n for n, p in scene.profiles.items() if isinstance(p, Multipole) and p.m == m), None)
        estimates[f"a{m}"] = missing if name is None else _ratio(*vector(name, "a", "b"), theta_E)
    return {"theta_E": theta_E, **{name: estimates[name] for name in MEASURES}}


def axis_ratio(ellipticity: tuple[float, float], covariance: Covariance) -> tuple[Estimate, Estimate]:
    """Return axis ratio, and position angle of the major axis (degrees from x to y), of an ellipticity (e1, e2)."""
    e, error, across = _length(ellipticity, covariance)
    if e == 0:
        return (1.0, 2 * error), (0.0, 90.0)
    q, phi = (1 - e) / (1 + e), math.degrees(math.atan2(ellipticity[1], ellipticity[0])) / 2
    return (q, 2 * error / (1 + e) ** 2), (phi, min(90.0, math.degrees(across / e) / 2))


def _ratio(amplitudes: tuple[float, float], covariance: Covariance, theta_E: Estimate) -> Estimate:
    amplitude, error, _ = _length(amplitudes, covariance)
    value = amplitude / theta_E[0]
    return value, math.hypot(error, value * theta_E[1]) / theta_E[0]


def _length(vector: tuple[float, float], covariance: Covariance) -> tuple[float, float, float]:
    """Return the length of a vector, and the standard deviations along and across it."""
    length = math.hypot(*vector)
    if length == 0:
        error = math.sqrt(max(float(covariance.diagonal().max()), 0.0))
        return 0.0, error, error
    along = np.array(vector) / length
    across = np.array([-along[1], along[0]])
    first, second = (math.sqrt(max(float(d @ covariance @ d), 0.0)) for d in (along, across))
    return length, first, second
