"""The smooth lens of a population, its detector at two resolutions, and a bank of starting values."""

from functools import cache, cached_property, lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from darklens import populations
from darklens.data.contrast import HALF_WIDTH
from darklens.fit.arc_starts import ArcBank, nearest_arcs
from darklens.fit.detector import Detector, ImagePSFDetector, detector_of
from darklens.fit.model import FitParameters, Kind, Model
from darklens.fit.noise import Noise, combined_exposure
from darklens.fit.scene_lens import SceneLens
from darklens.fit.smooth import SmoothLens
from darklens.populations.population import Field2D, Population
from darklens.scene import imaging
from darklens.simulate.truth import draw

Images = Float[Tensor, "b n n"]

_BLOCK = 0.1  # arcsec, largest side of a fitted block of pixels; samples a PSF of 0.087 arcsec
_BANK = 8192  # number of smooth lenses in the bank
_BANK_ARCSEC = 0.25  # largest pixel of the bank's images
_BANK_SAMPLES = 2  # along a side of these pixels, of arcs and lens light
N_STARTS = 4
_CPU = torch.device("cpu")


class Fitter:
    """The smooth lens of a population, and the detectors on which it is fitted.

    Args:
        population: Defines the lens model, the detector, the PSF and the noise.
        centred: Whether lenses are fixed at the centre of the image.
        device: Device of the images to fit, which receives all constants once.

    Attributes:
        population: The population.
        lens: Its smooth lens.
        coarse: Detector with one sample of light per block of pixels, for a fast first fit.
        fine: Detector with the sampling of the population, binned in blocks of pixels.
        device: Device of its tensors.
    """

    def __init__(
        self,
        population: Population,
        *,
        centred: bool = True,
        device: torch.device = _CPU,
    ) -> None:
        field = population.field
        self.device = device
        self.population = population
        self.lens: SmoothLens | SceneLens = (
            SceneLens(population, centred=centred) if population.scene else SmoothLens(population, centred=centred)
        ).to(device)
        small = coarser_field(field, _BLOCK)
        self._coarse_pixels = small.n_pixels
        crop = min(small.n_pixels, 2 * round(HALF_WIDTH / small.pixel_scale))
        block = field.n_pixels // small.n_pixels
        self.coarse = detector_of(population.model_copy(update={"field": small}), crop=crop, binned=block).to(device)
        crop = min(field.n_pixels, 2 * round(HALF_WIDTH / field.pixel_scale))
        crop -= (field.n_pixels - crop) % 2
        crop -= crop % (2 * block) if field.n_pixels % 2 == 0 else crop % block
        self.fine = detector_of(population, crop=crop, block=block).to(device)

    def model(self, kind: Kind = "smooth", *, blur: float = 0.0, coarse: bool = False) -> Model:
        """Return a forward model on the fine or on the coarse detector; `blur` in arcsec, see `masses.line_mass`."""
        detector = self.coarse if coarse else self.fine
        return Model(self.lens, detector, kind, blur)

    @cached_property
    @torch.inference_mode(False)  # cached tensors must also serve in training
    def full(self) -> Detector | ImagePSFDetector:
        """The whole detector, without binning."""
        return detector_of(self.population, crop=self.population.field.n_pixels).to(self.device)

    def on_coarse(self, images: Images, exposure: Images | None) -> tuple[Float[Tensor, "b m m"], Noise]:
        """Return images on the coarse detector, and their noise."""
        small = self._coarse_means(images)
        small_exposure = None if exposure is None else combined_exposure(exposure, self._coarse_means)
        area = (images.shape[-1] // self._coarse_pixels) ** 2
        return self.coarse.combine(small), Noise.of(self.population, small, self.coarse, small_exposure, area=area)

    def _coarse_means(self, images: Images) -> Float[Tensor, "b m m"]:
        return block_means(images, self._coarse_pixels)

    def on_fine(self, images: Images, exposure: Images | None) -> tuple[Float[Tensor, "b m m"], Noise]:
        """Return images on the fine detector, and their noise."""
        return self.fine.combine(images), Noise.of(self.population, images, self.fine, exposure)

    def nearest(self, images: Images) -> list[FitParameters]:
        """Return the parameters of the best matches in the bank, with their scale and offset, best first."""
        if isinstance(self.lens, SceneLens) and self.lens.light_scene is not None:
            return nearest_arcs(images, self.lens, self._arc_bank, self._large_pixels, N_STARTS)
        parameters, bank_mean, bank_norm, bank = self._bank
        small = block_means(images, coarser_field(self.population.field, _BANK_ARCSEC).n_pixels).flatten(1)
        mean = small.mean(1)
        best, rows_of = ((small - mean[:, None]) @ bank.T).topk(N_STARTS, dim=1)
        starts = []
        for agreement, rows in zip(best.unbind(1), rows_of.unbind(1), strict=True):
            scale = (agreement / bank_norm[rows]).clamp_min(1e-6)
            offset = mean - scale * bank_mean[rows]
            starts.append(torch.cat([parameters[rows], scale.log()[:, None], offset[:, None]], 1))
        return starts

    @cached_property
    @torch.inference_mode(False)  # cached tensors must also serve in training
    def _large_pixels(self) -> imaging.Detector:
        """The whole detector with the pixels of the bank, sampled twice along each side."""
        population, field = self.population, coarser_field(self.population.field, _BANK_ARCSEC)
        psf = population.psf.kernel(population.field.pixel_scale).binned(population.field.n_pixels // field.n_pixels)
        return imaging.Detector((field.n_pixels, field.n_pixels), field.pixel_scale, psf, supersample=_BANK_SAMPLES)

    @cached_property
    @torch.inference_mode(False)  # cached tensors must also serve in training
    def _arc_bank(self) -> ArcBank:
        """Lenses drawn from the population, and the images of their sources."""
        assert isinstance(self.lens, SceneLens)
        truth = draw(self.population, 1, range(_BANK))
        order = truth["theta_E"].argsort()
        parameters = self.lens.bounded(self.lens.from_truth({name: column[order] for name, column in truth.items()}))
        chunks = torch.split(parameters.to(self.device), 256)
        return ArcBank(torch.cat(chunks), torch.cat([self.lens.arcs(part, self._large_pixels) for part in chunks]))

    @cached_property
    @torch.inference_mode(False)  # cached tensors must also serve in training
    def _bank(self) -> tuple[Float[Tensor, "k p"], Float[Tensor, " k"], Float[Tensor, " k"], Float[Tensor, "k m"]]:
        """Parameters drawn from the population; mean and norm of their images on large pixels; standardised images.

        Norms are about the mean. Standardised images have mean 0 and norm 1.
        """
        field = coarser_field(self.population.field, _BANK_ARCSEC)
        parameters = self.lens.bounded(self.lens.from_truth(draw(self.population, 1, range(_BANK))))
        images = torch.cat([self.lens.images(chunk, field).flatten(1) for chunk in torch.split(parameters, 256)])
        mean = images.mean(1)
        centred = images - mean[:, None]
        norm = centred.norm(dim=1)
        on_device = (v.to(self.device) for v in (parameters, mean, norm, centred / norm[:, None]))
        return tuple(on_device)  # type: ignore[return-value]  # four of them


def fitter_of(
    population: Population | str,
    *,
    centred: bool = True,
    device: torch.device = _CPU,
) -> Fitter:
    """Return the cached fitter of a population or of its name, on a device; `centred` as for `fit_macro`."""
    if isinstance(population, str) and population in populations.names():
        return _cached_fitter(_built_in(population), centred, device)
    chosen = populations.get(population) if isinstance(population, str) else population
    return _cached_fitter(chosen.model_dump_json(by_alias=True), centred, device)


@cache
def _built_in(name: str) -> str:
    return populations.get(name).model_dump_json(by_alias=True)


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # cached tensors must also serve in training
def _cached_fitter(population: str, centred: bool, device: torch.device) -> Fitter:
    parsed = Population.model_validate_json(population)
    return Fitter(parsed, centred=centred, device=device)


def coarser_field(field: Field2D, arcsec: float) -> Field2D:
    """Return the field with its pixels binned to the largest pixels of at most `arcsec`."""
    largest_block = max(1, round(arcsec / field.pixel_scale))
    combined = next(k for k in range(largest_block, 0, -1) if field.n_pixels % k == 0)
    return Field2D(
        n_pixels=field.n_pixels // combined,
        pixel_scale=field.pixel_scale * combined,
        supersample=field.supersample if combined == 1 else 1,
    )


def block_means(images: Images, n_pixels: int) -> Float[Tensor, "b m m"]:
    """Return images averaged in blocks to n_pixels along a side."""
    combined = images.shape[-1] // n_pixels
    return F.avg_pool2d(images[:, None], combined)[:, 0] if combined > 1 else images
