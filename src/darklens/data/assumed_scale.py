"""The pixel scale that is assumed for an image whose file states none: by its size, and by names in its path."""

import re
from pathlib import Path
from typing import NamedTuple

from darklens.errors import InputError


class UnknownScaleError(InputError):
    """A file states no pixel scale, and several are equally likely."""


class _ImageSet(NamedTuple):
    """Public images whose files state no pixel scale.

    Attributes:
        name: Name in messages.
        pattern: Regular expression of its name in a file or folder, without the boundaries of the word.
        n_pixels: Pixels along a side.
        pixel_scale: arcsec.
        known_by_size: Whether images of this size are taken for these without a name.
    """

    name: str
    pattern: str
    n_pixels: int
    pixel_scale: float
    known_by_size: bool = False


# Model III: HST as lenstronomy has it by default, WFC3 F160W (README of Model_III in DeepLenseSim).
_IMAGE_SETS = (
    _ImageSet("DeepLense Model I", r"model[ _-]*(i|1)", 150, 0.05, known_by_size=True),
    _ImageSet("DeepLense Common Test", r"common[ _-]*test([ _-]*i+)?", 150, 0.05, known_by_size=True),
    _ImageSet("DeepLense Model II, Euclid", r"model[ _-]*(ii|2)|euclid", 64, 0.101, known_by_size=True),
    _ImageSet("DeepLense Model III, HST", r"model[ _-]*(iii|3)|hst", 64, 0.08, known_by_size=True),
    _ImageSet("DeepLense Model IV, Euclid", r"model[ _-]*(iv|4)", 64, 0.101),
    _ImageSet("realistic-euclid", r"euclid", 76, 0.101),
    _ImageSet("realistic-hst", r"hst", 96, 0.08),
    _ImageSet("realistic-rubin", r"rubin|lsst", 40, 0.2),
)


def assumed_scale(
    shape: tuple[int, ...], path: Path | None, *, default: float, n_pixels: int | None = None, name: str
) -> tuple[float, str]:
    """Return the pixel scale (arcsec) to assume for an image, and a phrase that says so.

    A file or folder that names a set of images of this size decides, the name nearest to the file first. Without one,
    an image of the size `n_pixels` has the default scale, and one of the size of DeepLense's images has theirs.

    Args:
        shape: Of the image, pixels.
        path: Its file.
        default: Pixel scale of the model or the store, arcsec.
        n_pixels: Side of the images of the model or the store, if known.
        name: Name of the image in messages.

    Raises:
        UnknownScaleError: If several pixel scales are equally likely.
    """
    of_size = [known for known in _IMAGE_SETS if shape == (known.n_pixels, known.n_pixels)]
    for part in reversed(path.absolute().parts if path else ()):
        named = [known for known in of_size if re.search(rf"(?<![a-z0-9])({known.pattern})(?![a-z0-9])", part.lower())]
        if len({known.pixel_scale for known in named}) == 1:
            return named[0].pixel_scale, f"{_words(named[0].pixel_scale)} ({named[0].name})"
    likely: dict[float, str] = {}
    for known in of_size:
        if known.known_by_size:
            likely.setdefault(known.pixel_scale, known.name)
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
