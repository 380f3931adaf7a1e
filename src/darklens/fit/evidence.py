"""Maps of the evidence for one perturber in the residuals of a smooth fit: `evidence_maps(images, fit, population)`.

A small deflection d alpha changes the image as a shift of the source does, dI = dI/d(source) . d alpha. For a perturber
of fixed position and shape, delta chi2 therefore follows from one weighted linear regression, marginalised over the
parameters of the smooth lens. The sums over pixels are correlations with the deflection of a point mass, and matrix
products with a bank of deflections of line masses.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from darklens.constants import constant
from darklens.data.contrast import HALF_WIDTH
from darklens.errors import ConfigError
from darklens.fit.fitter import Fitter, Images, fitter_of
from darklens.fit.macro import MacroFit, batch_size_on, batches, check_exposure, check_images, concatenate, unit_range
from darklens.fit.model import Model
from darklens.fit.noise import Maps, quantisation_steps
from darklens.fit.smooth import CENTRE
from darklens.physics.grid import Grid
from darklens.physics.profiles import line, point
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


@dataclass(frozen=True)
class _LineBank:
    """Deflections (arcsec) of z unit line masses in p pixels, and products of their components."""

    x: Float[Tensor, "z p"]
    y: Float[Tensor, "z p"]
    xx: Float[Tensor, "z p"]
    xy: Float[Tensor, "z p"]
    yy: Float[Tensor, "z p"]

    def to(self, device: torch.device) -> "_LineBank":
        return _LineBank(*(getattr(self, f.name).to(device) for f in fields(self)))

    def products(self, along: Float[Tensor, "b k p"], across: Float[Tensor, "b k p"]) -> Float[Tensor, "b k z"]:
        """Return the sum over pixels of the deflections times planes, one for each component."""
        b, k, p = along.shape
        sums = self.x @ along.reshape(-1, p).T + self.y @ across.reshape(-1, p).T
        return sums.T.reshape(b, k, -1)

    def norms(
        self, xx: Float[Tensor, "b p"], xy: Float[Tensor, "b p"], yy: Float[Tensor, "b p"]
    ) -> Float[Tensor, "b z"]:
        """Return the sum over pixels of a quadratic form of the deflections, from its coefficients."""
        return (self.xx @ xx.T + 2 * (self.xy @ xy.T) + self.yy @ yy.T).T


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
        kernels = torch.stack([along, across, along**2, 2 * along * across, across**2]).double()
        self._spectra = torch.fft.rfft2(kernels).conj().to(torch.complex64).to(device)

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
        self._lines = _line_bank(self.grid).to(fitter.device)

    def cut(self, maps: Float[Tensor, "... m m"]) -> Float[Tensor, "... n n"]:
        """Crop maps on the fine detector to the grid."""
        low, high = self._edge, self._edge + self.grid.n_pixels
        return maps[..., low:high, low:high]

    def points(self, difference: Maps, weight: Maps, slopes: Float[Tensor, "b q m m"]) -> tuple[Maps, Maps, Maps]:
        """Return delta chi2, mass and its Fisher information for a point mass in each pixel (b, n, n).

        Arguments as for `evidence`.
        """
        n = self.grid.n_pixels
        delta_chi2, mass, information = self._regress(self._points, difference, weight, slopes)
        return delta_chi2.reshape(-1, n, n), mass.reshape(-1, n, n), information.reshape(-1, n, n)

    def lines(
        self, difference: Maps, weight: Maps, slopes: Float[Tensor, "b q m m"]
    ) -> tuple[Float[Tensor, "b t k k"], Float[Tensor, "b t k k"]]:
        """Return delta chi2 and mass of lines by shape (length and angle) and centre; arguments as for `evidence`."""
        delta_chi2, mass, _ = self._regress(self._lines, difference, weight, slopes)
        shape = (len(delta_chi2), -1, len(line_centres()), len(line_centres()))
        return delta_chi2.reshape(shape), mass.reshape(shape)

    def evidence(self, difference: Maps, weight: Maps, slopes: Float[Tensor, "b q m m"]) -> Evidence:
        """Return the evidence maps.

        Args:
            difference: Image minus model, on the fine detector.
            weight: Inverse variance.
            slopes: Derivatives of the model with respect to its parameters, those of the smooth lens first.
        """
        delta_chi2_point, point_mass, _ = self.points(difference, weight, slopes)
        delta_chi2_line, line_mass = self.lines(difference, weight, slopes)
        best_delta_chi2, best = delta_chi2_line.max(1)
        length, angle = shape_of(best)
        return Evidence(
            delta_chi2_point=delta_chi2_point,
            point_mass=point_mass,
            delta_chi2_line=best_delta_chi2,
            line_mass=line_mass.gather(1, best[:, None])[:, 0],
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

    def _regress(
        self, bank: _LineBank | _PointBank, difference: Maps, weight: Maps, slopes: Float[Tensor, "b q m m"]
    ) -> tuple[Float[Tensor, "b z"], Float[Tensor, "b z"], Float[Tensor, "b z"]]:
        """Return delta chi2 (with the sign of the mass), best mass and its Fisher information for each template."""
        difference, weight, slopes = (self.cut(v).flatten(-2) for v in (difference, weight, slopes))
        by_x, by_y = (slopes[:, i] for i in self._source)
        # Inner products of the difference and of each derivative with each template.
        columns = torch.cat([difference[:, None], slopes], 1) * weight[:, None]
        overlap = bank.products(*(columns * by[:, None] for by in (by_x, by_y))).mT
        total = bank.norms(weight * by_x**2, weight * by_x * by_y, weight * by_y**2)
        curvature = (slopes * weight[:, None]) @ slopes.mT
        unit = torch.diagonal(curvature, dim1=1, dim2=2).clamp_min(1e-30).rsqrt()
        scaled = (curvature * unit[:, :, None] * unit[:, None]).double()
        scaled += 1e-9 * torch.eye(len(scaled[0]), dtype=scaled.dtype, device=scaled.device)
        rhs = ((slopes @ (difference * weight)[:, :, None])[..., 0] * unit).double()
        # Marginalised information, from the factor of the inverse; single precision is enough.
        factor = torch.linalg.inv(_cholesky(scaled)).to(overlap)
        projection = overlap[..., 1:] * unit[:, None] @ factor.mT  # b z q
        score = overlap[..., 0] - (projection @ (factor.double() @ rhs[:, :, None]).to(overlap))[..., 0]
        information = (total - (projection * projection).sum(2)).maximum(1e-4 * total).clamp_min(1e-30)
        mass = score / information
        return score * mass.abs(), mass, information


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


def _line_bank(grid: Grid) -> _LineBank:
    """Return the deflections of unit line masses (1 arcsec^2), ordered by length, angle and centre."""
    x, y = (v.flatten() for v in grid.coordinates())
    centres = torch.tensor(line_centres())
    angles = torch.arange(_LINE_ANGLES) * (math.pi / _LINE_ANGLES)
    length, angle, at_y, at_x = (
        v.flatten()[:, None]
        for v in torch.meshgrid(torch.tensor(_LINE_LENGTHS), angles, centres, centres, indexing="ij")
    )
    along, across = line.deflection(x - at_x, y - at_y, mass=torch.ones(()), length=length, angle=angle)
    return _LineBank(along, across, along**2, along * across, across**2)


def line_centres() -> list[float]:
    """Return the x or y coordinates of the centres of line masses, arcsec."""
    reach = round(_LINE_REACH / LINE_STEP)
    return [i * LINE_STEP for i in range(-reach, reach + 1)]
