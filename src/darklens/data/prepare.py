"""Puts a measured image on the pixel grid of a model: crop, fill, pad and resample, and list the changes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Float32

from darklens.data.assumed_scale import assumed_scale
from darklens.data.centre import find_lens
from darklens.data.contrast import require_contrast
from darklens.data.readers.image import Image, as_float64, check_pixels
from darklens.errors import InputError

SAME_SCALE = 0.005  # relative difference below which two pixel scales count as equal
MAX_FACTOR = 4.0  # between the two pixel scales; beyond it a ring is a few pixels, or the noise is blurred
MIN_COVERAGE = 0.6  # fraction of the side of the model's field: 4.5 of 7.5 arcsec, which contains ring and perturbers
MAX_NAN_FRACTION = 0.3  # beyond it, too little of the ring may be left
_MASKED_SHARE = 0.05  # of a resampled pixel, from which it is masked
_FILL_STEPS = 3  # pixels from the edge of a masked region that are extrapolated
CENTRE_TOLERANCE = 0.1  # arcsec, the accuracy of `find_lens`: closer lenses stay where they are
MIN_FIELD = 4.0  # arcsec; smaller images are cropped about their centre, without a search for the lens
_LOBES, _KAISER = 6, 7.0  # half-width in pixels, and shape parameter, of the Kaiser window


@dataclass(frozen=True)
class Prepared:
    """An image on the pixel grid of a model.

    Attributes:
        pixels: The image.
        changes: The changes that were made, in words.
        offset: Position (x to the right, y up) of the centre of `pixels` relative to the centre of the original image,
            arcsec. Added to a position in `pixels`, it gives the position in the original image.
        mask: Pixels without data, which were filled or padded; None if there are none.
    """

    pixels: Float32[np.ndarray, "n n"]
    changes: tuple[str, ...]
    offset: tuple[float, float] = (0.0, 0.0)
    mask: Bool[np.ndarray, "n n"] | None = None


def prepare(
    image: Image,
    *,
    n_pixels: int,
    pixel_scale: float,
    image_pixel_scale: float | None = None,
    name: str = "The image",
    path: Path | None = None,
) -> Prepared:
    """Crop, fill, pad and resample an image to the pixel grid of a model.

    An image with the size and pixel scale of the model does not change. An image that is larger than the field of the
    model and at least 4 arcsec wide is cropped about the lens if the lens lies more than 0.1 arcsec from the centre.
    Without a pixel scale from the file or the caller, `assumed_scale` chooses one, and `changes` says so.

    Args:
        image: Image from a reader.
        n_pixels: Side of the model's images, pixels.
        pixel_scale: Pixel scale of the model's images, arcsec.
        image_pixel_scale: Pixel scale of the image, arcsec; overrides that of its file.
        name: Name of the image in messages.
        path: File of the image, whose names of folders may tell the pixel scale.

    Raises:
        InputError: If the pixel scale is unknown and several are equally likely, it differs from that of the model by
            more than a factor of 4, the image covers less than 60 % of the side of the model's field, more than 30 % of
            the pixels are NaN, or pixels are infinite or all equal.
    """
    changes = list(image.changes)
    scale = image.pixel_scale if image_pixel_scale is None else image_pixel_scale
    is_assumed = scale is None
    if scale is None:
        scale, assumption = assumed_scale(
            as_float64(image.pixels), path, default=pixel_scale, n_pixels=n_pixels, name=name
        )
        changes.append(assumption)
    require_similar_scale(scale, pixel_scale, name)
    factor = pixel_scale / scale
    same = abs(factor - 1) <= SAME_SCALE
    pixels = as_float64(image.pixels)
    shape = pixels.shape
    needed = (n_pixels, n_pixels) if same else (_side(shape[0], n_pixels * factor), _side(shape[1], n_pixels * factor))
    if min(shape[i] / needed[i] for i in (0, 1)) < MIN_COVERAGE:
        raise InputError(
            f"{name}: has {shape[0]} x {shape[1]} pixels; the model takes {n_pixels} x {n_pixels}"
            + ("" if same else f" of {pixel_scale:g} arcsec, which is {needed[0]} x {needed[1]} pixels of this image")
            + "; give a wider cut-out"
            + (f", or --pixel-scale if its pixels are not {scale:g} arcsec." if is_assumed else ".")
        )
    corner = _crop_corner(pixels, needed, scale)
    centre = tuple(at + (m - 1) / 2 - (n - 1) / 2 for at, m, n in zip(corner, needed, shape, strict=True))
    pixels = pixels[max(0, corner[0]) :, max(0, corner[1]) :][: needed[0], : needed[1]]
    if pixels.shape != shape:
        changes.append(f"cropped from {_size(shape)} to {_size(pixels.shape)} pixels{_in_words(centre)}")
    pixels, mask = fill_missing(pixels, name)
    if n_masked := int(mask.sum()):
        changes.append(f"{n_masked} NaN pixel{'s' * (n_masked > 1)} masked and filled")
    with np.errstate(over="ignore"):
        check_pixels(pixels.astype(np.float32), name)
    if not same:  # one bad pixel would spread
        require_contrast(pixels, scale, name)
    if pixels.shape != needed:
        moved = "" if pixels.shape != shape else _in_words(centre)
        changes.append(
            f"padded from {_size(pixels.shape)} to {_size(needed)} pixels with the median of the border{moved}"
        )
        pixels, mask = _padded(pixels, needed), _padded(mask, needed, value=True)
    if not same:
        mask = resample(mask.astype(np.float64), n_pixels=n_pixels, factor=factor) > _MASKED_SHARE * factor**2
        changes.append(f"resampled from {scale:.4g} to {pixel_scale:g} arcsec per pixel")
        pixels = resample(pixels, n_pixels=n_pixels, factor=factor)
    with np.errstate(over="ignore"):
        result = pixels.astype(np.float32)
    check_pixels(result, name)
    require_contrast(result, pixel_scale, name)
    return Prepared(result, tuple(changes), (centre[1] * scale, centre[0] * scale), mask if mask.any() else None)


def stacked_masks(
    masks: Sequence[Bool[np.ndarray, "n n"] | None], shape: tuple[int, ...]
) -> Bool[np.ndarray, "b 1 n n"] | None:
    """Return the masks of a batch of images of a shape (b, 1, n, n); None if no pixel is masked."""
    if all(mask is None for mask in masks):
        return None
    stacked = np.zeros(shape, dtype=bool)
    for i, mask in enumerate(masks):
        if mask is not None:
            stacked[i, 0] = mask
    return stacked


def require_similar_scale(scale: float, target: float, name: str) -> None:
    """Check that an image can be resampled from one pixel scale to another (arcsec).

    Raises:
        InputError: If they differ by more than a factor of 4, or the first is not positive.
    """
    if not (scale > 0 and 1 / MAX_FACTOR <= target / scale <= MAX_FACTOR):
        raise InputError(
            f"{name}: has pixels of {scale:.4g} arcsec and the model {target:g} arcsec, which is too different to "
            "resample; use another model, or correct the pixel scale with --pixel-scale."
        )


def resample(image: Float[np.ndarray, "h w"], *, n_pixels: int, factor: float) -> Float[np.ndarray, "n n"]:
    """Resample an image to n x n pixels that are `factor` times as large, about the same centre, and return their flux.

    The interpolation kernel is a sinc with a Kaiser window, scaled to the larger of the two pixels. Unlike a
    redistribution of flux by area, it does not broaden the PSF, and the noise of coarser pixels stays nearly
    uncorrelated, as the models assume. It conserves the surface brightness of a uniform sky exactly, and the total flux
    of a well-sampled image to 1e-3.
    """
    height, width = image.shape
    down, across = (interpolation(n, n_pixels, factor) for n in (height, width))
    return np.asarray(down @ image.astype(np.float64) @ across.T)


def interpolation(n_in: int, n_out: int, factor: float) -> Float[np.ndarray, "n_out n_in"]:
    """Return the weights that interpolate n_in pixels to n_out pixels about the same centre, `factor` times as long.

    Each row sums to `factor`. Window: Kaiser and Schafer 1980, IEEE Trans. ASSP 28, 105.
    """
    centres = factor * (np.arange(n_out) - (n_out - 1) / 2) + (n_in - 1) / 2
    distance = (centres[:, None] - np.arange(n_in)) / max(1.0, factor)
    window = np.i0(_KAISER * np.sqrt(np.clip(1 - (distance / _LOBES) ** 2, 0, None))) * (np.abs(distance) < _LOBES)
    weights = np.sinc(distance) * window
    return np.asarray(factor * weights / weights.sum(1, keepdims=True))


def fill_missing(
    image: Float[np.ndarray, "n m"], name: str
) -> tuple[Float[np.ndarray, "n m"], Bool[np.ndarray, "n m"]]:
    """Replace NaN pixels by the mean of their neighbours, or by the median far from others; return image and mask.

    Raises:
        InputError: If more than 30 % of the pixels are NaN.
    """
    mask = np.isnan(image)
    n = int(mask.sum())
    if n > MAX_NAN_FRACTION * image.size:
        raise InputError(f"{name}: {n} of {image.size} pixels are NaN; cut out a region with fewer of them.")
    if not n:
        return image, mask
    filled = image.copy()
    for _ in range(_FILL_STEPS):
        missing = np.isnan(filled)
        around = _neighbours(np.pad(filled, 1, constant_values=np.nan))[:, missing]
        valid = np.isfinite(around)
        filled[missing] = np.where(valid.any(0), np.nansum(around, 0) / valid.sum(0).clip(1), np.nan)
    filled[np.isnan(filled)] = np.nanmedian(image)
    return filled, mask


def _neighbours(padded: Float[np.ndarray, "n2 m2"] | Bool[np.ndarray, "n2 m2"]) -> np.ndarray:
    """Return the eight neighbours of each pixel, shape (8, n, m), of an image with a border of one pixel."""
    n, m = padded.shape[0] - 2, padded.shape[1] - 2
    return np.stack([padded[y : y + n, x : x + m] for y in range(3) for x in range(3) if (y, x) != (1, 1)])


def _side(n_in: int, length: float) -> int:
    """Return the smallest side of at least `length` pixels with the parity of `n_in`, so that the centre stays."""
    side = math.ceil(length - 1e-6)
    return side + (side - n_in) % 2


def _crop_corner(pixels: Float[np.ndarray, "h w"], target: tuple[int, int], scale: float) -> tuple[int, int]:
    """Return row and column of the lower left pixel of the crop, about the lens if that is off centre.

    They are negative where the image is smaller than the target and will be padded.
    """
    spare = [n - m for n, m in zip(pixels.shape, target, strict=True)]
    corner = [n // 2 if n >= 0 else -((-n) // 2) for n in spare]
    centre = find_lens(pixels, scale) if max(spare) > 1 and min(pixels.shape) * scale >= MIN_FIELD else None
    if centre is not None and math.hypot(*centre) * scale > CENTRE_TOLERANCE:
        for i, n in enumerate(spare):
            corner[i] += max(-(n // 2), min(n - n // 2, round(centre[i]))) if n > 0 else 0
    return corner[0], corner[1]


def _in_words(centre: tuple[float, ...]) -> str:
    """Return where the centre of the crop lies (up and right, pixels), if that is not the centre of the image."""
    parts = []
    for n, (positive, negative) in zip(centre, (("above", "below"), ("to the right", "to the left")), strict=True):
        length = "half a pixel" if abs(n) == 0.5 else f"{abs(n):g} pixel{'s' * (abs(n) != 1)}"
        parts += [f"{length} {positive if n > 0 else negative}"] * (n != 0)
    if not parts:
        return ""
    subject = "the lens," if max(map(abs, centre)) > 0.5 else "a point"
    return f" about {subject} {' and '.join(parts)} {'of ' * (centre[1] != 0)}the centre"


def _padded(pixels: np.ndarray, target: tuple[int, int], value: bool | None = None) -> np.ndarray:
    """Return pixels padded on all sides to a shape with a value, by default the median of the border."""
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    widths = [((m - n) // 2, m - n - (m - n) // 2) for n, m in zip(pixels.shape, target, strict=True)]
    return np.pad(pixels, widths, constant_values=np.median(border) if value is None else value)


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} x {shape[1]}"
