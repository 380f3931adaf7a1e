"""Parameters to noise-free images, in batches: the forward model I(theta) = PSF * S(beta(theta))."""

from collections.abc import Callable, Mapping
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from darklens.physics import light, optics
from darklens.physics.grid import Grid
from darklens.physics.profiles import line, shear, sie, sis
from darklens.physics.raytrace import haloes_deflection, point_masses_deflection, source_plane
from darklens.simulate import galaxies
from darklens.simulate.draw import Truth
from darklens.simulate.populations import Field2D, ImageLight, LineMass, Population, SersicLight

Values = Mapping[str, Tensor]
Present = tuple[str, ...]
Trace = Callable[[Population, Present, Values, Tensor, Tensor], Tensor]


def grid_of(field: Field2D) -> Grid:
    """Return the pixel grid of a population's detector."""
    return Grid(n_pixels=field.n_pixels, pixel_scale=field.pixel_scale)


def render(
    population: Population,
    truth: "Truth | Values",
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    trace: Trace | None = None,
) -> Float[Tensor, "b n n"]:
    """Return noise-free images, without sky.

    Args:
        population: Fixes the detector and the point-spread function.
        truth: Columns as `draw` makes them, B rows.
        dtype: float32 or float64.
        device: Where to compute.
        trace: `surface_brightness`, or a compiled form of it.

    Returns:
        Brightness in counts (or rate) per pixel.
    """
    field = population.field
    x, y = _axes(field, dtype, torch.device(device))
    value = {name: torch.as_tensor(column, dtype=dtype, device=device) for name, column in truth.items()}
    trace = trace or surface_brightness
    groups = _by_substructure(value)
    if len(groups) == 1:
        (present,) = groups
        brightness = trace(population, present, value, x, y)
    else:
        brightness = x.new_empty(len(value["theta_E"]), y.shape[-2], x.shape[-1])
        for present, rows in groups.items():
            brightness[rows] = trace(population, present, {name: v[rows] for name, v in value.items()}, x, y)
    pixels = optics.integrate_pixels(brightness, field.supersample)
    psf = optics.gaussian_psf(sigma=population.psf.sigma / field.pixel_scale, truncate=population.psf.truncate)
    return optics.convolve_separable(pixels, psf)


def surface_brightness(
    population: Population, present: Present, value: Values, x: Tensor, y: Tensor
) -> Float[Tensor, "b m m"]:
    """Return the brightness at image-plane positions, before pixels and PSF.

    Args:
        population: Its lens, its light.
        present: The kinds of substructure that these lenses have, by the prefix of their columns.
        value: Columns as `draw` makes them.
        x: (1, m), arcsec.
        y: (m, 1), arcsec.
    """
    p = {name: column[:, None, None] for name, column in value.items() if column.ndim == 1}
    smooth = (
        sis.deflection(x, y, theta_E=p["theta_E"])
        if population.lens.round
        else sie.deflection(x, y, theta_E=p["theta_E"], e1=p["e1"], e2=p["e2"])
    )
    tide = shear.deflection(x, y, gamma1=p["gamma1"], gamma2=p["gamma2"])
    substructure = [_SUBSTRUCTURE[prefix](population, value, x, y) for prefix in present]
    beta_x, beta_y = source_plane(x, y, [tide, smooth, *substructure])
    brightness = _source(population, p, beta_x, beta_y)
    if population.lens_light:
        brightness = brightness + _sersic(population.lens_light, p, "light", x, y)
    return brightness


def _source(population: Population, p: Values, beta_x: Tensor, beta_y: Tensor) -> Tensor:
    source = population.source
    if isinstance(source, SersicLight):
        return _sersic(source, p, "source", beta_x, beta_y)
    return _galaxies(source, p, beta_x, beta_y) * population.field.pixel_scale**2


def _sersic(spec: SersicLight, p: Values, prefix: str, x: Tensor, y: Tensor) -> Tensor:
    own = {name: p[f"{prefix}_{name}"] for name in ("amplitude", "R_e", "n", "q", "angle")}
    b = light.sersic_b_linear if spec.b_n == "linear" else light.sersic_b
    return light.sersic(x - p[f"{prefix}_x"], y - p[f"{prefix}_y"], b=b(own["n"]), **own)


def _galaxies(source: ImageLight, p: Values, beta_x: Tensor, beta_y: Tensor) -> Tensor:
    """Return the brightness per square arcsec of each image's own galaxy."""
    cos, sin = torch.cos(p["source_angle"]), torch.sin(p["source_angle"])
    x, y = beta_x - p["source_x"], beta_y - p["source_y"]
    u, v = x * cos + y * sin, y * cos - x * sin
    paths = galaxies.files(source)
    shown = [
        galaxies.brightness(
            galaxies.galaxy(paths[int(p["source_galaxy"][i])]),
            u[i],
            v[i],
            pixel_scale=source.pixel_scale * p["source_size"][i, 0, 0],
        )
        for i in range(len(u))
    ]
    return p["source_amplitude"] * torch.stack(shown)


def _by_substructure(value: Values) -> dict[Present, Tensor]:
    """Return the rows of a batch that have the same kinds of substructure."""
    there = {prefix: value[column] > 0 for prefix, column in _MASSES.items() if column in value}
    present = {prefix: (v.any(1) if v.ndim == 2 else v).tolist() for prefix, v in there.items()}
    rows: dict[Present, list[int]] = {}
    for i in range(len(value["theta_E"])):
        rows.setdefault(tuple(prefix for prefix in present if present[prefix][i]), []).append(i)
    return {kinds: torch.tensor(r, device=value["theta_E"].device) for kinds, r in rows.items()}


def _points(_: Population, value: Values, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return point_masses_deflection(
        x, y, theta_E=value["point_theta_E"], centre_x=value["point_x"], centre_y=value["point_y"]
    )


def _haloes(_: Population, value: Values, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    most = int((value["halo_alpha_Rs"] > 0).sum(1).max())  # the rest is padding
    alpha_Rs, R_s, r_t, at_x, at_y = (value[f"halo_{name}"][:, :most] for name in ("alpha_Rs", "R_s", "r_t", "x", "y"))
    return haloes_deflection(x, y, alpha_Rs=alpha_Rs, R_s=R_s, r_t=r_t, centre_x=at_x, centre_y=at_y)


def _lines(population: Population, value: Values, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    mass, at_x, at_y, length, angle = (value[f"line_{name}"] for name in ("mass", "x", "y", "length", "angle"))
    n_points = max(s.as_points for s in population.classes.values() if isinstance(s, LineMass))
    if n_points:
        offset = length[:, None] * torch.linspace(-0.5, 0.5, n_points, dtype=x.dtype, device=x.device)
        return point_masses_deflection(
            x,
            y,
            theta_E=(mass / n_points).sqrt()[:, None].expand_as(offset),
            centre_x=at_x[:, None] + offset * torch.cos(angle)[:, None],
            centre_y=at_y[:, None] + offset * torch.sin(angle)[:, None],
        )
    mass, at_x, at_y, length, angle = (v[:, None, None] for v in (mass, at_x, at_y, length, angle))
    return line.deflection(x - at_x, y - at_y, mass=mass, length=length, angle=angle)


_MASSES = {"point": "point_theta_E", "halo": "halo_alpha_Rs", "line": "line_mass"}
_SUBSTRUCTURE = {"point": _points, "halo": _haloes, "line": _lines}


@lru_cache(maxsize=8)
def _axes(field: Field2D, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return x (1, n) and y (n, 1): terms of x or y alone then cost next to nothing."""
    return grid_of(field).axes(supersample=field.supersample, dtype=dtype, device=device)
