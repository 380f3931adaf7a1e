"""The substructure that a class adds to the smooth lens: its true parameters, and its mass inside the ring."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from darklens.physics.cosmology import nfw_angles
from darklens.physics.profiles import PROFILES, tnfw
from darklens.populations.substructure_models import LineMass, Masses, PointMasses, Subhaloes
from darklens.simulate.sampling import Draws

THERE = "_is_there"
_ON_THE_RING = 256  # directions; a smooth mass well off the ring needs a dozen

PerImage = Float[np.ndarray, " b"]
Columns = dict[str, np.ndarray]


@dataclass(frozen=True)
class Kind:
    """One kind of substructure.

    Args:
        columns: Unit and meaning of each of its parameters, of a spec.
        width: Values that a column holds for each image; None if it is one number.
        draw: (spec, draws, theta_E of the lenses) to columns and the mass inside the ring, arcsec^2.
    """

    columns: Callable[[Any], dict[str, str]]
    width: Callable[[Any], int | None]
    draw: Callable[[Any, Draws, PerImage], tuple[Columns, PerImage]]


def prefix_of(spec: Masses) -> str:
    """Return what the columns of masses of a profile begin with."""
    return f"profile_{spec.profile}"


def _points(spec: PointMasses, draws: Draws, theta_E: PerImage) -> tuple[Columns, PerImage]:
    squared = spec.theta_E_squared(draws.many("mass", spec.mass, spec.count), theta_E[:, None])
    radius, x, y = draws.disc("place", spec.radius, spec.count)
    inside = np.where(radius < theta_E[:, None], squared, 0).sum(1)
    return {"point_theta_E": np.sqrt(squared), "point_x": x, "point_y": y}, inside


def _line(spec: LineMass, draws: Draws, theta_E: PerImage) -> tuple[Columns, PerImage]:
    mass, length = theta_E**2 * draws.one("mass_fraction", spec.mass_fraction), draws.one("length", spec.length)
    angle = np.radians(draws.one("angle", spec.angle))
    x, y = draws.place("position", spec.position)
    found = {"line_mass": mass, "line_length": length, "line_angle": angle, "line_x": x, "line_y": y}
    return found, mass * _fraction_inside(x, y, length, angle, theta_E)


def _haloes(spec: Subhaloes, draws: Draws, theta_E: PerImage) -> tuple[Columns, PerImage]:
    from scipy.stats import poisson

    k = spec.max_count
    count = np.clip(poisson.ppf(draws.uniform("count", 1)[:, 0], spec.mean_count), 1, k)
    exists = np.arange(k) < count[:, None]
    mass = draws.many("mass", spec.mass, k)
    R_s, alpha_Rs = nfw_angles(
        mass=mass,
        concentration=draws.many("concentration", spec.concentration, k),
        z_lens=spec.z_lens,
        z_source=spec.z_source,
    )
    r_t = R_s * draws.many("truncation", spec.truncation, k)
    radius, x, y = draws.disc("place", spec.radius, k)
    # Far outside, a truncated halo deflects as a point with all its mass.
    far = [torch.as_tensor(v) for v in (1e4 * r_t, alpha_Rs, R_s, r_t)]
    alpha, _ = tnfw.deflection(far[0], torch.zeros_like(far[0]), alpha_Rs=far[1], R_s=far[2], r_t=far[3])
    total = alpha.numpy() * 1e4 * r_t
    found = {
        "halo_mass": np.where(exists, mass, 0),
        "halo_alpha_Rs": np.where(exists, alpha_Rs, 0),
        "halo_R_s": R_s,
        "halo_r_t": r_t,
        "halo_x": x,
        "halo_y": y,
    }
    return found, np.where(exists & (radius < theta_E[:, None]), total, 0).sum(1)


def _fraction_inside(x: PerImage, y: PerImage, length: PerImage, angle: PerImage, radius: PerImage) -> PerImage:
    """Return the fraction of each line that lies inside the circle of `radius` about the origin."""
    along = x * np.cos(angle) + y * np.sin(angle)
    across = y * np.cos(angle) - x * np.sin(angle)
    half_chord = np.sqrt(np.maximum(radius**2 - across**2, 0.0))
    start, stop = np.maximum(along - length / 2, -half_chord), np.minimum(along + length / 2, half_chord)
    return np.asarray(np.maximum(stop - start, 0.0) / length)


def _masses_columns(spec: Masses) -> dict[str, str]:
    prefix, card = prefix_of(spec), PROFILES[spec.profile].parameters
    own = {f"{prefix}_{p.symbol}": f"{p.unit}; {p.meaning}" for p in card}
    return own | {f"{prefix}_x": "arcsec", f"{prefix}_y": "arcsec", f"{prefix}{THERE}": "1 for a mass, 0 for padding"}


def _masses(spec: Masses, draws: Draws, theta_E: PerImage) -> tuple[Columns, PerImage]:
    prefix, n = prefix_of(spec), len(theta_E)
    own = {name: draws.many(f"parameters.{name}", prior, spec.count) for name, prior in spec.parameters.items()}
    places = [draws.place(f"position.{i}", spec.position) for i in range(spec.count)]
    x, y = (np.stack(values, axis=1) for values in zip(*places, strict=True))
    found = {f"{prefix}_{name}": values for name, values in own.items()}
    found |= {f"{prefix}_x": x, f"{prefix}_y": y, f"{prefix}{THERE}": np.ones((n, spec.count))}
    return found, _mass_inside(spec, {name: torch.as_tensor(v) for name, v in own.items()}, x, y, theta_E)


def _mass_inside(
    spec: Masses, own: dict[str, torch.Tensor], x: np.ndarray, y: np.ndarray, theta_E: PerImage
) -> PerImage:
    """Return the mass inside the ring by Gauss' law: the ring's radius times the mean outward deflection on it."""
    phi = torch.linspace(0, 2 * np.pi, _ON_THE_RING + 1, dtype=torch.float64)[:-1] + 0.5 / _ON_THE_RING
    cos, sin, radius = torch.cos(phi), torch.sin(phi), torch.as_tensor(theta_E)[:, None, None]
    at_x, at_y = radius * cos - torch.as_tensor(x)[..., None], radius * sin - torch.as_tensor(y)[..., None]
    alpha_x, alpha_y = PROFILES[spec.profile].deflection(at_x, at_y, **{k: v[..., None] for k, v in own.items()})
    return np.asarray((radius * (alpha_x * cos + alpha_y * sin)).mean(2).sum(1).numpy())


KINDS: dict[str, Kind] = {
    "none": Kind(lambda _: {}, lambda _: None, lambda _spec, _draws, theta_E: ({}, np.zeros_like(theta_E))),
    "point_masses": Kind(
        lambda _: {
            "point_theta_E": "arcsec; padded with massless points",
            "point_x": "arcsec",
            "point_y": "arcsec",
        },
        lambda spec: spec.count,
        _points,
    ),
    "line_mass": Kind(
        lambda _: {
            "line_mass": "arcsec^2",
            "line_x": "arcsec",
            "line_y": "arcsec",
            "line_length": "arcsec",
            "line_angle": "radians from x towards y",
        },
        lambda _: None,
        _line,
    ),
    "tnfw_subhaloes": Kind(
        lambda _: {
            "halo_mass": "m200 in solar masses before stripping; padded with massless haloes",
            "halo_alpha_Rs": "deflection at R_s before truncation, arcsec",
            "halo_R_s": "arcsec",
            "halo_r_t": "arcsec",
            "halo_x": "arcsec",
            "halo_y": "arcsec",
        },
        lambda spec: spec.max_count,
        _haloes,
    ),
    "profile": Kind(_masses_columns, lambda spec: spec.count, _masses),
}
