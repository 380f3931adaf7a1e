"""True parameters of a store's images by which a system is judged: what was drawn, in the units people speak of."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from darklens.bundle import batched
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
# Of the kinds of substructure whose columns do not depend on more.
_COLUMNS = {kind: tuple(KINDS[kind].columns(None)) for kind in ("point_masses", "line_mass", "tnfw_subhaloes")}
_EDGE = 3  # pixels of the frame whose median is the sky


@dataclass(frozen=True)
class Parameter:
    """One number for each image.

    Args:
        name: What it is called in reports.
        unit: Empty for a pure number.
        values: NaN where the image has no such thing.
        of_class: The class that alone has it, or None.
    """

    name: str
    unit: str
    values: Float[np.ndarray, " n"]
    of_class: str | None = None

    @property
    def is_mass(self) -> bool:
        """Whether more of it is easier to see, so that a detection limit can be asked for."""
        return self.name in _MASSES

    @property
    def label(self) -> str:
        """Name and unit."""
        return f"{self.name}, {self.unit}" if self.unit else self.name


def parameters_of(store: Store, *, advance: Callable[[int], None] = lambda _: None) -> list[Parameter]:
    """Return the parameters that vary among the images of a simulated store; none of an imported one.

    Args:
        store: Images and their truth.
        advance: Called with the number of images just read, for their signal-to-noise ratio.
    """
    population, columns = store.index.population, store.index.columns
    if population is None:
        return []
    owners = _owners(store)
    found = [
        Parameter(name, unit, np.hypot(store.truth(x), store.truth(y)), owners.get(x))
        for name, (x, y, unit) in _PAIRS.items()
        if x in columns and y in columns
    ]
    found += [
        Parameter(name, unit, store.truth(column).astype(np.float64), owners.get(column))
        for column, (name, unit) in _NAMES.items()
        if column in columns
    ]
    found += _largest_masses(store, owners)
    found.append(Parameter("signal-to-noise ratio", "", signal_to_noise(store, advance=advance)))
    return [p for p in (_own_images(p, store) for p in found) if _varies(p.values)]


def signal_to_noise(store: Store, *, advance: Callable[[int], None] = lambda _: None) -> Float[np.ndarray, " n"]:
    """Return the signal-to-noise ratio of all light above the sky, as if every pixel had the noise of the sky.

    It is sqrt(sum (image - sky)^2 / variance - number of pixels), with the sky and its variance from the image's edge.
    Where photons of the lens add noise of their own it is an upper limit, in the order of the true ratio.
    """
    n = store.index.n_pixels
    frame = np.ones((n, n), dtype=bool)
    frame[_EDGE:-_EDGE, _EDGE:-_EDGE] = False
    found = []
    for images in batched(len(store), store.images, advance):
        batch = images[:, 0].astype(np.float64)
        sky, variance = np.median(batch[:, frame], axis=1), batch[:, frame].var(1)
        light = ((batch - sky[:, None, None]) ** 2).sum((1, 2)) / np.maximum(variance, np.finfo(float).tiny)
        found.append(np.sqrt((light - n * n).clip(0)))
    return np.concatenate(found)


def _population(store: Store) -> dict[str, Any]:
    """Return the population of a simulated store, as its index has it."""
    assert store.index.population is not None
    return store.index.population


def _owners(store: Store) -> dict[str, str]:
    """Return for each column of substructure the class that has it, where it is just one."""
    owners: dict[str, list[str]] = {}
    for name, spec in _population(store)["classes"].items():
        for column in _COLUMNS.get(spec["kind"], ()):
            owners.setdefault(column, []).append(name)
    return {column: names[0] for column, names in owners.items() if len(names) == 1}


def _largest_masses(store: Store, owners: dict[str, str]) -> list[Parameter]:
    columns = store.index.columns
    found = []
    if "point_theta_E" in columns and "point_theta_E" in owners:
        squared = store.truth("point_theta_E") ** 2
        spec = _population(store)["classes"][owners["point_theta_E"]]
        mass = spec["lens_mass"] * squared.max(1) / _theta_E_with_points(store, squared) ** 2
        found.append(Parameter("largest point mass", "solar masses", mass, owners["point_theta_E"]))
    if "halo_mass" in columns and "halo_mass" in owners:
        mass = store.truth("halo_mass").max(1).astype(np.float64)
        found.append(Parameter("largest halo mass", "solar masses", mass, owners["halo_mass"]))
    return found


def _theta_E_with_points(store: Store, squared: Float[np.ndarray, "n k"]) -> Float[np.ndarray, " n"]:
    """Return the Einstein radius that masses are a fraction of, from that of the smooth lens.

    Where a population conserves mass the smooth lens has lost the sum of point_theta_E^2 inside the ring, over theta_E.
    """
    smooth = store.truth("theta_E").astype(np.float64)
    if not _population(store).get("conserve_mass"):
        return smooth
    radius, whole = np.hypot(store.truth("point_x"), store.truth("point_y")), smooth
    for _ in range(5):  # what is inside the ring depends on the ring
        inside = np.where(radius < whole[:, None], squared, 0).sum(1)
        whole = (smooth + np.sqrt(smooth**2 + 4 * inside)) / 2
    return np.asarray(whole)


def _own_images(parameter: Parameter, store: Store) -> Parameter:
    if parameter.of_class is None:
        return parameter
    own = store.labels == store.classes.index(parameter.of_class)
    values = np.where(own, parameter.values, np.nan)
    return Parameter(parameter.name, parameter.unit, values, parameter.of_class)


def _varies(values: Float[np.ndarray, " n"]) -> bool:
    known = values[np.isfinite(values)]
    return len(known) > 0 and bool(np.ptp(known) > 1e-9 * np.abs(known).max())
