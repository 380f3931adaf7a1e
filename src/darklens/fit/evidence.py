"""Where a small mass would explain what the smooth lens leaves: `evidence_maps(images, fit, population)`.

A small deflection d alpha moves light as a shift of the source does, d I = dI/d(source) . d alpha, so for a mass of
given place and shape the gain in chi2 is one weighted linear regression beside the parameters of the smooth lens.
Places are many and images too: the sums over pixels are matrix products with a bank of deflections that all share.
"""

import math
from dataclasses import dataclass, fields
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from darklens.errors import ConfigError
from darklens.fit.macro import AT_ONCE, Images, MacroFit, expected, noise_weight, pooled, smooth_lens
from darklens.fit.smooth import SmoothLens
from darklens.physics.grid import Grid
from darklens.physics.profiles import line, point
from darklens.simulate import populations
from darklens.simulate.populations import Field2D, Population

_ARCSEC = 0.1  # of a pixel of the maps
_HALF_WIDTH = 2.4  # arcsec of the square in which masses are sought
_LINE_STEP, _LINE_REACH = 0.25, 1.25  # arcsec between centres of lines, and the largest coordinate of one
_LINE_ANGLES = 8
_LINE_LENGTHS = (1.2, 2.0, 2.8)  # arcsec


@dataclass(frozen=True)
class Evidence:
    """Gains in chi2 of b images by one mass more, parameters of the smooth lens, scale and offset marginalised.

    Attributes:
        point_gain: By a point mass in each pixel, negative where its best mass is negative (b, m, m).
        point_mass: That mass as theta_E^2, arcsec^2 (b, m, m).
        line_gain: The largest gain by a line mass centred on each place of a coarser grid (b, k, k).
        line_mass: Its mass, arcsec^2 (b, k, k).
        line_angle: Its direction, radians from x towards y (b, k, k).
        line_length: Its length, arcsec (b, k, k).
        pixel_scale: Of the maps of point masses, arcsec.
        line_scale: Of the maps of line masses, arcsec.
    """

    point_gain: Float[Tensor, "b m m"]
    point_mass: Float[Tensor, "b m m"]
    line_gain: Float[Tensor, "b k k"]
    line_mass: Float[Tensor, "b k k"]
    line_angle: Float[Tensor, "b k k"]
    line_length: Float[Tensor, "b k k"]
    pixel_scale: float
    line_scale: float


@dataclass(frozen=True)
class _Bank:
    """Deflections (arcsec) of z unit masses in p pixels, and their products."""

    x: Float[Tensor, "z p"]
    y: Float[Tensor, "z p"]
    xx: Float[Tensor, "z p"]
    xy: Float[Tensor, "z p"]
    yy: Float[Tensor, "z p"]


@torch.no_grad()
def evidence_maps(images: Images, fit: MacroFit, population: Population | str) -> Evidence:
    """Return where a point mass or a line mass beside the fitted smooth lens would lower chi2.

    Args:
        images: The images that were fitted.
        fit: What `fit_macro` made of them.
        population: As given to `fit_macro`.

    Raises:
        ConfigError: If the population does not vary the position of its source.
    """
    lens = smooth_lens(populations.get(population) if isinstance(population, str) else population)
    if not {"source_x", "source_y"} <= set(lens.names):
        raise ConfigError(f"{lens.population.name}: evidence maps need a population that varies the source's position.")
    unknown = torch.cat([fit.parameters, fit.scale.log()[:, None], fit.offset[:, None]], 1)
    pairs = zip(torch.split(images.float(), AT_ONCE), torch.split(unknown, AT_ONCE), strict=True)
    parts = [_of_some(some, at, lens) for some, at in pairs]
    own = [f.name for f in fields(Evidence) if not f.name.endswith("scale")]
    arrays = {name: torch.cat([getattr(part, name) for part in parts]) for name in own}
    return Evidence(**arrays, pixel_scale=parts[0].pixel_scale, line_scale=_LINE_STEP)


def _of_some(images: Images, unknown: Float[Tensor, "b q"], lens: SmoothLens) -> Evidence:
    field = lens.population.field
    combined = max(1, round(_ARCSEC / field.pixel_scale))
    model, slopes = expected(lens, unknown, field)
    weight = noise_weight(lens, images, unknown, model, field)
    inner = _inner(field, combined)
    kept = Field2D(n_pixels=inner // combined, pixel_scale=field.pixel_scale * combined)
    difference, weight = (_pooled(v, inner, combined).flatten(1) for v in (images - model, weight))
    slopes = _pooled(slopes.flatten(0, 1), inner, combined).reshape(*slopes.shape[:2], -1)
    weight = weight * combined**2
    points = _point_bank(kept, lens.population.psf.sigma)
    gain, mass = _regress(points, difference, weight, slopes, lens)
    lines = _line_bank(kept)
    line_gain, line_mass = _regress(lines, difference, weight, slopes, lens)
    centres = len(_line_centres())
    shape = (len(images), len(_LINE_LENGTHS) * _LINE_ANGLES, centres, centres)
    best_gain, best = line_gain.reshape(shape).max(1)
    m = kept.n_pixels
    return Evidence(
        point_gain=gain.reshape(-1, m, m),
        point_mass=mass.reshape(-1, m, m),
        line_gain=best_gain,
        line_mass=line_mass.reshape(shape).gather(1, best[:, None])[:, 0],
        line_angle=(best % _LINE_ANGLES) * (math.pi / _LINE_ANGLES),
        line_length=torch.tensor(_LINE_LENGTHS, device=best.device)[best // _LINE_ANGLES],
        pixel_scale=kept.pixel_scale,
        line_scale=_LINE_STEP,
    )


def _regress(
    bank: _Bank, difference: Tensor, weight: Tensor, slopes: Float[Tensor, "b q p"], lens: SmoothLens
) -> tuple[Float[Tensor, "b z"], Float[Tensor, "b z"]]:
    """Return the gain in chi2 (with the sign of the mass) and the best mass, for every entry of the bank."""
    by_x, by_y = (slopes[:, lens.names.index(f"source_{axis}")] for axis in "xy")
    # What the difference and each slope give in common with each template: columns for one product with the bank.
    columns = torch.cat([difference[:, None], slopes], 1) * weight[:, None]
    b, q, p = columns.shape
    common = bank.x @ (columns * by_x[:, None]).reshape(-1, p).T + bank.y @ (columns * by_y[:, None]).reshape(-1, p).T
    common = common.reshape(-1, b, q).transpose(0, 1)
    norm = bank.xx @ (weight * by_x**2).T + 2 * (bank.xy @ (weight * by_x * by_y).T) + bank.yy @ (weight * by_y**2).T
    curvature = (slopes * weight[:, None]) @ slopes.mT
    unit = torch.diagonal(curvature, dim1=1, dim2=2).clamp_min(1e-30).rsqrt()
    scaled = (curvature * unit[:, :, None] * unit[:, None]).double()
    scaled += 1e-9 * torch.eye(len(scaled[0]), dtype=scaled.dtype, device=scaled.device)
    pull = ((slopes @ (difference * weight)[:, :, None])[..., 0] * unit).double()
    shared = (common[..., 1:] * unit[:, None]).double()
    solved = torch.linalg.solve(scaled, shared.mT)  # b q z
    left = common[..., 0].double() - (solved * pull[:, :, None]).sum(1)
    own = norm.T.double()
    free = (own - (solved * shared.mT).sum(1)).clamp_min(1e-6 * own.clamp_min(1e-30))
    mass = left / free
    return (left * mass.abs()).to(weight.dtype), mass.to(weight.dtype)


def _inner(field: Field2D, combined: int) -> int:
    """Return the side of the central square that is used, in pixels of the image, parity kept."""
    wanted = min(field.n_pixels, 2 * round(_HALF_WIDTH / field.pixel_scale))
    wanted -= wanted % combined
    return wanted - (combined if (field.n_pixels - wanted) % 2 else 0)


def _pooled(maps: Float[Tensor, "b n n"], inner: int, combined: int) -> Float[Tensor, "b m m"]:
    edge = (maps.shape[-1] - inner) // 2
    cut = maps[:, edge : edge + inner, edge : edge + inner]
    return pooled(cut, inner // combined)


@lru_cache(maxsize=4)
def _point_bank(field: Field2D, psf_sigma: float) -> _Bank:
    """Return the deflections of a unit point mass (theta_E = 1 arcsec) in the middle of every pixel, seen by the PSF.

    The PSF, a Gaussian, is applied to the deflection: d/d^2 becomes d/d^2 [1 - exp(-d^2 / 2 sigma^2)]. Where light is
    curved within the PSF, at images of the source's centre, that weakens the template: masses there come out up to
    twice too large (tests/unit/fit/test_evidence.py has them where light is half as bright, to 15 %).
    """
    x, y = (v.flatten() for v in Grid(n_pixels=field.n_pixels, pixel_scale=field.pixel_scale).coordinates())
    from_x, from_y = x[None] - x[:, None], y[None] - y[:, None]
    alpha_x, alpha_y = point.deflection(from_x, from_y, theta_E=torch.ones(()))
    seen = -torch.expm1(-(from_x**2 + from_y**2) / (2 * psf_sigma**2))
    return _bank(alpha_x * seen, alpha_y * seen)


@lru_cache(maxsize=4)
def _line_bank(field: Field2D) -> _Bank:
    """Return the deflections of unit line masses (1 arcsec^2) by length, angle and centre, in this order."""
    x, y = (v.flatten() for v in Grid(n_pixels=field.n_pixels, pixel_scale=field.pixel_scale).coordinates())
    at = torch.tensor(_line_centres())
    angles = torch.arange(_LINE_ANGLES) * (math.pi / _LINE_ANGLES)
    length, angle, at_y, at_x = (
        v.flatten()[:, None] for v in torch.meshgrid(torch.tensor(_LINE_LENGTHS), angles, at, at, indexing="ij")
    )
    return _bank(*line.deflection(x - at_x, y - at_y, mass=torch.ones(()), length=length, angle=angle))


def _line_centres() -> list[float]:
    reach = round(_LINE_REACH / _LINE_STEP)
    return [i * _LINE_STEP for i in range(-reach, reach + 1)]


def _bank(x: Tensor, y: Tensor) -> _Bank:
    return _Bank(x, y, x * x, x * y, y * y)
