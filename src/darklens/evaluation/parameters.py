"""True parameters of simulated images, by which performance is stratified."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from darklens.bundle import batched
from darklens.data.arrays import border
from darklens.data.store import Store
from darklens.simulate.substructure import KINDS

_PAIRS = {
    "shear": ("gamma1", "gamma2", ""),
    "ellipticity": ("e1", "e2", ""),
    "source offset": ("source_x", "source_y", "arcsec"),
    "lens light offset": ("light_x", "light_y", "arcsec"),
    "line offset": ("line_x", "line_y", "arcsec"),
}
_NAMES = {
    "theta_E": ("theta_E", "arcsec"),
    "source_q": ("source axis ratio", ""),
    "source_R_e": ("source R_e", "arcsec"),
    "source_n": ("source Sersic index", ""),
    "source_amplitude": ("source brightness", "counts per pixel"),
    "line_mass": ("line mass", "arcsec^2"),
    "line_length": ("line length", "arcsec"),
    "exposure": ("exposure", "s"),
}
_MASSES = ("largest point mass", "largest halo mass", "line mass")
# Kinds of substructure whose columns are fixed.
_COLUMNS = {kind: tuple(KINDS[kind].columns(None)) for kind in ("point_masses", "line_mass", "tnfw_subhaloes")}
_BORDER = 3  # pixels; the median of the border is the sky


@dataclass(frozen=True)
class Parameter:
    """One number for each image.

    Args:
        name: For reports.
        unit: Empty if dimensionless.
        values: NaN for images without it.
        of_class: The only class that has it, or None.
    """

    name: str
    unit: str
    values: Float[np.ndarray, " n"]
    of_class: str | None = None

    @property
    def is_mass(self) -> bool:
        """Whether it is a mass of substructure, which has a detection limit."""
        return self.name in _MASSES

    @property
    def label(self) -> str:
        """Name and unit."""
        return f"{self.name}, {self.unit}" if self.unit else self.name


def parameters_of(store: Store) -> list[Parameter]:
    """Return the parameters that vary among the images of a simulated store; an imported store has none."""
    population, columns = store.index.population, store.index.columns
    if population is None:
        return []
    class_of = _class_of_column(store)
    parameters = [
        Parameter(name, unit, np.hypot(store.truth(x), store.truth(y)), class_of.get(x))
        for name, (x, y, unit) in _PAIRS.items()
        if x in columns and y in columns
    ]
    parameters += [
        Parameter(name, unit, store.truth(column).astype(np.float64), class_of.get(column))
        for column, (name, unit) in _NAMES.items()
        if column in columns
    ]
    parameters += _largest_masses(store, class_of)
    parameters.append(Parameter("signal-to-noise ratio", "", signal_to_noise(store)))
    return [p for p in (_within_class(p, store) for p in parameters) if _varies(p.values)]


def signal_to_noise(store: Store) -> Float[np.ndarray, " n"]:
    """Return the signal-to-noise ratio of all light above the sky, with the noise of the sky in each pixel.

    It is sqrt(sum (image - sky)^2 / variance - number of pixels), with the sky and its variance from the border of the
    image. Without the photon noise of the lens it is an upper limit of the order of the true ratio.
    """
    n = store.index.n_pixels
    frame = border(n, _BORDER)
    ratios = []
    for images in batched(len(store), store.images):
        batch = images[:, 0].astype(np.float64)
        sky, variance = np.median(batch[:, frame], axis=1), batch[:, frame].var(1)
        light = ((batch - sky[:, None, None]) ** 2).sum((1, 2)) / np.maximum(variance, np.finfo(float).tiny)
        ratios.append(np.sqrt((light - n * n).clip(0)))
    return np.concatenate(ratios)


def _population(store: Store) -> dict[str, Any]:
    """Return the population of a simulated store, as in its index."""
    assert store.index.population is not None
    return store.index.population


def _class_of_column(store: Store) -> dict[str, str]:
    """Return the class of each column of substructure that only one class has."""
    classes: dict[str, list[str]] = {}
    for name, spec in _population(store)["classes"].items():
        for column in _COLUMNS.get(spec["kind"], ()):
            classes.setdefault(column, []).append(name)
    return {column: names[0] for column, names in classes.items() if len(names) == 1}


def _largest_masses(store: Store, class_of: dict[str, str]) -> list[Parameter]:
    columns = store.index.columns
    parameters = []
    if "point_theta_E" in columns and "point_theta_E" in class_of:
        name = class_of["point_theta_E"]
        squared = store.truth("point_theta_E") ** 2
        lens_mass = _population(store)["classes"][name]["lens_mass"]
        mass = lens_mass * squared.max(1) / _total_theta_E(store, squared) ** 2
        parameters.append(Parameter("largest point mass", "solar masses", mass, name))
    if "halo_mass" in columns and "halo_mass" in class_of:
        mass = store.truth("halo_mass").max(1).astype(np.float64)
        parameters.append(Parameter("largest halo mass", "solar masses", mass, class_of["halo_mass"]))
    return parameters


def _total_theta_E(store: Store, squared: Float[np.ndarray, "n k"]) -> Float[np.ndarray, " n"]:
    """Return the Einstein radius of the lens with its point masses, which `lens_mass` refers to.

    Where a population conserves mass, the theta_E of the smooth lens is smaller by the sum of point_theta_E^2 inside
    the ring, divided by theta_E.
    """
    smooth = store.truth("theta_E").astype(np.float64)
    if not _population(store).get("conserve_mass"):
        return smooth
    radius, total = np.hypot(store.truth("point_x"), store.truth("point_y")), smooth
    for _ in range(5):  # which points are inside the ring depends on the ring
        inside = np.where(radius < total[:, None], squared, 0).sum(1)
        total = (smooth + np.sqrt(smooth**2 + 4 * inside)) / 2
    return np.asarray(total)


def _within_class(parameter: Parameter, store: Store) -> Parameter:
    """Return the parameter with NaN for images of classes that do not have it."""
    if parameter.of_class is None:
        return parameter
    members = store.labels == store.classes.index(parameter.of_class)
    values = np.where(members, parameter.values, np.nan)
    return Parameter(parameter.name, parameter.unit, values, parameter.of_class)


def _varies(values: Float[np.ndarray, " n"]) -> bool:
    finite = values[np.isfinite(values)]
    return len(finite) > 0 and bool(np.ptp(finite) > 1e-9 * np.abs(finite).max())
