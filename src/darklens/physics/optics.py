"""From surface brightness to what a detector records: pixel integration, PSF, noise."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def integrate_pixels(image: Float[Tensor, "b m m"], supersample: int) -> Float[Tensor, "b n n"]:
    """Average blocks of supersample x supersample sub-pixels: the mean brightness in each pixel."""
    if supersample == 1:
        return image
    return F.avg_pool2d(image[:, None], supersample)[:, 0]


def gaussian_psf(*, sigma: float, truncate: float = 4.0) -> Float[Tensor, " taps"]:
    """Return the normalised one-dimensional Gaussian kernel in float64.

    Args:
        sigma: Standard deviation in pixels.
        truncate: Cut at this many standard deviations, rounded to whole pixels as scipy.ndimage does.

    Raises:
        ValueError: If sigma is not positive.
    """
    if not sigma > 0:
        raise ValueError(f"the PSF's sigma must be positive (pixels), got {sigma}")
    radius = int(truncate * sigma + 0.5)
    offset = torch.arange(-radius, radius + 1, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (offset / sigma) ** 2)
    return kernel / kernel.sum()


def convolve_separable(image: Float[Tensor, "b n n"], kernel: Float[Tensor, " taps"]) -> Float[Tensor, "b n n"]:
    """Convolve with `kernel` along y and x; beyond the edge the image continues with its edge value.

    Two products with a banded matrix: exact, and fast on one channel, where convolution routines are not.
    """
    matrix = _band(image.shape[-1], kernel).to(image)
    return matrix @ image @ matrix.T


def convolve(image: Float[Tensor, "b n n"], kernel: Float[Tensor, "h w"]) -> Float[Tensor, "b n n"]:
    """Convolve with an odd-sized kernel image, such as a measured PSF; edges as in `convolve_separable`.

    Raises:
        ValueError: If a side of the kernel is even, which would shift the image by half a pixel.
    """
    height, width = kernel.shape
    if height % 2 == 0 or width % 2 == 0:
        raise ValueError(f"a PSF kernel must have odd sides, got {height} x {width}")
    padded = F.pad(image[:, None], (width // 2, width // 2, height // 2, height // 2), mode="replicate")
    return F.conv2d(padded, kernel.flip(0, 1).to(image)[None, None])[:, 0]


def poisson_counts(rate: Float[Tensor, "b n n"], generators: Sequence[np.random.Generator]) -> Int[np.ndarray, "b n n"]:
    """Draw photon counts, each image from its own generator, so that a batch is the same as its images one by one.

    Args:
        rate: Expected counts per pixel, not negative.
        generators: One per image.
    """
    expected = rate.detach().to("cpu", torch.float64).numpy()
    return np.stack([g.poisson(image) for g, image in zip(generators, expected, strict=True)])


def _band(n: int, kernel: Tensor) -> Tensor:
    radius = kernel.numel() // 2
    rows = torch.arange(n).repeat_interleave(kernel.numel())
    columns = (rows.reshape(n, -1) + torch.arange(-radius, radius + 1)).clamp(0, n - 1).reshape(-1)
    matrix = torch.zeros(n, n, dtype=kernel.dtype)
    return matrix.index_put((rows, columns), kernel.repeat(n), accumulate=True)
