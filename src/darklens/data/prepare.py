"""From an image as it was measured to one that a model takes; every change is said in words."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32

from darklens.data.centre import find_lens
from darklens.data.readers.image import Image, check_pixels
from darklens.errors import InputError

SAME_SCALE = 0.005  # relative difference up to which pixel scales are taken as equal
MAX_FACTOR = 4.0  # between pixel scales; beyond, a ring is a few pixels or the noise one blur
LEAST_COVERED = 0.6  # of the side of the model's field: 4.5 of 7.5 arcsec, within which rings and their masses lie
MOST_MISSING = 1e-3  # of the pixels
NEAR_MIDDLE = 0.1  # arcsec of the lens from the middle, up to which it is left there; `find_lens` is no better
LEAST_FIELD = 4.0  # arcsec along a side of an image in which the lens is looked for
_LOBES, _KAISER = 6, 7.0  # half-width, in pixels, and shape of the window that ends the interpolating function


@dataclass(frozen=True)
class Prepared:
    """An image that a model takes, and what was done to make it so, in words."""

    pixels: Float32[np.ndarray, "n n"]
    changes: tuple[str, ...]


def prepare(
    image: Image, *, n_pixels: int, pixel_scale: float, image_pixel_scale: float | None = None, name: str = "The image"
) -> Prepared:
    """Cut, mend and resample an image for a model.

    An image that already has the model's size and pixel scale is left as it is. A wider one of at least 4 arcsec is
    cut about the lens, if that is found more than 0.1 arcsec from the middle. Where neither the file nor the caller
    gives a pixel scale, it is taken to be the model's.

    Args:
        image: What a reader gave.
        n_pixels: Side of the model's images.
        pixel_scale: The model's, in arcsec.
        image_pixel_scale: The image's, in arcsec, in place of what its file says.
        name: What messages call the image.

    Raises:
        InputError: If the pixel scales differ by more than a factor of 4, the image is much smaller than the model's
            field, more than isolated pixels are missing, or the pixels are infinite or all equal.
    """
    changes = list(image.changes)
    scale = next(value for value in (image_pixel_scale, image.pixel_scale, pixel_scale) if value is not None)
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
    off = _off_middle(image.pixels, needed, scale)
    pixels = _cropped(image.pixels, needed, off)
    if pixels.shape != before:
        about = f" about the lens, {_where(off)} of the middle" if any(off) else ""
        changes.append(f"cropped from {_size(before)} to {_size(pixels.shape)} pixels{about}")
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

    Brightness is interpolated with a sinc in a Kaiser window, as wide as the larger of the two pixels. Unlike sharing
    out flux by area, that widens no PSF and leaves the noise of coarser pixels all but independent, as models take it
    to be. A uniform sky keeps its flux per area exactly, an image that its pixels sample well its total to 1e-3.
    """
    height, width = image.shape
    down, across = (interpolation(n, n_pixels, factor) for n in (height, width))
    return np.asarray(down @ image.astype(np.float64) @ across.T)


def interpolation(n_in: int, n_out: int, factor: float, *, offset: float = 0.0) -> Float[np.ndarray, "n_out n_in"]:
    """Return what each of n_in pixels gives to each of n_out, `factor` times as long.

    The centre of these lies `offset` of the n_in pixels beyond that of those.

    The rows add up to `factor`. The window: Kaiser and Schafer 1980, IEEE Trans. ASSP 28, 105.
    """
    centres = factor * (np.arange(n_out) - (n_out - 1) / 2) + (n_in - 1) / 2 + offset
    distance = (centres[:, None] - np.arange(n_in)) / max(1.0, factor)
    window = np.i0(_KAISER * np.sqrt(np.clip(1 - (distance / _LOBES) ** 2, 0, None))) * (np.abs(distance) < _LOBES)
    weights = np.sinc(distance) * window
    return np.asarray(factor * weights / weights.sum(1, keepdims=True))


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


def _off_middle(pixels: Float[np.ndarray, "h w"], to: tuple[int, int], scale: float) -> tuple[int, int]:
    """Return by how many pixels up and to the right of the middle to cut, so that the lens comes to the middle."""
    spare = [max(0, n - m) for n, m in zip(pixels.shape, to, strict=True)]
    found = find_lens(pixels, scale) if max(spare) > 1 and min(pixels.shape) * scale >= LEAST_FIELD else None
    if found is None or math.hypot(*found) * scale <= NEAR_MIDDLE:
        return 0, 0
    up, right = (max(-(n // 2), min(n - n // 2, round(at))) for n, at in zip(spare, found, strict=True))
    return up, right


def _where(off: tuple[int, int]) -> str:
    up, right = off
    parts = [f"{abs(up)} pixels {'above' if up > 0 else 'below'}"] * (up != 0)
    parts += [f"{abs(right)} pixels to the {'right' if right > 0 else 'left'}"] * (right != 0)
    return " and ".join(parts)


def _cropped(pixels: Float[np.ndarray, "h w"], to: tuple[int, int], off: tuple[int, int]) -> Float[np.ndarray, "h2 w2"]:
    top, left = (max(0, (n - m) // 2 + by) for n, m, by in zip(pixels.shape, to, off, strict=True))
    return pixels[top : top + to[0], left : left + to[1]]


def _padded(pixels: Float[np.ndarray, "h w"], to: tuple[int, int]) -> Float[np.ndarray, "h2 w2"]:
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    widths = [((m - n) // 2, m - n - (m - n) // 2) for n, m in zip(pixels.shape, to, strict=True)]
    return np.pad(pixels, widths, constant_values=np.median(border))


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} x {shape[1]}"
