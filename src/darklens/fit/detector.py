"""From brightness at sample points to the pixels that are compared: integration, PSF, crop, blocks in one product."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from darklens.kernels import smooth_fit
from darklens.physics import optics
from darklens.physics.grid import Grid
from darklens.populations.population import Population

_BAND = 40  # blocks at most that share a band of the matrix, which is zero beside it
_STEP = 0.02  # in ln sigma, of the differences that give derivatives by the PSF's width


class Detector:
    """The central square of a population's detector, its pixels averaged in blocks.

    Integration over a pixel, the PSF, the crop and the blocks all act along x and y apart and are linear, so together
    they are one matrix on either side, which reaches only as far beyond the crop as the PSF does.

    Args:
        population: Gives pixels, sub-samples and PSF.
        crop: Pixels along a side that are kept, of the parity of the whole.
        block: Pixels along a side of the blocks; divides crop.

    Attributes:
        n_pixels: Blocks along a side, m below.
        pixel_scale: Side of a block, arcsec.
        area: Pixels in a block.
        x: (1, s) and y: (s, 1), arcsec of the sample points.
        band: The matrix, for kernels.
    """

    def __init__(self, population: Population, *, crop: int, block: int = 1) -> None:
        field = population.field
        n, s, start = field.n_pixels, field.supersample, (field.n_pixels - crop) // 2
        sigma = population.psf.sigma / field.pixel_scale
        taps = int(population.psf.truncate * sigma + 0.5)

        def observed(ln_width: float) -> Float[Tensor, "m s"]:
            width = sigma * math.exp(ln_width)
            kernel = optics.gaussian_psf(sigma=width, truncate=taps / width)
            pixels = optics.convolution_matrix(n, tuple(kernel.tolist()), torch.float64, torch.device("cpu"))
            blocks = pixels[start : start + crop].reshape(crop // block, block, n).mean(1)
            return blocks.repeat_interleave(s, dim=1) / s

        narrow, matrix, wide = (observed(ln_width) for ln_width in (-_STEP, 0.0, _STEP))
        reached = torch.nonzero(matrix.any(0))[:, 0]
        low, high = int(reached[0]), int(reached[-1]) + 1
        self._matrix = matrix[:, low:high].float()
        self.band = smooth_fit.Band.of(self._matrix)
        self._bands = [_trimmed(rows) for rows in self._matrix.tensor_split(math.ceil(len(self._matrix) / _BAND))]
        self._slope = ((wide - narrow) / (2 * _STEP))[:, low:high].float()
        self._bend = ((wide - 2 * matrix + narrow) / _STEP**2)[:, low:high].float()
        self._start, self._crop, self._block = start, crop, block
        self.n_pixels, self.pixel_scale, self.area = crop // block, field.pixel_scale * block, block**2
        x, y = Grid(n_pixels=n, pixel_scale=field.pixel_scale).axes(supersample=s)
        self.x, self.y = x[:, low:high], y[low:high]

    def observe(self, brightness: Float[Tensor, "... s s"]) -> Float[Tensor, "... m m"]:
        """Return what the pixels see of brightness at the sample points."""
        maps = brightness.reshape(1, -1, *brightness.shape[-2:])
        k = maps.shape[1]
        return self.observe_into(maps, range(k), k).reshape(*brightness.shape[:-2], self.n_pixels, self.n_pixels)

    def observe_into(
        self, brightness: Float[Tensor, "b k s s"], places: Sequence[int], n: int
    ) -> Float[Tensor, "b n m m"]:
        """Return what `observe` does, each of the k maps at its place among n; the others are to be filled."""
        if (observed := smooth_fit.observe(self.band, brightness, places, n)) is not None:
            return observed
        observed = brightness.new_empty(len(brightness), n, self.n_pixels, self.n_pixels)
        observed[:, list(places)] = self._observe(brightness)
        return observed

    def _observe(self, brightness: Float[Tensor, "b k s s"]) -> Float[Tensor, "b k m m"]:
        bands = [(low, matrix.shape[1], matrix.to(brightness)) for low, matrix in self._bands]
        along_x = torch.cat([brightness.narrow(-1, low, n) @ matrix.T for low, n, matrix in bands], -1)
        return torch.cat([matrix @ along_x.narrow(-2, low, n) for low, n, matrix in bands], -2)

    def observe_wider(
        self, brightness: Float[Tensor, "b k s s"], ln_width: Float[Tensor, " b"]
    ) -> tuple[Float[Tensor, "b k m m"], Float[Tensor, "b m m"]]:
        """Return what the pixels see through a PSF exp(ln_width) times as wide, and the first one's slope by ln_width.

        The matrix is expanded to second order: within 0.001 of the brightest pixel for widths up to 20 % off.
        """
        by = ln_width[:, None, None, None]
        first, slope, bend = (v.to(brightness) for v in (self._matrix, self._slope, self._bend))
        matrix, change = first + by * (slope + by / 2 * bend), slope + by * bend
        light = brightness[:, :1]
        half = matrix @ light @ change.mT
        return matrix @ (brightness @ matrix.mT), (half + change @ light @ matrix.mT)[:, 0]

    def combine(self, images: Float[Tensor, "... n n"]) -> Float[Tensor, "... m m"]:
        """Return the same pixels of images of the whole detector."""
        kept = images[..., self._start : self._start + self._crop, self._start : self._start + self._crop]
        if self._block == 1:
            return kept
        m, k = self.n_pixels, self._block
        return kept.reshape(*kept.shape[:-2], m, k, m, k).mean((-3, -1))


def _trimmed(rows: Float[Tensor, "r s"]) -> tuple[int, Float[Tensor, "r t"]]:
    """Return the first column that is not zero, and the columns from it to the last such one."""
    used = torch.nonzero(rows.any(0))[:, 0]
    low, high = int(used[0]), int(used[-1]) + 1
    return low, rows[:, low:high].contiguous()
