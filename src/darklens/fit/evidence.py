"""Maps of the evidence for one perturber in the residuals of a smooth fit: `evidence_maps(images, fit, population)`.

A small deflection d alpha changes the image as a shift of the source does, dI = dI/d(source) . d alpha. For a perturber
of fixed position and shape, delta chi2 therefore follows from one weighted linear regression, marginalised over the
parameters of the smooth lens. The sums over pixels are correlations with the deflection of a point mass. A line mass is
a row of point masses, so sums that are linear in the deflection are averages of those of point masses along the line.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

from darklens.constants import constant
from darklens.data.contrast import HALF_WIDTH
from darklens.errors import ConfigError
from darklens.fit.fitter import Fitter, Images, fitter_of
from darklens.fit.macro import MacroFit, batch_size_on, batches, check_exposure, check_images, concatenate, unit_range
from darklens.fit.model import Model
from darklens.fit.noise import Maps, quantisation_steps
from darklens.fit.smooth import CENTRE
from darklens.physics.grid import Grid
from darklens.physics.profiles import point
from darklens.populations.population import Population
from darklens.scene.imaging import fast_length

LINE_STEP, _LINE_REACH = 0.25, 1.25  # arcsec: step and limit of the centres of line masses
_LINE_ANGLES = 8
_LINE_LENGTHS = (1.2, 2.0, 2.8)  # arcsec
_FFT_IMAGES = 2  # whose transforms fit into the cache of a core


@dataclass(frozen=True)
class Evidence:
    """Reductions of chi2 of b images by one perturber, marginalised over smooth lens, scale and offset.

    Attributes:
        delta_chi2_point: Reduction by a point mass in each pixel; negative if the best mass is negative (b, m, m).
        point_mass: Best mass as theta_E^2, arcsec^2 (b, m, m).
        delta_chi2_line: Largest reduction by a line mass centred on each position of a coarser grid (b, k, k).
        line_mass: Mass of that line, arcsec^2 (b, k, k).
        line_angle: Angle of that line, radians from x towards y (b, k, k).
        line_length: Length of that line, arcsec (b, k, k).
        pixel_scale: Pixel scale of the maps of point masses, arcsec.
        line_scale: Pixel scale of the maps of line masses, arcsec.
    """

    delta_chi2_point: Float[Tensor, "b m m"]
    point_mass: Float[Tensor, "b m m"]
    delta_chi2_line: Float[Tensor, "b k k"]
    line_mass: Float[Tensor, "b k k"]
    line_angle: Float[Tensor, "b k k"]
    line_length: Float[Tensor, "b k k"]
    pixel_scale: float
    line_scale: float


class PointMaps(NamedTuple):
    """Delta chi2 (with the sign of the mass), mass and its Fisher information for one point mass in each pixel."""

    delta_chi2: Maps
    mass: Maps
    information: Maps


class LineMaps(NamedTuple):
    """Delta chi2 and mass of one line, by shape (length and angle) and centre."""

    delta_chi2: Float[Tensor, "b t k k"]
    mass: Float[Tensor, "b t k k"]


class _Best(NamedTuple):
    """Delta chi2 (with the sign of the mass), best mass and its Fisher information of each template."""

    delta_chi2: Float[Tensor, "b z"]
    mass: Float[Tensor, "b z"]
    information: Float[Tensor, "b z"]


class _LineBank:
    """Templates of z unit line masses, ordered by length, angle and centre, from those of point masses."""

    def __init__(self, points: "_PointBank", grid: Grid, device: torch.device) -> None:
        centres = torch.tensor(line_centres())
        angles = torch.arange(_LINE_ANGLES) * (math.pi / _LINE_ANGLES)
        length, angle, y, x = (
            v.flatten()[:, None]
            for v in torch.meshgrid(torch.tensor(_LINE_LENGTHS), angles, centres, centres, indexing="ij")
        )
        # Equal parts of each line, as point masses; each is divided among the four nearest pixels.
        n_parts = math.ceil(max(_LINE_LENGTHS) / grid.pixel_scale)
        along = ((torch.arange(n_parts) + 0.5) / n_parts - 0.5) * length
        pixels, shares = _nearest_pixels(grid, x + along * angle.cos(), y + along * angle.sin())
        self._pixels, self._shares = pixels.flatten(1).to(device), (shares.flatten(1) / n_parts).to(device)
        alpha_x, alpha_y = (self._sums(component) for component in points.deflections())
        self._squares = alpha_x**2, 2 * alpha_x * alpha_y, alpha_y**2

    def _sums(self, of_points: Float[Tensor, "p k"]) -> Float[Tensor, "z k"]:
        return embedding_bag(self._pixels, of_points, mode="sum", per_sample_weights=self._shares)

    def products(self, of_points: Float[Tensor, "b k p"]) -> Float[Tensor, "b k z"]:
        """Return the sum over pixels of the deflections times planes, from that for a point mass in each pixel."""
        b, k, p = of_points.shape
        return self._sums(of_points.reshape(-1, p).T.contiguous()).T.reshape(b, k, -1)

    def norms(
        self, xx: Float[Tensor, "b p"], xy: Float[Tensor, "b p"], yy: Float[Tensor, "b p"]
    ) -> Float[Tensor, "b z"]:
        """Return the sum over pixels of a quadratic form of the deflections, from its coefficients."""
        of_xx, of_xy, of_yy = self._squares
        return (of_xx @ xx.T + of_xy @ xy.T + of_yy @ yy.T).T


def _nearest_pixels(
    grid: Grid, x: Float[Tensor, "z n"], y: Float[Tensor, "z n"]
) -> tuple[Int[Tensor, "z n 4"], Float[Tensor, "z n 4"]]:
    """Return the indices of the four pixels nearest to each position, and their shares; positions outside are moved."""
    n = grid.n_pixels
    column, row = ((v / grid.pixel_scale + (n - 1) / 2).clamp(0, n - 1) for v in (x, y))
    first_column, first_row = (v.floor().clamp(max=n - 2) for v in (column, row))
    right_share, lower_share = column - first_column, row - first_row
    first = (first_row * n + first_column).long()
    pixels = torch.stack([first, first + 1, first + n, first + n + 1], 2)
    by_column = torch.stack([1 - right_share, right_share], 2)
    shares = torch.cat([by_column * (1 - lower_share[..., None]), by_column * lower_share[..., None]], 2)
    return pixels, shares


class _PointBank:
    """Deflections (arcsec) of a unit point mass (theta_E = 1 arcsec) in each of p pixels, PSF included.

    The Gaussian PSF is applied to the deflection: d/d^2 becomes d/d^2 [1 - exp(-d^2 / 2 sigma^2)]. At images of the
    centre of the source, the light is curved within the PSF. Masses there are overestimated by up to a factor of two,
    at half the peak brightness by up to 15 % (tests/unit/fit/test_evidence.py).
    """

    def __init__(self, grid: Grid, psf_sigma: float, device: torch.device) -> None:
        self._side = grid.n_pixels
        self._length = fast_length(2 * grid.n_pixels - 1)
        offset = torch.fft.fftfreq(self._length, 1 / self._length) * grid.pixel_scale
        x, y = offset[None], offset[:, None]
        softening = -torch.expm1(-(x**2 + y**2) / (2 * psf_sigma**2))
        along, across = (a * softening for a in point.deflection(x, y, theta_E=torch.ones(())))
        self._kernel = along.to(device), across.to(device)
        kernels = torch.stack([along, across, along**2, 2 * along * across, across**2]).double()
        self._spectra = torch.fft.rfft2(kernels).conj().to(torch.complex64).to(device)

    def deflections(self) -> tuple[Float[Tensor, "p p"], Float[Tensor, "p p"]]:
        """Return the components of the deflection by a mass in each pixel (first index) at each pixel."""
        index = torch.arange(self._side, device=self._kernel[0].device)
        offset = index - index[:, None]  # of a pixel from the mass
        at = offset[:, None, :, None], offset[None, :, None, :]
        along, across = (component[at].flatten(2).flatten(0, 1) for component in self._kernel)
        return along, across

    def products(self, along: Float[Tensor, "b k p"], across: Float[Tensor, "b k p"]) -> Float[Tensor, "b k z"]:
        """Return the sum over pixels of the deflections times planes, one for each component."""
        return self._correlation([along, across], self._spectra[:2])

    def norms(
        self, xx: Float[Tensor, "b p"], xy: Float[Tensor, "b p"], yy: Float[Tensor, "b p"]
    ) -> Float[Tensor, "b z"]:
        """Return the sum over pixels of a quadratic form of the deflections, from its coefficients."""
        return self._correlation([xx, xy, yy], self._spectra[2:])

    def _correlation(self, planes: Sequence[Tensor], spectra: Tensor) -> Tensor:
        size = _FFT_IMAGES if spectra.device.type == "cpu" else len(planes[0])
        blocks = zip(*(torch.split(plane, size) for plane in planes), strict=True)
        return torch.cat([self._correlation_of_block(block, spectra) for block in blocks])

    def _correlation_of_block(self, planes: Sequence[Tensor], spectra: Tensor) -> Tensor:
        """Return the correlation, with transforms of those rows only that are not zero or cropped."""
        n, length = self._side, self._length
        total = torch.zeros(())
        for plane, spectrum in zip(planes, spectra, strict=True):
            rows = torch.fft.rfft(plane.reshape(*plane.shape[:-1], n, n), n=length)
            total = total + torch.fft.fft(rows, n=length, dim=-2) * spectrum
        sums: Tensor = torch.fft.irfft(torch.fft.ifft(total, dim=-2)[..., :n, :], n=length)[..., :n].flatten(-2)
        return sums


@torch.no_grad()
def evidence_maps(
    images: Images, fit: MacroFit, population: Population | str, *, exposure: Images | None = None
) -> Evidence:
    """Return by how much a point or line mass at each position would lower chi2.

    Args:
        images: The fitted images (b, n, n).
        fit: Result of `fit_macro` for these images.
        population: The population passed to `fit_macro`.
        exposure: The exposure passed to `fit_macro`.

    Raises:
        ConfigError: If the population does not vary the position of its source.
        ValueError: As `fit_macro`.
    """
    fitter = fitter_of(population, centred=not set(CENTRE) <= set(fit.names), device=images.device)
    check_images(images, fitter)
    check_exposure(exposure, images)
    templates = templates_of(fitter)
    model, parts = Model(fitter.lens, fitter.fine), []
    parameters = torch.cat([fit.parameters, fit.scale.log()[:, None], fit.offset[:, None]], 1)
    for (block, block_exposure), block_parameters in zip(
        batches(images, exposure), torch.split(parameters, batch_size_on(images.device)), strict=True
    ):
        scaled, low, spread = unit_range(block)
        block_parameters = torch.cat(
            [
                block_parameters[:, :-2],
                block_parameters[:, -2:-1] - spread.log()[:, None],
                ((block_parameters[:, -1] - low) / spread)[:, None],
            ],
            1,
        )
        pixels, noise = fitter.on_fine(scaled, block_exposure)
        expected, slopes = model.expected(block_parameters)
        noise = noise.with_extra(pixels, expected, model.gain(block_parameters), quantisation_steps(scaled))
        weight = noise.weight(expected, model.gain(block_parameters))
        parts.append(templates.evidence(pixels - expected, weight, slopes))
    return concatenate(parts)


class Templates:
    """Deflections of unit masses at all positions of a grid, for the detector of a fitter.

    Raises:
        ConfigError: If the population does not vary the position of its source.
    """

    def __init__(self, fitter: Fitter) -> None:
        if not {"source_x", "source_y"} <= set(fitter.lens.names):
            raise ConfigError(
                f"{fitter.population.name}: evidence maps need a population that varies the source's position."
            )
        detector = fitter.fine
        n_pixels = min(detector.n_pixels, 2 * round(HALF_WIDTH / detector.pixel_scale))
        n_pixels -= (detector.n_pixels - n_pixels) % 2
        self._edge = (detector.n_pixels - n_pixels) // 2
        self.grid = Grid(n_pixels=n_pixels, pixel_scale=detector.pixel_scale)
        self._source = tuple(fitter.lens.names.index(f"source_{axis}") for axis in "xy")
        width = fitter.population.psf.width(fitter.population.field.pixel_scale)
        self._points = _PointBank(self.grid, width, fitter.device)
        self._lines = _LineBank(self._points, self.grid, fitter.device)

    def cut(self, maps: Float[Tensor, "... m m"]) -> Float[Tensor, "... n n"]:
        """Crop maps on the fine detector to the grid."""
        low, high = self._edge, self._edge + self.grid.n_pixels
        return maps[..., low:high, low:high]

    def points(self, difference: Maps, weight: Maps, slopes: Float[Tensor, "b q m m"]) -> PointMaps:
        """Return the maps of a point mass; arguments as for `evidence`."""
        return self._point_maps(self._regression(difference, weight, slopes))

    def points_and_lines(
        self, difference: Maps, weight: Maps, slopes: Float[Tensor, "b q m m"]
    ) -> tuple[PointMaps, LineMaps]:
        """Return the maps of a point mass and of lines; arguments as for `evidence`."""
        regression = self._regression(difference, weight, slopes)
        best = regression.solve(self._lines.products(regression.of_points), self._lines.norms(*regression.quadratic))
        shape = (len(difference), -1, len(line_centres()), len(line_centres()))
        return self._point_maps(regression), LineMaps(best.delta_chi2.reshape(shape), best.mass.reshape(shape))

    def _point_maps(self, regression: "_Regression") -> PointMaps:
        best = regression.solve(regression.of_points, self._points.norms(*regression.quadratic))
        n = self.grid.n_pixels
        return PointMaps(*(values.reshape(-1, n, n) for values in best))

    def evidence(self, difference: Maps, weight: Maps, slopes: Float[Tensor, "b q m m"]) -> Evidence:
        """Return the evidence maps.

        Args:
            difference: Image minus model, on the fine detector.
            weight: Inverse variance.
            slopes: Derivatives of the model with respect to its parameters, those of the smooth lens first.
        """
        points, lines = self.points_and_lines(difference, weight, slopes)
        best_delta_chi2, best = lines.delta_chi2.max(1)
        length, angle = shape_of(best)
        return Evidence(
            delta_chi2_point=points.delta_chi2,
            point_mass=points.mass,
            delta_chi2_line=best_delta_chi2,
            line_mass=lines.mass.gather(1, best[:, None])[:, 0],
            line_angle=angle,
            line_length=length,
            pixel_scale=self.grid.pixel_scale,
            line_scale=LINE_STEP,
        )

    def point_masses(self, difference: Maps, weight: Maps, slopes: Float[Tensor, "b q m m"], information: Maps) -> Maps:
        """Return the best point mass in each pixel (b, n, n) for a converged model.

        The residuals of a converged model are orthogonal to its derivatives. `information`, the marginalised Fisher
        information of the mass, is that from `points` for the smooth lens. It overestimates masses near perturbers of
        the model, but saves nine tenths of the time.
        """
        difference, weight, slopes = (self.cut(v).flatten(-2) for v in (difference, weight, slopes))
        by_x, by_y = (slopes[:, i] for i in self._source)
        weighted = difference * weight
        score = self._points.products((weighted * by_x)[:, None], (weighted * by_y)[:, None])
        return score.reshape(information.shape) / information

    def _regression(self, difference: Maps, weight: Maps, slopes: Float[Tensor, "b q m m"]) -> "_Regression":
        difference, weight, slopes = (self.cut(v).flatten(-2) for v in (difference, weight, slopes))
        by_x, by_y = (slopes[:, i] for i in self._source)
        columns = torch.cat([difference[:, None], slopes], 1) * weight[:, None]
        curvature = (slopes * weight[:, None]) @ slopes.mT
        unit = torch.diagonal(curvature, dim1=1, dim2=2).clamp_min(1e-30).rsqrt()
        scaled = (curvature * unit[:, :, None] * unit[:, None]).double()
        scaled += 1e-9 * torch.eye(len(scaled[0]), dtype=scaled.dtype, device=scaled.device)
        factor = torch.linalg.inv(_cholesky(scaled))
        rhs = ((slopes @ (difference * weight)[:, :, None])[..., 0] * unit).double()
        return _Regression(
            of_points=self._points.products(*(columns * by[:, None] for by in (by_x, by_y))),
            quadratic=(weight * by_x**2, weight * by_x * by_y, weight * by_y**2),
            factor=(factor * unit[:, None]).to(difference),
            step=(factor @ rhs[:, :, None]).to(difference),
        )


class _Regression(NamedTuple):
    """Weighted linear regressions of b differences on one template each, marginalised over q parameters.

    Attributes:
        of_points: Inner products of the difference and of each derivative with the template of a point mass.
        quadratic: Coefficients of the quadratic form of the deflection that gives the norm of a template.
        factor: Inverse of the Cholesky factor of the curvature.
        step: `factor` times the inner products of the difference with the derivatives.
    """

    of_points: Float[Tensor, "b k p"]
    quadratic: tuple[Float[Tensor, "b p"], Float[Tensor, "b p"], Float[Tensor, "b p"]]
    factor: Float[Tensor, "b q q"]
    step: Float[Tensor, "b q 1"]

    def solve(self, overlap: Float[Tensor, "b k z"], norm: Float[Tensor, "b z"]) -> _Best:
        """Return the best mass of each of z templates, from their inner products and norms."""
        projection = self.factor @ overlap[:, 1:]
        score = overlap[:, 0] - (projection * self.step).sum(1)
        # Marginalised over the smooth lens; single precision is enough.
        information = (norm - (projection * projection).sum(1)).maximum(1e-4 * norm).clamp_min(1e-30)
        mass = score / information
        return _Best(score * mass.abs(), mass, information)


def _cholesky(matrices: Float[Tensor, "b q q"]) -> Float[Tensor, "b q q"]:
    """Return the Cholesky factors of scaled curvatures; of the identity for one that is singular or not finite.

    An image without contrast has such a curvature, and must not stop the fits of the others in its batch.
    """
    factor, failed = torch.linalg.cholesky_ex(matrices.nan_to_num())
    identity = torch.eye(len(factor[0]), dtype=factor.dtype, device=factor.device)
    return torch.where((failed > 0)[:, None, None], identity, factor)


@lru_cache(maxsize=4)
@torch.inference_mode(False)  # cached tensors must also serve in training
def templates_of(fitter: Fitter) -> Templates:
    """Return the cached templates of a fitter."""
    return Templates(fitter)


def shape_of(template: Int[Tensor, "..."]) -> tuple[Tensor, Tensor]:
    """Return length (arcsec) and angle (radians) for the shape indices of `Templates.lines`."""
    lengths = constant(_LINE_LENGTHS, torch.float32, template.device)
    return lengths[template // _LINE_ANGLES], (template % _LINE_ANGLES) * (math.pi / _LINE_ANGLES)


def line_centres() -> list[float]:
    """Return the x or y coordinates of the centres of line masses, arcsec."""
    reach = round(_LINE_REACH / LINE_STEP)
    return [i * LINE_STEP for i in range(-reach, reach + 1)]
