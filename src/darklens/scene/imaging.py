"""The detector of a scene: sampling positions, convolution with the PSF, integration over pixels."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from darklens.scene.psf import PSF

_BLOCK = 16  # planes convolved together on a processor: their spectra fit its cache
_LARGEST_RANK = 2  # of PSFs convolved along the axes in turn: at rank 1, 3 to 5 times as fast as by FFT
_RANK_TOLERANCE = 1e-13  # of the largest singular value


class Detector:
    """A grid of square pixels, and the PSF of the telescope.

    The light is sampled on sub-pixels, up to half the PSF beyond each edge of the image, so the convolution needs no
    assumption about light outside the image.

    Args:
        shape: Rows and columns of the image.
        pixel_scale: Side of a pixel, arcsec.
        psf: Point-spread function; None for no blurring.
        supersample: Number of sub-pixels along each side of a pixel; a multiple of the oversampling of the PSF.

    Attributes:
        x: Sampling positions (1, width'), arcsec from the centre of the image.
        y: Sampling positions (height', 1).

    Raises:
        ValueError: If `supersample` is not a multiple of the oversampling of the PSF, or the pixel scales do not match.
    """

    def __init__(
        self, shape: tuple[int, int], pixel_scale: float, psf: PSF | None = None, *, supersample: int = 1
    ) -> None:
        oversampling = psf.oversampling if psf else 1
        if supersample % oversampling:
            raise ValueError(f"supersample {supersample} is no multiple of the PSF's oversampling {oversampling}")
        if psf and abs(psf.pixel_scale * oversampling / pixel_scale - 1) > 1e-3:
            raise ValueError(
                f"the PSF is for pixels of {psf.pixel_scale * oversampling:.4g} arcsec, the image has {pixel_scale:.4g}"
            )
        self.shape, self.pixel_scale, self.psf, self.supersample = shape, pixel_scale, psf, supersample
        self._before = supersample // oversampling  # samples per PSF pixel side, averaged before the convolution
        self._after = oversampling
        height, width = psf.kernel.shape if psf else (1, 1)
        origin = psf.origin if psf else (0.0, 0.0)
        self.y = self._axis(shape[0], height, origin[1])[:, None]
        self.x = self._axis(shape[1], width, origin[0])[None]
        self._separable = self._axis_matrices() if psf else []
        self._matrices: dict[tuple[torch.dtype, torch.device], list[tuple[Tensor, Tensor]]] = {}
        self._transfers: dict[tuple[torch.dtype, torch.device], Tensor] = {}
        self._positions: dict[tuple[torch.dtype, torch.device], tuple[Tensor, Tensor]] = {}

    def positions(self, like: Tensor) -> tuple[Float[Tensor, "1 width"], Float[Tensor, "height 1"]]:
        """Return `x` and `y` in the type and on the device of `like`."""
        key = like.dtype, like.device
        if key not in self._positions:
            with torch.inference_mode(False):  # cached tensors must also serve in training
                self._positions[key] = self.x.to(like), self.y.to(like)
        return self._positions[key]

    def _axis(self, n: int, taps: int, origin: float) -> Float[Tensor, " s"]:
        """Return the sampling positions along an axis of n pixels, arcsec, float64."""
        kernel_pixels = n * self._after + taps - 1
        scale = self.pixel_scale / self._after
        samples = kernel_pixels * self._before
        offset = (torch.arange(samples, dtype=torch.float64) - (samples - 1) / 2) * (scale / self._before)
        return offset + origin * scale

    def observe(self, light: Float[Tensor, "*planes height width"]) -> Float[Tensor, "*planes rows columns"]:
        """Return the mean surface brightness in each pixel, from the brightness sampled at `x` and `y`."""
        if not light.numel():  # of which there is no FFT
            return light.new_zeros(*light.shape[:-2], *self.shape)
        if self._separable:
            return self._observe_along_axes(light)
        planes = block_mean(light, self._before)
        return planes if self.psf is None else self._convolve(planes)

    def _observe_along_axes(self, light: Tensor) -> Tensor:
        """Return what `observe` returns, for a PSF that is a sum of products of a function of x and one of y."""
        key = light.dtype, light.device
        if key not in self._matrices:
            with torch.inference_mode(False):  # cached tensors must also serve in training
                self._matrices[key] = [(a.to(light), b.to(light)) for a, b in self._separable]
        first, *others = ((along_y @ (light @ along_x)) for along_y, along_x in self._matrices[key])
        for other in others:
            first = first + other
        return first

    def _axis_matrices(self) -> list[tuple[Tensor, Tensor]]:
        """Return matrices (rows, height') and (width', columns) for each term of a PSF of low rank; none for others."""
        assert self.psf is not None
        along_y, values, along_x = torch.linalg.svd(self.psf.kernel)
        rank = int((values > _RANK_TOLERANCE * values[0]).sum())
        if rank > _LARGEST_RANK:
            return []
        return [
            (
                self._axis_matrix(self.shape[0], values[i] * along_y[:, i]),
                self._axis_matrix(self.shape[1], along_x[i]).T,
            )
            for i in range(rank)
        ]

    def _axis_matrix(self, n: int, row: Float[Tensor, " taps"]) -> Float[Tensor, "n s"]:
        """Return the convolution along an axis of samples, and the mean in each image pixel, float64."""
        samples, taps = n * self._after, len(row)
        matrix = torch.zeros(samples, samples + taps - 1, dtype=torch.float64)
        at = torch.arange(samples)[:, None] + torch.arange(taps)
        matrix = matrix.scatter_(1, at, row.flip(0).expand(samples, taps)).reshape(n, self._after, -1).mean(1)
        return matrix.repeat_interleave(self._before, 1) / self._before

    def _convolve(self, planes: Tensor) -> Tensor:
        """Return the mean in each image pixel of the convolution with the PSF.

        The mean over the kernel pixels of an image pixel is part of the transfer function, so the result is needed at
        one of them alone. Along the columns, its spectrum is the sum of the spectrum's parts.
        """
        side, (rows, columns) = self._after, self.shape
        size = [side * fast_length(-(-n // side)) for n in planes.shape[-2:]]
        key = planes.dtype, planes.device
        if key not in self._transfers:
            with torch.inference_mode(False):  # cached tensors must also serve in training
                complex_type = torch.complex128 if planes.dtype == torch.float64 else torch.complex64
                self._transfers[key] = self._transfer(size).to(complex_type).to(planes.device)
        flat = planes.reshape(-1, *planes.shape[-2:])
        images = []
        for block in torch.split(flat, _BLOCK) if planes.device.type == "cpu" else (flat,):
            spectrum = torch.fft.rfft2(block, s=size).mul_(self._transfers[key])
            first, *others = spectrum.unflatten(1, (side, -1)).unbind(1)
            for other in others:
                first = first + other
            image = torch.fft.irfft2(first, s=(size[0] // side, size[1]))
            images.append(image[:, :rows, : columns * side : side])
        convolved: Tensor = torch.cat(images).reshape(*planes.shape[:-2], rows, columns)
        return convolved

    def _transfer(self, size: Sequence[int]) -> Tensor:
        """Return the spectrum of PSF and image pixel, with the first image pixel at the origin, complex128."""
        assert self.psf is not None
        height, width = self.psf.kernel.shape
        frequencies = (
            torch.fft.fftfreq(size[0], dtype=torch.float64),
            torch.fft.rfftfreq(size[1], dtype=torch.float64),
        )
        along_y, along_x = (
            torch.stack([torch.exp(2j * math.pi * f * (taps - 1 + i)) for i in range(self._after)]).mean(0)
            for f, taps in zip(frequencies, (height, width), strict=True)
        )
        transfer: Tensor = torch.fft.rfft2(self.psf.kernel, s=list(size)) * (along_y[:, None] * along_x / self._after)
        return transfer


def block_mean(planes: Float[Tensor, "*planes height width"], side: int) -> Float[Tensor, "*planes rows columns"]:
    """Return the mean over blocks of side x side pixels."""
    if side == 1:
        return planes
    rows, columns = planes.shape[-2] // side, planes.shape[-1] // side
    return planes.reshape(*planes.shape[:-2], rows, side, columns, side).mean((-3, -1))


def fast_length(n: int) -> int:
    """Return the smallest length of at least n without prime factors above 5."""
    while True:
        rest = n
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return n
        n += 1
