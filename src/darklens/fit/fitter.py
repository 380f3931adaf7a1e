"""What fits of a population's images share: its smooth lenses, its detector at two resolutions, a bank of starts."""

from functools import cache, cached_property, lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from darklens import populations
from darklens.fit.detector import Detector
from darklens.fit.model import Kind, Model, Unknown
from darklens.fit.noise import Noise
from darklens.fit.smooth import SmoothLens
from darklens.populations.population import Field2D, Population
from darklens.simulate.backend import Backend, check
from darklens.simulate.truth import draw

Images = Float[Tensor, "b n n"]

HALF_WIDTH = 2.4  # arcsec of the square that is fitted; light beyond it is of the faintest arcs
_BLOCK = 0.1  # arcsec of the blocks of pixels that are compared, well sampled for a PSF of 0.087 arcsec
_BANK = 8192  # smooth lenses
_BANK_ARCSEC = 0.25  # pixels of the bank
STARTS = 4


class Fitter:
    """A population's smooth lenses and the detectors on which they are fitted.

    Args:
        population: Gives the family of lenses, the detector, the PSF and the noise.
        compiled: Whether models are computed by fused code.
        centred: Whether lenses are held at the middle of the image.

    Attributes:
        population: As given.
        lens: The family of its smooth lenses.
        coarse: Light is sampled once a block of pixels: fast, and good for a start.
        fine: Light is sampled as the population does, pixels are compared in blocks.
        compiled: As given.
    """

    def __init__(self, population: Population, *, compiled: bool = False, centred: bool = True) -> None:
        field = population.field
        self.compiled = compiled
        self.population, self.lens = population, SmoothLens(population, centred=centred)
        small = coarser(field, _BLOCK)
        self._coarse_pixels = small.n_pixels
        crop = min(small.n_pixels, 2 * round(HALF_WIDTH / small.pixel_scale))
        self.coarse = Detector(population.model_copy(update={"field": small}), crop=crop)
        block = field.n_pixels // small.n_pixels
        crop = min(field.n_pixels, 2 * round(HALF_WIDTH / field.pixel_scale))
        crop -= (field.n_pixels - crop) % 2
        crop -= crop % (2 * block) if field.n_pixels % 2 == 0 else crop % block
        self.fine = Detector(population, crop=crop, block=block)

    def model(self, kind: Kind = "smooth", *, blur: float = 0.0, coarse: bool = False) -> Model:
        """Return a model on the fine detector, or on the coarse one."""
        detector = self.coarse if coarse else self.fine
        return Model(self.lens, detector, kind, blur, compiled=self.compiled)

    @cached_property
    def full(self) -> Detector:
        """Every pixel of the image."""
        return Detector(self.population, crop=self.population.field.n_pixels)

    def on_coarse(self, images: Images, exposure: Images | None) -> tuple[Float[Tensor, "b m m"], Noise]:
        """Return images on the coarse detector, and their noise there."""
        small = pooled(images, self._coarse_pixels)
        small_exposure = None if exposure is None else pooled(exposure, self._coarse_pixels)
        area = (images.shape[-1] // self._coarse_pixels) ** 2
        return self.coarse.combine(small), Noise.of(self.population, small, self.coarse, small_exposure, area=area)

    def on_fine(self, images: Images, exposure: Images | None) -> tuple[Float[Tensor, "b m m"], Noise]:
        """Return images on the fine detector, and their noise there."""
        return self.fine.combine(images), Noise.of(self.population, images, self.fine, exposure)

    def nearest(self, images: Images) -> list[Unknown]:
        """Return the lenses of the bank that correlate best with each image, with the scale and offset they need."""
        parameters, bank_mean, bank_norm, bank = (v.to(images.device) for v in self._bank)
        small = pooled(images, coarser(self.population.field, _BANK_ARCSEC).n_pixels).flatten(1)
        mean = small.mean(1)
        best, rows_of = ((small - mean[:, None]) @ bank.T).topk(STARTS, dim=1)
        starts = []
        for agreement, rows in zip(best.unbind(1), rows_of.unbind(1), strict=True):
            scale = (agreement / bank_norm[rows]).clamp_min(1e-6)
            offset = mean - scale * bank_mean[rows]
            starts.append(torch.cat([parameters[rows], scale.log()[:, None], offset[:, None]], 1))
        return starts

    @cached_property
    def _bank(self) -> tuple[Float[Tensor, "k p"], Float[Tensor, " k"], Float[Tensor, " k"], Float[Tensor, "k m"]]:
        """Parameters drawn from the population; mean and norm about it of their images on large pixels; these, scaled.

        The images have mean 0 and norm 1.
        """
        field = coarser(self.population.field, _BANK_ARCSEC)
        parameters = self.lens.bounded(self.lens.from_truth(draw(self.population, 1, range(_BANK))))
        images = torch.cat([self.lens.images(chunk, field).flatten(1) for chunk in torch.split(parameters, 256)])
        mean = images.mean(1)
        centred = images - mean[:, None]
        norm = centred.norm(dim=1)
        return parameters, mean, norm, centred / norm[:, None]


def fitter(population: Population | str, backend: Backend = "eager", *, centred: bool = True) -> Fitter:
    """Return the fitter of a population or of its name, made once; `centred` as for `fit_macro`."""
    if isinstance(population, str) and population in populations.names():
        return _fitter_of(_built_in(population), backend, centred)
    chosen = populations.get(population) if isinstance(population, str) else population
    return _fitter_of(chosen.model_dump_json(by_alias=True), backend, centred)


@cache
def _built_in(name: str) -> str:
    return populations.get(name).model_dump_json(by_alias=True)


@lru_cache(maxsize=8)
def _fitter_of(population: str, backend: Backend, centred: bool) -> Fitter:
    check(backend)
    parsed = Population.model_validate_json(population)
    return Fitter(parsed, compiled=backend == "compiled", centred=centred)


def coarser(field: Field2D, arcsec: float) -> Field2D:
    """Return the field in the largest pixels, up to `arcsec` a side, into which its own combine."""
    largest_block = max(1, round(arcsec / field.pixel_scale))
    combined = next(k for k in range(largest_block, 0, -1) if field.n_pixels % k == 0)
    return Field2D(
        n_pixels=field.n_pixels // combined,
        pixel_scale=field.pixel_scale * combined,
        supersample=field.supersample if combined == 1 else 1,
    )


def pooled(images: Images, n_pixels: int) -> Float[Tensor, "b m m"]:
    """Return images of n_pixels a side, each the mean of a block."""
    combined = images.shape[-1] // n_pixels
    return F.avg_pool2d(images[:, None], combined)[:, 0] if combined > 1 else images
