"""Where a small mass would explain what the smooth lens leaves: `evidence_maps(images, fit, population)`.

A small deflection d alpha moves light as a shift of the source does, d I = dI/d(source) . d alpha, so for a mass of
given place and shape the gain in chi2 is one weighted linear regression beside the parameters of the smooth lens.
Places are many and images too: the sums over pixels are matrix products with a bank of deflections that all share.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from darklens.errors import ConfigError
from darklens.fit.fitter import HALF_WIDTH, Fitter, Images, fitter
from darklens.fit.macro import AT_ONCE, MacroFit, batches, check_exposure, check_images, joined, unit_range
from darklens.fit.model import Model
from darklens.fit.noise import Maps, steps_of
from darklens.fit.smooth import CENTRE
from darklens.physics.grid import Grid
from darklens.physics.profiles import line, point
from darklens.populations.population import Population

LINE_STEP, _LINE_REACH = 0.25, 1.25  # arcsec between centres of lines, and the largest coordinate of one
_LINE_ANGLES = 8
_LINE_LENGTHS = (1.2, 2.0, 2.8)  # arcsec


@dataclass(frozen=True)
class Evidence:
    """Gains in chi2 of b images by one mass more, parameters of the smooth lens, scale and offset marginalised.

    Attributes:
        delta_chi2_point: By a point mass in each pixel, negative where its best mass is negative (b, m, m).
        point_mass: That mass as theta_E^2, arcsec^2 (b, m, m).
        delta_chi2_line: The largest gain by a line mass centred on each place of a coarser grid (b, k, k).
        line_mass: Its mass, arcsec^2 (b, k, k).
        line_angle: Its direction, radians from x towards y (b, k, k).
        line_length: Its length, arcsec (b, k, k).
        pixel_scale: Of the maps of point masses, arcsec.
        line_scale: Of the maps of line masses, arcsec.
    """

    delta_chi2_point: Float[Tensor, "b m m"]
    point_mass: Float[Tensor, "b m m"]
    delta_chi2_line: Float[Tensor, "b k k"]
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
def evidence_maps(
    images: Images, fit: MacroFit, population: Population | str, *, exposure: Images | None = None
) -> Evidence:
    """Return where a point mass or a line mass beside the fitted smooth lens would lower chi2.

    Args:
        images: The images that were fitted.
        fit: What `fit_macro` made of them.
        population: As given to `fit_macro`.
        exposure: As given to `fit_macro`.

    Raises:
        ConfigError: If the population does not vary the position of its source.
        ValueError: As `fit_macro`.
    """
    fit_setup = fitter(population, centred=not set(CENTRE) <= set(fit.names))
    check_images(images, fit_setup)
    check_exposure(exposure, images)
    templates = templates_of(fit_setup)
    model, parts = Model(fit_setup.lens, fit_setup.fine), []
    unknown = torch.cat([fit.parameters, fit.scale.log()[:, None], fit.offset[:, None]], 1)
    for (block, block_exposure), at in zip(batches(images, exposure), torch.split(unknown, AT_ONCE), strict=True):
        scaled, low, spread = unit_range(block)
        at = torch.cat([at[:, :-2], at[:, -2:-1] - spread.log()[:, None], ((at[:, -1] - low) / spread)[:, None]], 1)
        pixels, noise = fit_setup.on_fine(scaled, block_exposure)
        expected, slopes = model.expected(at)
        noise = noise.with_extra(pixels, expected, model.gain(at), steps_of(scaled))
        weight = noise.weight(expected, model.gain(at))
        parts.append(templates.evidence(pixels - expected, weight, slopes))
    return joined(parts)


class Templates:
    """The deflections of unit masses at all places, on the pixels around which they are sought."""

    def __init__(self, fit_setup: Fitter) -> None:
        if not {"source_x", "source_y"} <= set(fit_setup.lens.names):
            raise ConfigError(
                f"{fit_setup.population.name}: evidence maps need a population that varies the source's position."
            )
        detector = fit_setup.fine
        kept = min(detector.n_pixels, 2 * round(HALF_WIDTH / detector.pixel_scale))
        kept -= (detector.n_pixels - kept) % 2
        self._edge = (detector.n_pixels - kept) // 2
        self.grid = Grid(n_pixels=kept, pixel_scale=detector.pixel_scale)
        self._source = tuple(fit_setup.lens.names.index(f"source_{axis}") for axis in "xy")
        self._points, self._lines = _point_bank(self.grid, fit_setup.population.psf.sigma), _line_bank(self.grid)

    def cut(self, maps: Float[Tensor, "... m m"]) -> Float[Tensor, "... n n"]:
        """Return what of maps on the fine detector lies on the grid."""
        low, high = self._edge, self._edge + self.grid.n_pixels
        return maps[..., low:high, low:high]

    def points(self, difference: Maps, weight: Maps, slopes: Float[Tensor, "b q m m"]) -> tuple[Maps, Maps, Maps]:
        """Return gain, mass and weight of a point mass in each pixel (b, n, n); arguments as in `evidence`."""
        n = self.grid.n_pixels
        gain, mass, free = self._regress(self._points, difference, weight, slopes)
        return gain.reshape(-1, n, n), mass.reshape(-1, n, n), free.reshape(-1, n, n)

    def lines(
        self, difference: Maps, weight: Maps, slopes: Float[Tensor, "b q m m"]
    ) -> tuple[Float[Tensor, "b t k k"], Float[Tensor, "b t k k"]]:
        """Return gain and mass of lines by length and angle, and by centre; arguments as in `evidence`."""
        gain, mass, _ = self._regress(self._lines, difference, weight, slopes)
        shape = (len(gain), -1, len(line_centres()), len(line_centres()))
        return gain.reshape(shape), mass.reshape(shape)

    def evidence(self, difference: Maps, weight: Maps, slopes: Float[Tensor, "b q m m"]) -> Evidence:
        """Return the maps.

        Args:
            difference: Image less model, on the fitter's fine detector.
            weight: One over the variance.
            slopes: Derivatives of the model by its unknowns, those of the smooth lens first.
        """
        gain, mass, _ = self.points(difference, weight, slopes)
        delta_chi2_line, line_mass = self.lines(difference, weight, slopes)
        best_gain, best = delta_chi2_line.max(1)
        length, angle = shape_of(best)
        return Evidence(
            delta_chi2_point=gain,
            point_mass=mass,
            delta_chi2_line=best_gain,
            line_mass=line_mass.gather(1, best[:, None])[:, 0],
            line_angle=angle,
            line_length=length,
            pixel_scale=self.grid.pixel_scale,
            line_scale=LINE_STEP,
        )

    def repeated(self, difference: Maps, weight: Maps, slopes: Float[Tensor, "b q m m"], free: Maps) -> Maps:
        """Return the mass of a point in each pixel (b, n, n) where the model's own unknowns have settled.

        What is left of the image is then orthogonal to the slopes. `free`, the weight of each place with those unknowns
        marginalised, is taken from `points` of the smooth lens, so that a place near masses of the model looks heavier
        than it is; it is a tenth of the work.
        """
        difference, weight, slopes = (self.cut(v).flatten(-2) for v in (difference, weight, slopes))
        by_x, by_y = (slopes[:, i] for i in self._source)
        remaining = self._points.x @ (difference * weight * by_x).T + self._points.y @ (difference * weight * by_y).T
        return remaining.T.reshape(free.shape) / free

    def _regress(
        self, bank: _Bank, difference: Maps, weight: Maps, slopes: Float[Tensor, "b q m m"]
    ) -> tuple[Float[Tensor, "b z"], Float[Tensor, "b z"], Float[Tensor, "b z"]]:
        """Return of every entry of the bank the gain in chi2 (with the sign of the mass), best mass and its weight."""
        difference, weight, slopes = (self.cut(v).flatten(-2) for v in (difference, weight, slopes))
        by_x, by_y = (slopes[:, i] for i in self._source)
        # What the difference and each slope give in common with each template: columns for one product with the bank.
        columns = torch.cat([difference[:, None], slopes], 1) * weight[:, None]
        b, q, p = columns.shape
        in_x, in_y = ((columns * by[:, None]).reshape(-1, p).T for by in (by_x, by_y))
        common = (bank.x @ in_x + bank.y @ in_y).reshape(-1, b, q).transpose(0, 1)
        norm = bank.xx @ (weight * by_x**2).T
        norm += 2 * (bank.xy @ (weight * by_x * by_y).T) + bank.yy @ (weight * by_y**2).T
        curvature = (slopes * weight[:, None]) @ slopes.mT
        unit = torch.diagonal(curvature, dim1=1, dim2=2).clamp_min(1e-30).rsqrt()
        scaled = (curvature * unit[:, :, None] * unit[:, None]).double()
        scaled += 1e-9 * torch.eye(len(scaled[0]), dtype=scaled.dtype, device=scaled.device)
        rhs = ((slopes @ (difference * weight)[:, :, None])[..., 0] * unit).double()
        # chi2 of the template with the unknowns marginalised, from the inverse's factor: single precision is enough.
        factor = torch.linalg.inv(torch.linalg.cholesky(scaled)).to(common)
        shared = common[..., 1:] * unit[:, None] @ factor.mT  # b z q
        remaining = common[..., 0] - (shared @ (factor.double() @ rhs[:, :, None]).to(common))[..., 0]
        fit_setup = norm.T
        free = (fit_setup - (shared * shared).sum(2)).maximum(1e-4 * fit_setup).clamp_min(1e-30)
        mass = remaining / free
        return remaining * mass.abs(), mass, free


@lru_cache(maxsize=4)
def templates_of(fit_setup: Fitter) -> Templates:
    """Return the templates of a fitter, made once."""
    return Templates(fit_setup)


def shape_of(template: Int[Tensor, "..."]) -> tuple[Tensor, Tensor]:
    """Return length (arcsec) and angle (radians) of the lines that `Templates.lines` numbers."""
    lengths = torch.tensor(_LINE_LENGTHS, device=template.device)
    return lengths[template // _LINE_ANGLES], (template % _LINE_ANGLES) * (math.pi / _LINE_ANGLES)


def _point_bank(grid: Grid, psf_sigma: float) -> _Bank:
    """Return the deflections of a unit point mass (theta_E = 1 arcsec) in the middle of every pixel, seen by the PSF.

    The PSF, a Gaussian, is applied to the deflection: d/d^2 becomes d/d^2 [1 - exp(-d^2 / 2 sigma^2)]. Where light is
    curved within the PSF, at images of the source's centre, that weakens the template: masses there come out up to
    twice too large (tests/unit/fit/test_evidence.py has them where light is half as bright, to 15 %).
    """
    x, y = (v.flatten() for v in grid.coordinates())
    from_x, from_y = x[None] - x[:, None], y[None] - y[:, None]
    alpha_x, alpha_y = point.deflection(from_x, from_y, theta_E=torch.ones(()))
    softening = -torch.expm1(-(from_x**2 + from_y**2) / (2 * psf_sigma**2))
    return _bank(alpha_x * softening, alpha_y * softening)


def _line_bank(grid: Grid) -> _Bank:
    """Return the deflections of unit line masses (1 arcsec^2) by length, angle and centre, in this order."""
    x, y = (v.flatten() for v in grid.coordinates())
    at = torch.tensor(line_centres())
    angles = torch.arange(_LINE_ANGLES) * (math.pi / _LINE_ANGLES)
    length, angle, at_y, at_x = (
        v.flatten()[:, None] for v in torch.meshgrid(torch.tensor(_LINE_LENGTHS), angles, at, at, indexing="ij")
    )
    return _bank(*line.deflection(x - at_x, y - at_y, mass=torch.ones(()), length=length, angle=angle))


def line_centres() -> list[float]:
    """Return the coordinates of the centres of lines along an axis, arcsec."""
    reach = round(_LINE_REACH / LINE_STEP)
    return [i * LINE_STEP for i in range(-reach, reach + 1)]


def _bank(x: Tensor, y: Tensor) -> _Bank:
    return _Bank(x, y, x * x, x * y, y * y)
