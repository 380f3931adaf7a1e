"""The pixel scale that is assumed for an image whose file states none: by its size, names in its path, and its values.

DeepLenseSim divides images by their maximum, so that it is 1 and the minimum of noise-free ones is positive. The Common
Tests are scaled to 0..1.
"""

import re
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from darklens.data.classes import ALIASES, CLASSES
from darklens.errors import InputError

_CLASSES = ALIASES.keys() - set(CLASSES)  # names of classes in DeepLenseSim


class UnknownScaleError(InputError):
    """A file states no pixel scale, and several are equally likely."""


class _ImageSet(NamedTuple):
    """Public images whose files state no pixel scale.

    Attributes:
        name: Name in messages.
        pattern: Regular expression of its name in a file or folder, without the boundaries of the word.
        n_pixels: Pixels along a side.
        pixel_scale: arcsec.
        minimum: Whether the minimum of its images is positive or zero; empty for images in any unit, which are not
            recognised without a name.
    """

    name: str
    pattern: str
    n_pixels: int
    pixel_scale: float
    minimum: Literal["", "positive", "zero"] = ""


# Model III: HST as lenstronomy has it by default, WFC3 F160W (README of Model_III in DeepLenseSim).
_IMAGE_SETS = (
    _ImageSet("DeepLense Model I", r"model[ _-]*(i|1)", 150, 0.05),
    _ImageSet("DeepLense Common Test", r"common[ _-]*test([ _-]*i+)?", 150, 0.05, "zero"),
    _ImageSet("DeepLense Model II, Euclid", r"model[ _-]*(ii|2)|euclid", 64, 0.101, "positive"),
    _ImageSet("DeepLense Model III, HST", r"model[ _-]*(iii|3)|hst", 64, 0.08, "positive"),
    _ImageSet("DeepLense Model IV, Euclid", r"model[ _-]*(iv|4)", 64, 0.101),
    _ImageSet("realistic-euclid", r"euclid", 76, 0.101),
    _ImageSet("realistic-hst", r"hst", 96, 0.08),
    _ImageSet("realistic-rubin", r"rubin|lsst", 40, 0.2),
)


def assumed_scale(
    pixels: Float[np.ndarray, "n m"], path: Path | None, *, default: float, n_pixels: int | None = None, name: str
) -> tuple[float, str]:
    """Return the pixel scale (arcsec) to assume for an image, and a phrase that says so.

    A file or folder that names a set of images of this size decides, the name nearest to the file first. Otherwise an
    image has the default scale, unless it looks like one of DeepLense: by its size and the range of its values, or by
    its size and a name of DeepLense in its path.

    Args:
        pixels: The image.
        path: Its file.
        default: Pixel scale of the model or the store, arcsec.
        n_pixels: Side of the images of the model or the store, if known.
        name: Name of the image in messages.

    Raises:
        UnknownScaleError: If several pixel scales are equally likely.
    """
    shape, parts = pixels.shape, [part.lower() for part in reversed(path.absolute().parts if path else ())]
    of_size = [known for known in _IMAGE_SETS if shape == (known.n_pixels, known.n_pixels)]
    if not of_size:
        return default, _words(default)
    for part in parts:
        named = [known for known in of_size if re.search(rf"(?<![a-z0-9])({known.pattern})(?![a-z0-9])", part)]
        if len({known.pixel_scale for known in named}) == 1:
            return named[0].pixel_scale, f"{_words(named[0].pixel_scale)} ({named[0].name})"
    is_named = any(part in _CLASSES or "deeplense" in part for part in parts)
    minimum = ("zero" if pixels.min() == 0 else "positive" if pixels.min() > 0 else "") if pixels.max() == 1 else ""
    likely = {
        known.pixel_scale: known.name for known in of_size if known.minimum and (is_named or known.minimum == minimum)
    }
    if not likely or shape == (n_pixels, n_pixels):
        return default, _words(default)
    if n_pixels is not None:
        likely.setdefault(default, "that of the model")
    if len(likely) > 1:
        options = " or ".join(f"{scale:g} arcsec ({what})" for scale, what in likely.items())
        raise UnknownScaleError(
            f"{name}: states no pixel scale, and its {shape[0]} x {shape[1]} pixels may be of {options}; give "
            "--pixel-scale."
        )
    (scale,) = likely
    return scale, _words(scale)


def _words(scale: float) -> str:
    return f"pixel scale of {scale:g} arcsec assumed"
