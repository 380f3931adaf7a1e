"""The true parameters of each image: drawn from a population, one image at a time, each from its own streams."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from darklens import rng
from darklens.simulate.populations import Disc, LineMass, MassTheta, Place, PointMasses, Population

# Unit and meaning of each column; `point_*` hold one row per image, padded with massless points.
COLUMNS: dict[str, str] = {
    "theta_E": "arcsec, smooth lens",
    "e1": "smooth lens",
    "e2": "smooth lens",
    "gamma1": "external shear",
    "gamma2": "external shear",
    "source_x": "arcsec",
    "source_y": "arcsec",
    "source_amplitude": "brightness at R_e, counts (or rate) per pixel",
    "source_R_e": "arcsec",
    "source_n": "Sersic index",
    "source_q": "axis ratio",
    "source_angle": "radians from x towards y",
    "line_mass": "arcsec^2",
    "line_x": "arcsec",
    "line_y": "arcsec",
    "line_length": "arcsec",
    "line_angle": "radians from x towards y",
    "exposure": "seconds; 1 where the rate is already in counts",
    "point_theta_E": "arcsec",
    "point_x": "arcsec",
    "point_y": "arcsec",
}

Truth = dict[str, np.ndarray]


def label_of(population: Population, index: int) -> int:
    """Return the class of image `index`: classes take turns, so every prefix is balanced."""
    return index % len(population.classes)


def draw(population: Population, seed: int, indices: Sequence[int]) -> Truth:
    """Return the true parameters of the given images: columns of shape (len(indices),), or (len(indices), k)."""
    rows = [_draw_one(population, rng.generator(seed, "parameters", i), label_of(population, i)) for i in indices]
    return {name: np.stack([np.asarray(row[name], dtype=np.float64) for row in rows]) for name in COLUMNS}


def max_points(population: Population) -> int:
    """Return the largest number of point masses that any class of the population has."""
    return max([s.count for s in population.classes.values() if isinstance(s, PointMasses)], default=0)


def _draw_one(population: Population, g: np.random.Generator, label: int) -> Mapping[str, float | np.ndarray]:
    lens, source = population.lens, population.source
    theta_E = lens.theta_E.theta_E() if isinstance(lens.theta_E, MassTheta) else _one(lens.theta_E.sample(g, 1))
    gamma, gamma_angle = _one(lens.gamma.sample(g, 1)), math.radians(_one(lens.gamma_angle.sample(g, 1)))
    row: dict[str, float | np.ndarray] = dict.fromkeys(COLUMNS, 0.0)
    row |= {
        "e1": _one(lens.e1.sample(g, 1)),
        "e2": _one(lens.e2.sample(g, 1)),
        "gamma1": gamma * math.cos(2 * gamma_angle),
        "gamma2": gamma * math.sin(2 * gamma_angle),
        "source_amplitude": _one(source.amplitude.sample(g, 1)),
        "source_R_e": _one(source.R_e.sample(g, 1)),
        "source_n": _one(source.n.sample(g, 1)),
        "source_q": _one(source.q.sample(g, 1)),
        "source_angle": math.radians(_one(source.angle.sample(g, 1))),
        "line_length": 1.0,
        "exposure": 1.0 if population.noise.kind == "poisson" else _one(population.noise.exposure.sample(g, 1)),
    }
    row["source_x"], row["source_y"] = _place(source.position, g)

    points = np.zeros((3, max_points(population)))
    inside = 0.0
    substructure = list(population.classes.values())[label]
    if isinstance(substructure, PointMasses):
        k = substructure.count
        squared = theta_E**2 * substructure.mass.sample(g, k) / substructure.lens_mass
        radius, direction = substructure.radius.sample(g, k), g.uniform(0, 2 * math.pi, k)
        points[:, :k] = np.sqrt(squared), radius * np.cos(direction), radius * np.sin(direction)
        inside = float(squared[radius < theta_E].sum())
    elif isinstance(substructure, LineMass):
        mass = theta_E**2 * _one(substructure.mass_fraction.sample(g, 1))
        length = _one(substructure.length.sample(g, 1))
        angle = math.radians(_one(substructure.angle.sample(g, 1)))
        x, y = _place(substructure.position, g)
        row |= {"line_mass": mass, "line_length": length, "line_angle": angle, "line_x": x, "line_y": y}
        inside = mass * _fraction_inside(x, y, length, angle, theta_E)
    row["point_theta_E"], row["point_x"], row["point_y"] = points
    # An isothermal lens has mass theta_E * R within R, in units of pi Sigma_crit.
    row["theta_E"] = theta_E - inside / theta_E if population.conserve_mass else theta_E
    return row


def _one(values: np.ndarray) -> float:
    return float(values[0])


def _place(place: Place, g: np.random.Generator) -> tuple[float, float]:
    if isinstance(place, Disc):
        radius, direction = _one(place.radius.sample(g, 1)), g.uniform(0, 2 * math.pi)
        return radius * math.cos(direction), radius * math.sin(direction)
    return _one(place.x.sample(g, 1)), _one(place.y.sample(g, 1))


def _fraction_inside(x: float, y: float, length: float, angle: float, radius: float) -> float:
    """Return the fraction of a line that lies inside the circle of `radius` about the origin."""
    along = x * math.cos(angle) + y * math.sin(angle)
    across = y * math.cos(angle) - x * math.sin(angle)
    half_chord = math.sqrt(max(radius**2 - across**2, 0.0))
    start, stop = max(along - length / 2, -half_chord), min(along + length / 2, half_chord)
    return max(stop - start, 0.0) / length
