"""The substructure that a class adds to the smooth lens: true parameters, and mass inside the Einstein ring."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from darklens.physics.cosmology import nfw_angles
from darklens.physics.profiles import PROFILES, tnfw
from darklens.populations.substructure_models import LineMass, PointMasses, ProfileMasses, Subhaloes
from darklens.simulate.sampling import PerImage, PriorSampler

MASK_SUFFIX = "_is_there"
"""Ends the name of the column that is 1 for a mass and 0 for padding."""

_RING_POINTS = 256  # for the mass inside the ring; a smooth mass far from the ring needs a dozen
Columns = dict[str, np.ndarray]


@dataclass(frozen=True)
class Kind:
    """How a kind of substructure is drawn.

    Args:
        columns: Specification to unit and meaning of each parameter.
        width: Specification to the number of values of a parameter in an image; None for a single value.
        draw: (specification, sampler, theta_E of the lenses in arcsec) to the parameters and the mass inside the ring
            (arcsec^2, as theta_E^2).
    """

    columns: Callable[[Any], dict[str, str]]
    width: Callable[[Any], int | None]
    draw: Callable[[Any, PriorSampler, PerImage], tuple[Columns, PerImage]]


def prefix_of(spec: ProfileMasses) -> str:
    """Return the beginning of the column names of masses of a profile."""
    return f"profile_{spec.profile}"


def _points(spec: PointMasses, sampler: PriorSampler, theta_E: PerImage) -> tuple[Columns, PerImage]:
    squared = spec.theta_E_squared(sampler.many("mass", spec.mass, spec.count), theta_E[:, None])
    # The name of a random number is part of what fixes an image: "place" stays.
    radius, x, y = sampler.polar("place", spec.radius, spec.count)
    inside = np.where(radius < theta_E[:, None], squared, 0).sum(1)
    return {"point_theta_E": np.sqrt(squared), "point_x": x, "point_y": y}, inside


def _line(spec: LineMass, sampler: PriorSampler, theta_E: PerImage) -> tuple[Columns, PerImage]:
    mass, length = theta_E**2 * sampler.one("mass_fraction", spec.mass_fraction), sampler.one("length", spec.length)
    angle = np.radians(sampler.one("angle", spec.angle))
    x, y = sampler.position("position", spec.position)
    columns = {"line_mass": mass, "line_length": length, "line_angle": angle, "line_x": x, "line_y": y}
    return columns, mass * _fraction_inside(x, y, length, angle, theta_E)


def _haloes(spec: Subhaloes, sampler: PriorSampler, theta_E: PerImage) -> tuple[Columns, PerImage]:
    from scipy.stats import poisson

    k = spec.max_count
    count = np.clip(poisson.ppf(sampler.uniform("count", 1)[:, 0], spec.mean_count), 1, k)
    exists = np.arange(k) < count[:, None]
    mass = sampler.many("mass", spec.mass, k)
    R_s, alpha_Rs = nfw_angles(
        mass=mass,
        concentration=sampler.many("concentration", spec.concentration, k),
        z_lens=spec.z_lens,
        z_source=spec.z_source,
    )
    r_t = R_s * sampler.many("truncation", spec.truncation, k)
    radius, x, y = sampler.polar("place", spec.radius, k)
    # Far outside, a truncated halo deflects as a point of its total mass.
    far = [torch.as_tensor(v) for v in (1e4 * r_t, alpha_Rs, R_s, r_t)]
    alpha, _ = tnfw.deflection(far[0], torch.zeros_like(far[0]), alpha_Rs=far[1], R_s=far[2], r_t=far[3])
    total = alpha.numpy() * 1e4 * r_t
    columns = {
        "halo_mass": np.where(exists, mass, 0),
        "halo_alpha_Rs": np.where(exists, alpha_Rs, 0),
        "halo_R_s": R_s,
        "halo_r_t": r_t,
        "halo_x": x,
        "halo_y": y,
    }
    return columns, np.where(exists & (radius < theta_E[:, None]), total, 0).sum(1)


def _fraction_inside(x: PerImage, y: PerImage, length: PerImage, angle: PerImage, radius: PerImage) -> PerImage:
    """Return the fraction of each line that lies inside the circle of `radius` about the origin."""
    along = x * np.cos(angle) + y * np.sin(angle)
    across = y * np.cos(angle) - x * np.sin(angle)
    half_chord = np.sqrt(np.maximum(radius**2 - across**2, 0.0))
    start, stop = np.maximum(along - length / 2, -half_chord), np.minimum(along + length / 2, half_chord)
    return np.asarray(np.maximum(stop - start, 0.0) / length)


def _profile_columns(spec: ProfileMasses) -> dict[str, str]:
    prefix, card = prefix_of(spec), PROFILES[spec.profile].parameters
    parameters = {f"{prefix}_{p.symbol}": f"{p.unit}; {p.meaning}" for p in card}
    return parameters | {
        f"{prefix}_x": "arcsec",
        f"{prefix}_y": "arcsec",
        f"{prefix}{MASK_SUFFIX}": "1 for a mass, 0 for padding",
    }


def _profile_masses(spec: ProfileMasses, sampler: PriorSampler, theta_E: PerImage) -> tuple[Columns, PerImage]:
    prefix, n = prefix_of(spec), len(theta_E)
    parameters = {
        name: sampler.many(f"parameters.{name}", prior, spec.count) for name, prior in spec.parameters.items()
    }
    positions = [sampler.position(f"position.{i}", spec.position) for i in range(spec.count)]
    x, y = (np.stack(values, axis=1) for values in zip(*positions, strict=True))
    columns = {f"{prefix}_{name}": values for name, values in parameters.items()}
    columns |= {f"{prefix}_x": x, f"{prefix}_y": y, f"{prefix}{MASK_SUFFIX}": np.ones((n, spec.count))}
    return columns, _mass_inside(spec, {name: torch.as_tensor(v) for name, v in parameters.items()}, x, y, theta_E)


def _mass_inside(
    spec: ProfileMasses, parameters: dict[str, torch.Tensor], x: np.ndarray, y: np.ndarray, theta_E: PerImage
) -> PerImage:
    """Return the mass inside the ring (arcsec^2) by Gauss' law: theta_E times the mean radial deflection there."""
    phi = torch.linspace(0, 2 * np.pi, _RING_POINTS + 1, dtype=torch.float64)[:-1] + 0.5 / _RING_POINTS
    cos, sin, radius = torch.cos(phi), torch.sin(phi), torch.as_tensor(theta_E)[:, None, None]
    at_x, at_y = radius * cos - torch.as_tensor(x)[..., None], radius * sin - torch.as_tensor(y)[..., None]
    alpha_x, alpha_y = PROFILES[spec.profile].deflection(at_x, at_y, **{k: v[..., None] for k, v in parameters.items()})
    return np.asarray((radius * (alpha_x * cos + alpha_y * sin)).mean(2).sum(1).numpy())


KINDS: dict[str, Kind] = {
    "none": Kind(lambda _: {}, lambda _: None, lambda _spec, _sampler, theta_E: ({}, np.zeros_like(theta_E))),
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
    "profile": Kind(_profile_columns, lambda spec: spec.count, _profile_masses),
}
