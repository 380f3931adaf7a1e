"""From an image as it was measured to one that a model takes; every change is said in words."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32

from darklens.data.readers.image import Image, check_pixels
from darklens.errors import InputError

SAME_SCALE = 0.005  # relative difference up to which pixel scales are taken as equal
MAX_FACTOR = 4.0  # between pixel scales; beyond, a ring is a few pixels or the noise one blur
LEAST_COVERED = 0.8  # of the side of the model's field
MOST_MISSING = 1e-3  # of the pixels


@dataclass(frozen=True)
class Prepared:
    """An image that a model takes, and what was done to make it so, in words."""

    pixels: Float32[np.ndarray, "n n"]
    changes: tuple[str, ...]


def prepare(
    image: Image, *, n_pixels: int, pixel_scale: float, own_scale: float | None = None, name: str = "The image"
) -> Prepared:
    """Cut, mend and resample an image about its centre for a model. The lens is not looked for.

    An image that already has the model's size and pixel scale is left as it is. Where neither the file nor the caller
    gives a pixel scale, it is taken to be the model's.

    Args:
        image: What a reader gave.
        n_pixels: Side of the model's images.
        pixel_scale: The model's, in arcsec.
        own_scale: The image's, in arcsec, in place of what its file says.
        name: What messages call the image.

    Raises:
        InputError: If the pixel scales differ by more than a factor of 4, the image is much smaller than the model's
            field, more than isolated pixels are missing, or the pixels are infinite or all equal.
    """
    changes: list[str] = []
    scale = next(value for value in (own_scale, image.pixel_scale, pixel_scale) if value is not None)
    require_near(scale, pixel_scale, name)
    factor = pixel_scale / scale
    same = abs(factor - 1) <= SAME_SCALE
    before = image.pixels.shape
    needed = (
        (n_pixels, n_pixels) if same else (_side(before[0], n_pixels * factor), _side(before[1], n_pixels * factor))
    )
    if min(before[i] / needed[i] for i in (0, 1)) < LEAST_COVERED:
        raise InputError(
            f"{name}: has {before[0]} x {before[1]} pixels; the model takes {n_pixels} x {n_pixels}"
            + ("" if same else f" of {pixel_scale:g} arcsec, which are {needed[0]} x {needed[1]} of the image's")
            + "; give a wider cut-out."
        )
    pixels = _cropped(image.pixels, needed)
    if pixels.shape != before:
        changes.append(f"cropped from {_size(before)} to {_size(pixels.shape)} pixels")
    pixels, filled = fill_isolated(pixels, name)
    if filled:
        changes.append(f"{filled} missing pixel{'s' * (filled > 1)} filled from the neighbours")
    with np.errstate(over="ignore"):
        check_pixels(pixels.astype(np.float32), name)
    if pixels.shape != needed:
        changes.append(f"padded from {_size(pixels.shape)} to {_size(needed)} pixels with the median of the border")
        pixels = _padded(pixels, needed)
    if not same:
        changes.append(f"resampled from {scale:.4g} to {pixel_scale:g} arcsec per pixel")
        pixels = resample(pixels, n_pixels=n_pixels, factor=factor)
    result = pixels.astype(np.float32)
    check_pixels(result, name)
    return Prepared(result, tuple(changes))


def require_near(scale: float, to: float, name: str) -> None:
    """Check that images of one pixel scale (arcsec) can be resampled to another.

    Raises:
        InputError: If they differ by more than a factor of 4, or the first is no length.
    """
    if not (scale > 0 and 1 / MAX_FACTOR <= to / scale <= MAX_FACTOR):
        raise InputError(
            f"{name}: has pixels of {scale:.4g} arcsec and the model takes {to:g} arcsec, which is too far to "
            "resample; use a model for such images, or give --pixel-scale if that is wrong."
        )


def resample(image: Float[np.ndarray, "h w"], *, n_pixels: int, factor: float) -> Float[np.ndarray, "n n"]:
    """Return the flux in each of n x n pixels that are `factor` times as large, with the same centre as the image.

    Each pixel's flux is shared out by area, so that all flux inside the new field is kept.
    """
    height, width = image.shape
    down, across = (overlap(n, n_pixels, factor) for n in (height, width))
    return np.asarray(down @ image.astype(np.float64) @ across.T)


def overlap(n_in: int, n_out: int, factor: float) -> Float[np.ndarray, "n_out n_in"]:
    """Return which part of each of n_in cells lies in each of n_out cells, `factor` times as long, of equal centre."""
    edges = n_in / 2 + factor * (np.arange(n_out + 1) - n_out / 2)
    cells = np.arange(n_in, dtype=np.float64)
    ends, starts = np.minimum(edges[1:, None], cells + 1), np.maximum(edges[:-1, None], cells)
    return np.asarray(np.clip(ends - starts, 0, None))


def fill_isolated(image: Float[np.ndarray, "n m"], name: str) -> tuple[Float[np.ndarray, "n m"], int]:
    """Return the image with isolated NaN pixels set to the mean of their neighbours, and how many there were.

    Raises:
        InputError: If more than one pixel in a thousand is NaN, or two of them touch.
    """
    missing = np.isnan(image)
    n = int(missing.sum())
    if n == 0:
        return image, 0
    around = _neighbours(np.pad(missing, 1))
    if n > MOST_MISSING * image.size or around[:, missing].any():
        raise InputError(f"{name}: {n} pixels are NaN; fill them first, or cut out a part of the image without them.")
    values = _neighbours(np.pad(image.astype(np.float64), 1, constant_values=np.nan))[:, missing]
    filled = image.copy()
    filled[missing] = np.nanmean(values, axis=0)
    return filled, n


def _neighbours(padded: Float[np.ndarray, "n2 m2"] | Bool[np.ndarray, "n2 m2"]) -> np.ndarray:
    """Return the eight neighbours of each pixel of an image that has a frame of one pixel, shape (8, n, m)."""
    n, m = padded.shape[0] - 2, padded.shape[1] - 2
    return np.stack([padded[y : y + n, x : x + m] for y in range(3) for x in range(3) if (y, x) != (1, 1)])


def _side(n_in: int, length: float) -> int:
    """Return the least side that holds `length` pixels and has the parity of `n_in`, so that centres stay."""
    side = math.ceil(length - 1e-6)
    return side + (side - n_in) % 2


def _cropped(pixels: Float[np.ndarray, "h w"], to: tuple[int, int]) -> Float[np.ndarray, "h2 w2"]:
    top, left = (max(0, (n - m) // 2) for n, m in zip(pixels.shape, to, strict=True))
    return pixels[top : top + to[0], left : left + to[1]]


def _padded(pixels: Float[np.ndarray, "h w"], to: tuple[int, int]) -> Float[np.ndarray, "h2 w2"]:
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    widths = [((m - n) // 2, m - n - (m - n) // 2) for n, m in zip(pixels.shape, to, strict=True)]
    return np.pad(pixels, widths, constant_values=np.median(border))


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} x {shape[1]}"
