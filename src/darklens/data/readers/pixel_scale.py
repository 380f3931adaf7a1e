"""The pixel scale that a file states: names under which it is stored, units, pairs, texts and matrices."""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np

from darklens.errors import InputError

NAMES = re.compile(
    r"pix(el)?scales?|pix(el)?sc(a?l)|pix(el)?size|(plate|plt)scale|pltscl|secpix|secperpix|arcsecperpix(el)?|deltapix"
)  # without separators, in lower case
TRANSFORM = "transform_pix2angle"  # written by lenstronomy and dolphin: steps of one pixel in x and y, arcsec
TOLERANCE = 0.01  # relative difference of the sides, and cosine of the angle between them, of a square pixel
MAX_VALUES, MAX_TEXT = 10_000_000, 256  # numbers in an array, characters of a text
ARCSEC = {
    "deg": 3600.0,
    "arcmin": 60.0,
    "arcsec": 1.0,
    "mas": 1e-3,
    "uas": 1e-6,
    "rad": math.degrees(3600.0),
}  # by the name of a unit
_UNITS = {
    "deg": "deg degree degrees °",
    "arcmin": "arcmin arcmins arcminute arcminutes ' ′",
    "arcsec": "arcsec arcsecs arcsecond arcseconds asec as \" ″ ''",
    "mas": "mas marcsec milliarcsec milliarcsecond milliarcseconds",
    "uas": "uas µas μas microarcsec microarcsecond microarcseconds",
    "rad": "rad rads radian radians",
}
_UNIT_OF = {spelling: unit for unit, spellings in _UNITS.items() for spelling in spellings.split()}
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eEdD][-+]?\d+)?")
_PER_PIXEL = re.compile(r"\s*(?:/|\bper\b)\s*(?:pixels?|pix|px)\b|\s*\b(?:pixels?|pix|px)\s*(?:\*\*|\^)?-1")
_SEPARATORS = re.compile(r"[\s,;()\[\]{}×]+|(?<![a-z])x(?![a-z])")
_SUFFIXES = {"x": 0, "1": 0, "y": 1, "2": 1}


class PixelScaleError(InputError):
    """A file states a pixel scale that cannot be read; `--pixel-scale` replaces it."""


def is_name(name: str) -> bool:
    """Return whether an array, attribute or card of this name states a pixel scale, as `pixel_scale_mas` does."""
    return _parsed_name(name) is not None


_replacement: ContextVar[float | None] = ContextVar("pixel scale of files whose own cannot be read", default=None)


@contextmanager
def replacing_unreadable(pixel_scale: float | None) -> Iterator[None]:
    """Let a pixel scale (arcsec) replace that of files whose own cannot be read, for readers called in the body."""
    token = _replacement.set(pixel_scale)
    try:
        yield
    finally:
        _replacement.reset(token)


def unless_replaced(pixel_scale: float | None, stated: Callable[[], float | None]) -> float | None:
    """Return the pixel scale that replaces that of a file, or else the stated one, arcsec.

    Raises:
        PixelScaleError: If the stated one cannot be read and none replaces it.
        InputError: If pixels are oblong or slanted.
    """
    try:
        scale = stated()
    except PixelScaleError:
        replacement = _replacement.get() if pixel_scale is None else pixel_scale
        if replacement is None:
            raise
        return replacement
    return scale if pixel_scale is None else pixel_scale


def combine(path: object, scales: Mapping[str, float]) -> float | None:
    """Return the pixel scale, arcsec, on which the statements of a file agree; None without any.

    Args:
        path: The file, for messages.
        scales: Pixel scales by name, those along x and y (as SECPIX1 and SECPIX2) under two names.

    Raises:
        PixelScaleError: If statements differ by more than 1 %.
        InputError: If the scales along x and y differ by more than 1 %.
    """
    sides: dict[str, list[float]] = {}
    for name, scale in scales.items():
        base, axis = _parsed_name(name) or (name, None)
        sides.setdefault(name if axis is None else base.upper(), []).append(scale)
    stated = {name: require_square_sides(path, values) for name, values in sides.items()}
    for name, scale in stated.items():
        first, reference = next(iter(stated.items()))
        if abs(scale / reference - 1) > TOLERANCE:
            raise PixelScaleError(
                f"{path}: states two pixel scales, {first} = {reference:.4g} and {name} = {scale:.4g} arcsec; give the "
                "right one with --pixel-scale."
            )
    return next(iter(stated.values()), None)


def unit_in_comment(comment: str) -> str | None:
    """Return the one unit of angle that a comment such as `[mas/pixel] plate scale` mentions; None without one."""
    words = re.findall(r"[a-zµμ]+", comment.lower())
    units = {_UNIT_OF[word] for word in words if word in _UNIT_OF and len(word) > 2}
    return units.pop() if len(units) == 1 else None


def is_angle(text: str) -> bool:
    """Return whether a text names a unit of angle, which may be per pixel."""
    return _PER_PIXEL.sub("", text.strip().lower()).strip() in _UNIT_OF


def unit_named(path: object, name: str, text: str) -> str:
    """Return the unit of angle that a text names, as `ARCSEC` does.

    Raises:
        PixelScaleError: If it names none.
    """
    unit = _UNIT_OF.get(_PER_PIXEL.sub("", text.strip().lower()).strip())
    if unit is None:
        raise _unreadable(path, name, f"... {text}")
    return unit


def parse(path: object, name: str, value: object, unit: str | None = None) -> float:
    """Return the side of a pixel in arcsec that a value of a file states.

    Args:
        path: The file, for messages.
        name: Name of the value, which may end in a unit, as `pixel_scale_mas`.
        value: A number, a text ("0.05 arcsec", "0.05 x 0.05"), a pair of sides, the 2 x 2 matrix of a linear
            transformation, or equal numbers, one for each image.
        unit: Unit of a value that states none; by default that of the name, else arcsec.

    Raises:
        PixelScaleError: If the value is no angle.
        InputError: If pixels are oblong or slanted.
    """
    words = re.split(r"[^a-z0-9]+", name.lower())
    default = unit or next((_UNIT_OF[word] for word in words[1:] if word in _UNIT_OF and len(word) > 2), "arcsec")
    array = np.asarray(value)
    if array.dtype.kind in "SUO":
        if array.size > 2:
            raise _unreadable(path, name, value)
        numbers, default = _parsed_text(path, name, " ".join(map(_text, array.ravel().tolist())), default)
        array = np.array(numbers)
    if array.dtype.kind not in "fiu" or not 0 < array.size <= MAX_VALUES:
        raise _unreadable(path, name, value)
    sides = array.astype(np.float64) * ARCSEC[default]
    if sides.shape == (2, 2):
        return require_square(path, sides, name)
    sides = np.abs(sides.ravel())
    if sides.size > 2 and np.ptp(sides) > TOLERANCE * sides.max():
        raise PixelScaleError(f"{path}: {name} has {sides.size} different values; give one with --pixel-scale.")
    return require_square_sides(path, [_valid(path, name, side) for side in sides[[0, -1]]])


def require_square(path: object, matrix: np.ndarray, name: str = "the linear transformation") -> float:
    """Return the side in arcsec of the pixels of a linear transformation (2, 2), arcsec per pixel.

    Raises:
        PixelScaleError: If the matrix is singular, or no transformation to the sky.
        InputError: If pixels are oblong or slanted by more than 1 %.
    """
    with np.errstate(all="ignore"):
        sides = np.hypot(matrix[0], matrix[1])
        cosine = float(matrix[:, 0] @ matrix[:, 1] / np.prod(sides))
    across, up = (_valid(path, name, side) for side in sides)
    side = require_square_sides(path, [across, up])
    if not abs(cosine) <= TOLERANCE:
        angle = math.degrees(math.acos(max(-1.0, min(1.0, cosine))))
        raise InputError(
            f"{path}: has slanted pixels, whose sides meet at {angle:.4g} degrees; resample it to square pixels first."
        )
    return side


def require_square_sides(path: object, sides: Iterable[float]) -> float:
    """Return the geometric mean of the sides of a pixel, arcsec.

    Raises:
        InputError: If they differ by more than 1 %.
    """
    values = list(sides)
    across, up = values[0], values[-1]
    if abs(across / up - 1) > TOLERANCE:
        raise InputError(f"{path}: has pixels of {across:.4g} x {up:.4g} arcsec; resample it to square pixels first.")
    return math.sqrt(across * up)


def _parsed_name(name: str) -> tuple[str, int | None] | None:
    """Return a name without separators and unit, and its axis (0 for x, 1 for y); None if it is no pixel scale."""
    words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]
    while len(words) > 1 and (words[-1] in _UNIT_OF or words[-1] in ("in", "per", "pix", "pixel")):
        words.pop()
    joined = "".join(words)
    if NAMES.fullmatch(joined):
        return joined, None
    if NAMES.fullmatch(joined[:-1]) and joined[-1] in _SUFFIXES:
        return joined[:-1], _SUFFIXES[joined[-1]]
    return None


def _parsed_text(path: object, name: str, text: str, default: str) -> tuple[list[float], str]:
    stripped = _PER_PIXEL.sub(" ", text.strip().lower())
    numbers = [float(number.replace("d", "e")) for number in _NUMBER.findall(stripped)]
    words = _SEPARATORS.split(_NUMBER.sub(" ", stripped))
    units = {_UNIT_OF.get(word) for word in words if word}
    if not numbers or len(numbers) > 2 or len(text) > MAX_TEXT or len(units) > 1 or None in units:
        raise _unreadable(path, name, text[:MAX_TEXT])
    return numbers, str(units.pop()) if units else default


def _text(value: object) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _valid(path: object, name: str, side: float) -> float:
    if not 1e-6 < side < 1e6:
        raise _unreadable(path, name, f"{side:.4g} arcsec")
    return float(side)


def _unreadable(path: object, name: str, value: object) -> PixelScaleError:
    text = " ".join(str(value).split())[:60]
    return PixelScaleError(f"{path}: states a pixel scale, {name} = {text}, that is not an angle; give --pixel-scale.")
