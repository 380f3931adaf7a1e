"""Parameters to images, in batches: the forward model I(theta) = PSF * S(beta(theta)), then the detector."""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from darklens import rng
from darklens.physics import light, optics
from darklens.physics.grid import Grid
from darklens.physics.profiles import line, shear, sie
from darklens.physics.raytrace import point_masses_deflection, source_plane
from darklens.simulate.draw import Truth
from darklens.simulate.populations import ExposureNoise, Field2D, LineMass, PoissonNoise, Population


def grid_of(field: Field2D) -> Grid:
    """Return the pixel grid of a population's detector."""
    return Grid(n_pixels=field.n_pixels, pixel_scale=field.pixel_scale)


def render(
    population: Population,
    truth: Truth,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Float[Tensor, "b n n"]:
    """Return noise-free images, without sky.

    Args:
        population: Fixes the detector and the point-spread function.
        truth: Columns as `draw` makes them, B rows.
        dtype: float32 or float64.
        device: Where to compute.

    Returns:
        Brightness in counts (or rate) per pixel.
    """
    field = population.field
    x, y = _coordinates(field, dtype, torch.device(device))
    value = {name: torch.as_tensor(column, dtype=dtype, device=device) for name, column in truth.items()}
    p = {name: column[:, None, None] for name, column in value.items() if column.ndim == 1}
    beta_x, beta_y = source_plane(
        x,
        y,
        [
            sie.deflection(x, y, theta_E=p["theta_E"], e1=p["e1"], e2=p["e2"]),
            shear.deflection(x, y, gamma1=p["gamma1"], gamma2=p["gamma2"]),
        ],
    )
    for rows, alpha_x, alpha_y in _substructure(population, value, x, y):
        beta_x[rows] -= alpha_x
        beta_y[rows] -= alpha_y
    b = light.sersic_b_linear if population.source.b_n == "linear" else light.sersic_b
    brightness = light.sersic(
        beta_x - p["source_x"],
        beta_y - p["source_y"],
        amplitude=p["source_amplitude"],
        R_e=p["source_R_e"],
        n=p["source_n"],
        q=p["source_q"],
        angle=p["source_angle"],
        b=b(p["source_n"]),
    )
    pixels = optics.integrate_pixels(brightness, field.supersample)
    psf = optics.gaussian_psf(sigma=population.psf.sigma / field.pixel_scale, truncate=population.psf.truncate)
    return optics.convolve_separable(pixels, psf)


def observe(
    population: Population, rate: Float[Tensor, "b n n"], truth: Truth, *, seed: int, indices: Sequence[int]
) -> np.ndarray:
    """Return what the detector stores for noise-free images: (B, 1, n, n) float32, scaled as the population says."""
    generators = [rng.generator(seed, "noise", i) for i in indices]
    noise = population.noise
    if isinstance(noise, PoissonNoise):
        counts: np.ndarray = optics.poisson_counts(rate + noise.sky, generators)
    else:
        counts = _exposure_counts(noise, rate, truth["exposure"], generators)
    images = counts.astype(np.float64)
    if population.stored == "minmax":
        low, high = images.min((1, 2), keepdims=True), images.max((1, 2), keepdims=True)
        images = (images - low) / (high - low)
    stored: np.ndarray = images.astype(np.float32)[:, None]
    return stored


def _exposure_counts(
    noise: ExposureNoise, rate: Tensor, exposure: np.ndarray, generators: Sequence[np.random.Generator]
) -> np.ndarray:
    expected = rate.double().cpu().numpy() * exposure[:, None, None]
    rms = noise.background_rms * exposure
    background = np.stack([g.normal(0, s, e.shape) for g, s, e in zip(generators, rms, expected, strict=True)])
    if not noise.legacy_noise:
        counts: np.ndarray = optics.poisson_counts(torch.from_numpy(expected), generators) + background
        return counts
    # DeepLenseSim adds a Poisson realisation's deviation and the background, clips, and draws Poisson again.
    first = optics.poisson_counts(torch.from_numpy(expected), generators)
    return optics.poisson_counts(torch.from_numpy((first + background).clip(min=0)), generators)


def _substructure(
    population: Population, value: Mapping[str, Tensor], x: Tensor, y: Tensor
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return (rows, alpha_x, alpha_y) for the rows of the batch that have substructure."""
    found = []
    with_points = torch.nonzero((value["point_theta_E"] > 0).any(1))[:, 0]
    if len(with_points):
        columns = (value[name][with_points] for name in ("point_theta_E", "point_x", "point_y"))
        theta_E, at_x, at_y = columns
        found.append((with_points, *point_masses_deflection(x, y, theta_E=theta_E, centre_x=at_x, centre_y=at_y)))
    with_line = torch.nonzero(value["line_mass"] > 0)[:, 0]
    if len(with_line):
        mass, at_x, at_y, length, angle = (
            value[f"line_{name}"][with_line] for name in ("mass", "x", "y", "length", "angle")
        )
        n_points = max(s.as_points for s in population.classes.values() if isinstance(s, LineMass))
        if n_points:
            offset = length[:, None] * torch.linspace(-0.5, 0.5, n_points, dtype=x.dtype, device=x.device)
            found.append(
                (
                    with_line,
                    *point_masses_deflection(
                        x,
                        y,
                        theta_E=(mass / n_points).sqrt()[:, None].expand_as(offset),
                        centre_x=at_x[:, None] + offset * torch.cos(angle)[:, None],
                        centre_y=at_y[:, None] + offset * torch.sin(angle)[:, None],
                    ),
                )
            )
        else:
            mass, at_x, at_y, length, angle = (v[:, None, None] for v in (mass, at_x, at_y, length, angle))
            found.append((with_line, *line.deflection(x - at_x, y - at_y, mass=mass, length=length, angle=angle)))
    return found


@lru_cache(maxsize=8)
def _coordinates(field: Field2D, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    return grid_of(field).coordinates(supersample=field.supersample, dtype=dtype, device=device)
