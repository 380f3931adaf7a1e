"""From surface brightness to detector counts: pixel integration, convolution with the PSF, Poisson noise."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Numbers = Float[np.ndarray, " n"]
Expansion = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
ShiftedSum = Callable[[Tensor, tuple[float, ...], int], Tensor]

# The expansion of the Poisson quantile holds for rates above _SMALL_RATE and for w / sqrt(rate) between -_FAR_BELOW and
# _FAR_ABOVE. In the tails outside, counts above _MAX_SUMMED_COUNTS have a probability below 1e-30.
_SMALL_RATE, _FAR_BELOW, _FAR_ABOVE, _MAX_SUMMED_COUNTS = 4.0, 1.0, 2.4, 80


def integrate_pixels(image: Float[Tensor, "b m m"], supersample: int) -> Float[Tensor, "b n n"]:
    """Return the mean brightness in each pixel: the average of supersample x supersample sub-pixels.

    Raises:
        ValueError: If a side is not a multiple of `supersample`.
    """
    if any(side % supersample for side in image.shape[-2:]):
        raise ValueError(f"{tuple(image.shape[-2:])} sub-pixels cannot be divided into pixels of {supersample} a side")
    if supersample == 1:
        return image
    return F.avg_pool2d(image[:, None], supersample)[:, 0]


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # cached tensors must also serve in training
def gaussian_psf(*, sigma: float, truncate: float = 4.0) -> Float[Tensor, " taps"]:
    """Return exp(-i^2 / (2 sigma^2)) at whole pixels i, normalised to a sum of 1, in float64.

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
    """Return images convolved with `kernel` along y and x; beyond the edge they continue with the edge value.

    Two products with a banded matrix are exact, and faster on one channel than convolution routines.
    """
    matrix = convolution_matrix(image.shape[-1], tuple(kernel.tolist()), image.dtype, image.device)
    return matrix @ image @ matrix.T


def shifted_sum(padded: Float[Tensor, "b y x"], taps: tuple[float, ...], axis: int) -> Float[Tensor, "b n m"]:
    """Return the sum over i of taps[i] times the image shifted by -i along `axis`, where all shifted images overlap."""
    n = padded.shape[axis] - len(taps) + 1
    total = taps[0] * padded.narrow(axis, 0, n)
    for i, tap in enumerate(taps[1:], start=1):
        total = total + tap * padded.narrow(axis, i, n)
    return total


def convolve_by_shifts(
    image: Float[Tensor, "b n n"], kernel: Float[Tensor, " taps"], *, add: ShiftedSum = shifted_sum
) -> Float[Tensor, "b n n"]:
    """Return `convolve_separable` as sums of shifted images; three times as fast if `add` is compiled to one loop."""
    taps = tuple(kernel.tolist())
    for axis in (1, 2):
        edges = (len(taps) // 2, image.shape[axis] - 1)
        first, last = (image.narrow(axis, at, 1) for at in (0, edges[1]))
        padded = torch.cat([*[first] * edges[0], image, *[last] * edges[0]], axis)
        image = add(padded, taps, axis)
    return image


def convolve(image: Float[Tensor, "b n n"], kernel: Float[Tensor, "h w"]) -> Float[Tensor, "b n n"]:
    """Return images convolved with a kernel image of odd sides, such as a measured PSF; edges as `convolve_separable`.

    Raises:
        ValueError: If a side of the kernel is even, which would shift the image by half a pixel.
    """
    height, width = kernel.shape
    if height % 2 == 0 or width % 2 == 0:
        raise ValueError(f"a PSF kernel must have odd sides, got {height} x {width}")
    padded = F.pad(image[:, None], (width // 2, width // 2, height // 2, height // 2), mode="replicate")
    return F.conv2d(padded, kernel.flip(0, 1).to(image)[None, None])[:, 0]


def poisson_counts(
    rate: Float[Tensor, " b *image"],
    normal: Float[Tensor, " b *image"],
    generator: Callable[[int], np.random.Generator],
    *,
    expand: Expansion | None = None,
) -> Float[Tensor, " b *image"]:
    """Return exact Poisson counts of images as a function of standard normal numbers.

    The count of a pixel is the smallest k with P(X <= k) >= Phi(normal). An expansion of this quantile about the mean
    (Giles 2016, ACM TOMS 42, 1, Algorithm 955) settles nearly all pixels, three times as fast as a sampler. The
    cumulative distribution settles pixels that are closer to a step than the error of the expansion, and a sum of
    probabilities those far in a tail. At small rates the expansion fails; numpy's sampler draws these pixels.

    Args:
        rate: Expected counts, not negative, on the CPU.
        normal: Standard normal numbers.
        generator: The random generator of image i, for the pixels of small rates.
        expand: `settled_counts`, or a compiled form of it.

    Returns:
        Counts, in the shape of `rate`.
    """
    flat, w = rate.flatten(1), normal.flatten(1)
    counts, settled = (expand or settled_counts)(flat, w)
    # numpy from here on: few pixels remain, and its calls on short arrays cost a quarter of torch's.
    result, mean, deviate = (v.detach().numpy().reshape(-1) for v in (counts, flat, w))
    unsettled = np.flatnonzero(settled.numpy().reshape(-1) < 0)
    unsettled = unsettled[mean[unsettled] >= _SMALL_RATE]
    deviation = deviate[unsettled] / np.sqrt(mean[unsettled])
    is_far = (deviation < -_FAR_BELOW) | (deviation > _FAR_ABOVE)
    near, far = unsettled[~is_far], unsettled[is_far]
    result[near] = _exact_quantile(*(v[near].astype(np.float64) for v in (result, mean, deviate)))
    result[far] = _summed_quantile(*(v[far].astype(np.float64) for v in (mean, deviate)))
    if mean.min(initial=_SMALL_RATE) < _SMALL_RATE:
        for i, (image, image_rate) in enumerate(zip(counts.numpy(), flat.detach().numpy(), strict=True)):
            small = image_rate < _SMALL_RATE
            if small.any():
                image[small] = generator(i).poisson(image_rate[small])
    return counts.reshape(rate.shape)


def settled_counts(
    rate: Float[Tensor, "*any"], normal: Float[Tensor, "*any"]
) -> tuple[Float[Tensor, "*any"], Float[Tensor, "*any"]]:
    """Return the counts of `poisson_expansion`, and a number that is negative where the expansion does not hold."""
    counts, margin, tail = poisson_expansion(rate, normal)
    # A number, not a boolean: compilers do not vectorise the latter.
    return counts, torch.minimum(margin, -tail)


def poisson_expansion(
    rate: Float[Tensor, "*any"], normal: Float[Tensor, "*any"]
) -> tuple[Float[Tensor, "*any"], Float[Tensor, "*any"], Float[Tensor, "*any"]]:
    """Return the Poisson quantile from its expansion in 1 / sqrt(rate), and where the expansion holds.

    x = rate + sqrt(rate) w + 1/3 + w^2/6 - (w/36 + w^3/72) / sqrt(rate) + (-8/405 + 7 w^2/810 + w^4/270) / rate
    + (2684 w - 548 w^3 - 207 w^5) / (155520 rate^1.5) solves Gamma(x, rate) / Gamma(x) = Phi(w); its floor is the
    quantile. The last coefficients and the error bound come from 40-digit solutions (tests/laws).

    Returns:
        The counts; the distance of x from the next step minus its error, negative where the counts may be one too
        many; and a number that is positive so far in a tail that the expansion does not hold. It holds for rates
        above 4.
    """
    root = rate.clamp_min(_SMALL_RATE).rsqrt()
    square = normal * normal
    inverse = root * root
    odd = root * (1 / 36 + square / 72 - inverse * (2684 - square * (548 + 207 * square)) / 155520)
    even = 1 / 3 + square / 6 + inverse * (square * (7 / 810 + square / 270) - 8 / 405)
    value = rate + normal * (1 / root - odd) + even
    error = inverse * inverse * (0.01 + square * (0.004 + 0.03 * square))
    error = error + value.abs() * (4 * torch.finfo(rate.dtype).eps)
    counts = torch.floor(value + error).clamp_min(0)
    deviation = normal * root
    return counts, value - counts - error, torch.maximum(-deviation - _FAR_BELOW, deviation - _FAR_ABOVE)


def _exact_quantile(candidate: Numbers, rate: Numbers, normal: Numbers) -> Numbers:
    """Return `candidate`, or one less where P(X <= candidate - 1) already reaches Phi(normal)."""
    from scipy.special import gammainc, gammaincc, ndtr

    k = np.maximum(candidate, 1)
    # Each tail is compared with the same tail of the normal distribution, so that neither loses digits.
    reached = np.where(normal < 0, gammaincc(k, rate) >= ndtr(normal), gammainc(k, rate) <= ndtr(-normal))
    return np.asarray(k - reached)


def _summed_quantile(rate: Numbers, normal: Numbers) -> Numbers:
    """Return the first k at which P(X = 0) + ... + P(X = k) reaches Phi(normal); for small counts."""
    from scipy.special import ndtr

    counts = np.zeros_like(rate)
    target, term = ndtr(normal), np.exp(-rate)
    active, total = np.arange(len(rate)), term
    for k in range(1, _MAX_SUMMED_COUNTS):
        below = np.flatnonzero(total < target)
        if not len(below):
            break
        active, rate, target, term, total = (v[below] for v in (active, rate, target, term, total))
        counts[active] = k
        term = term * rate / k
        total = total + term
    return counts


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # cached tensors must also serve in training
def convolution_matrix(
    n: int, taps: tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> Float[Tensor, "n n"]:
    """Return the matrix that convolves n pixels with a kernel; beyond the edge they continue with the edge value."""
    kernel = torch.tensor(taps, dtype=torch.float64)
    radius = len(taps) // 2
    rows = torch.arange(n).repeat_interleave(len(taps))
    columns = (rows.reshape(n, -1) + torch.arange(-radius, radius + 1)).clamp(0, n - 1).reshape(-1)
    matrix = torch.zeros(n, n, dtype=torch.float64)
    matrix = matrix.index_put((rows, columns), kernel.repeat(n), accumulate=True)
    return matrix.to(device, dtype)
