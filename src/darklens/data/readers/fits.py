"""Reader of FITS files. It parses headers itself: astropy trusts their values, and a huge NAXIS makes it hang."""

import bz2
import gzip
import io
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from darklens.data.readers.image import MAX_BYTES, Image, plane_shape, reject_damaged, require_image
from darklens.data.readers.pixel_scale import (
    ARCSEC,
    TOLERANCE,
    PixelScaleError,
    combine,
    is_angle,
    is_name,
    parse,
    require_square,
    unit_in_comment,
    unit_named,
    unless_replaced,
)
from darklens.data.readers.roles import is_auxiliary, is_science
from darklens.data.readers.tiled import MAX_BYTES as MAX_TILED_BYTES
from darklens.data.readers.tiled import image_shape, read_tiled
from darklens.errors import InputError

BLOCK, CARD = 2880, 80
MAX_HEADER_BLOCKS, MAX_UNITS, MAX_AXES = 1000, 200, 999  # blocks: in all headers of a file
COMPRESSED = {
    b"\x1f\x8b": (gzip.GzipFile, 8),
    b"BZ": (bz2.BZ2File, 16),
}  # decompressor, and the divisor of MAX_BYTES that limits its output; bzip2 is slow
TYPES = {8: ">u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}
CELESTIAL = re.compile(r"(RA|DEC|.L(ON|AT)|..L[NT])$")
_LENGTH = re.compile(r"\b(mm|um|micron\w*)\b|µm")  # units of a detector or a photographic plate
_ASCII = bytes(byte if 32 <= byte < 127 else ord("?") if byte else ord(" ") for byte in range(256))


class Unit(NamedTuple):
    """A header unit: its number, its header, and where header and data start and the data end in the file, bytes."""

    number: int
    header: Any
    start: int
    data_start: int
    end: int

    @property
    def name(self) -> str:
        """EXTNAME, or the number of the unit."""
        return str(self.header.get("EXTNAME", "")).strip() or str(self.number)

    @property
    def is_tiled(self) -> bool:
        """Whether the unit is a table that holds a tile-compressed image."""
        return bool(self.header.get("ZIMAGE", False))


def read_fits(path: Path, name: str | None = None, pixel_scale: float | None = None) -> Image:
    """Read an image from a FITS file: plain, compressed with gzip or bzip2, or tile-compressed.

    Applies BSCALE, BZERO and BLANK. The pixel scale is that of the celestial coordinates of the image, or else of
    PIXSCALE, SECPIX or the like, in the header of the image or in the primary header.

    Args:
        path: The file.
        name: EXTNAME or number of the header unit (0 is the first); by default the first unit called SCI, IMAGE or the
            like, or else the first image that is no weight map, error map, mask or PSF.
        pixel_scale: Pixel scale in arcsec that replaces that of the header.

    Raises:
        InputError: If the file is damaged or too large, the unit holds no two-dimensional image, or its pixels are not
            square.
    """
    with reject_damaged(path, "FITS"), _opened(path) as stream:
        unit, primary = _choose(path, stream, name)
        shape = image_shape(unit.header) if unit.is_tiled else _axes(path, unit.header)[::-1]
        if plane_shape(shape) is None:
            raise InputError(
                f"{path}: header unit {unit.name} holds an array of {' x '.join(map(str, shape))}, no two-dimensional "
                "image; save one band, or select another unit with --image NAME."
            )
        _require_scaling(path, unit.header)
        pixels = _tiled_pixels(path, stream, unit) if unit.is_tiled else _pixels(path, stream, unit, shape)
        changes: list[str] = []
        scale = unless_replaced(pixel_scale, lambda: _pixel_scale(path, _inherited(unit, primary), changes))
        return Image(pixels, scale, tuple(changes))


def list_units(path: Path) -> list[tuple[int, str, Sequence[int], Any]]:
    """Return number, EXTNAME (may be empty), shape and header of the units with an image, in the order of the file.

    Headers include the cards that the unit inherits from the primary header.

    Raises:
        InputError: If the file is damaged or too large.
    """
    images: list[tuple[int, str, Sequence[int], Any]] = []
    primary: Any = None
    with reject_damaged(path, "FITS"), _opened(path) as stream:
        try:
            for unit in _units(path, stream):
                primary = primary or unit.header
                if _is_image(path, unit):
                    shape = image_shape(unit.header) if unit.is_tiled else _axes(path, unit.header)[::-1]
                    header = unit.header.copy()
                    for inherited in _inherited(unit, primary)[1:]:
                        header.extend(inherited, unique=True)
                    images.append((unit.number, str(unit.header.get("EXTNAME", "")).strip(), shape, header))
        except Exception:
            if not images:  # after an image, what follows it may be damaged
                raise
    if not images:
        raise InputError(f"{path}: holds no two-dimensional image.")
    return images


def _choose(path: Path, stream: io.BufferedIOBase, name: str | None) -> tuple[Unit, Any]:
    """Return the unit to read, and the primary header.

    Raises:
        InputError: If there is none.
    """
    primary: Any = None
    images, names = list[Unit](), list[str]()
    try:
        for unit in _units(path, stream):
            primary = primary or unit.header
            names.append(unit.name)
            if name is not None and name.lower() in (str(unit.number), unit.name.lower()):
                if not _is_image(path, unit):
                    raise InputError(f"{path}: header unit {name} holds no two-dimensional image.")
                return unit, primary
            if name is None and _is_image(path, unit):
                images.append(unit)
                if is_science(unit.name):
                    return unit, primary
    except Exception:
        if not images:  # after an image, what follows it may be damaged
            raise
    if name is not None:
        raise InputError(f"{path}: has no header unit {name!r} with an image; it has {', '.join(names[:8])}.")
    science = [unit for unit in images if not _is_auxiliary(unit)]
    if not images:
        raise InputError(f"{path}: holds no two-dimensional image.")
    if not science:
        listed = ", ".join(unit.name for unit in images[:8])
        raise InputError(f"{path}: holds no science image, only {listed}; select one with --image NAME if it is.")
    return science[0], primary


def _is_image(path: Path, unit: Unit) -> bool:
    """Return whether a unit holds an array of at least two axes."""
    if unit.is_tiled:
        shape = image_shape(unit.header)
    elif str(unit.header.get("XTENSION", "IMAGE")).strip() == "IMAGE":
        shape = _axes(path, unit.header)
    else:
        return False
    return len(shape) > 1 and min(shape) > 0


def _is_auxiliary(unit: Unit) -> bool:
    """Return whether a unit is a weight map, error map, mask or PSF by its name or by ESO's HDUCLAS2."""
    return is_auxiliary(unit.name) or str(unit.header.get("HDUCLAS2", "")).strip().upper() in ("ERROR", "QUALITY")


def _opened(path: Path) -> io.BufferedIOBase:
    with path.open("rb") as stream:
        head = stream.read(2)
    if head not in COMPRESSED:
        return path.open("rb")
    decompressor, divisor = COMPRESSED[head]
    limit = MAX_BYTES // divisor
    data = io.BytesIO()
    with decompressor(path) as decompressed:
        while chunk := decompressed.read(1_000_000):  # a larger read would allocate its full size at once
            data.write(chunk)
            if data.tell() > limit:
                raise InputError(f"{path}: decompresses to more than {limit / 1e6:.3g} MB; cut out the lens first.")
    data.seek(0)
    return data


def _units(path: Path, stream: io.BufferedIOBase) -> Iterator[Unit]:
    """Yield the header units."""
    from astropy.io.fits import Header

    last_card, blocks, end = "END".ljust(CARD), 0, 0
    for number in range(MAX_UNITS):
        start = stream.seek(end)
        cards: list[str] = []
        block_cards: list[str] = []
        while last_card not in block_cards:
            block = stream.read(BLOCK)
            if number and not cards and not block.strip(b"\0 "):
                return
            blocks += 1
            if len(block) < BLOCK or blocks > MAX_HEADER_BLOCKS:
                raise InputError(f"{path}: the FITS file is truncated or damaged; copy or create it again.")
            text = block.translate(_ASCII).decode("ascii")  # names of observers may be in Latin-1 or UTF-8
            block_cards = [text[i : i + CARD] for i in range(0, BLOCK, CARD)]
            cards += block_cards
        header = Header.fromstring("".join(cards[: cards.index(last_card)]))
        data_start = stream.tell()
        end = data_start + _data_size(path, header)
        yield Unit(number, header, start, data_start, end)


def _data_size(path: Path, header: Any) -> int:
    axes = _axes(path, header)
    if not axes:
        return 0
    groups, heap = int(header.get("GCOUNT", 1)), int(header.get("PCOUNT", 0))
    size = abs(int(header["BITPIX"])) // 8 * groups * (heap + math.prod(axes))
    if groups < 0 or heap < 0:
        raise InputError(f"{path}: a FITS header has a negative size; copy or create the file again.")
    return -(-size // BLOCK) * BLOCK


def _axes(path: Path, header: Any) -> list[int]:
    """Return the lengths of the axes in the order of the header, the reverse of that of the array."""
    n_axes = header["NAXIS"]
    if not isinstance(n_axes, int) or not 0 <= n_axes <= MAX_AXES:
        raise InputError(f"{path}: a FITS header has NAXIS = {n_axes}; copy or create the file again.")
    axes = [int(header[f"NAXIS{i + 1}"]) for i in range(n_axes)]
    if any(n < 0 for n in axes):
        raise InputError(f"{path}: a FITS header has a negative size; copy or create the file again.")
    return axes


def _tiled_pixels(path: Path, stream: io.BufferedIOBase, unit: Unit) -> Float[np.ndarray, "n m"]:
    if unit.end - unit.start > MAX_TILED_BYTES:
        raise InputError(
            f"{path}: has {(unit.end - unit.start) / 1e6:.0f} MB of compressed pixels; cut out the lens first."
        )
    require_image(path, image_shape(unit.header), np.dtype(TYPES[unit.header["ZBITPIX"]]))
    stream.seek(unit.data_start)
    data = stream.read(unit.end - unit.data_start)
    used = int(unit.header["NAXIS1"]) * int(unit.header["NAXIS2"]) + int(unit.header["PCOUNT"])
    if len(data) < used:
        raise InputError(f"{path}: the FITS file is truncated or damaged; copy or create it again.")
    stream.seek(unit.start)
    cards = stream.read(unit.data_start - unit.start).translate(_ASCII)
    return read_tiled(path, cards + data.ljust(unit.end - unit.data_start, b"\0"), unit.header)


def _require_scaling(path: Path, header: Any) -> tuple[float, float]:
    scale, zero = float(header.get("BSCALE", 1.0)), float(header.get("BZERO", 0.0))
    if not (math.isfinite(scale) and math.isfinite(zero) and scale):
        raise InputError(f"{path}: a FITS header has BSCALE = {scale}, BZERO = {zero}; copy or create the file again.")
    return scale, zero


def _pixels(path: Path, stream: io.BufferedIOBase, unit: Unit, shape: list[int]) -> Float[np.ndarray, "n m"]:
    header, dtype = unit.header, np.dtype(TYPES[unit.header["BITPIX"]])
    height, width = require_image(path, shape, dtype)
    stream.seek(unit.data_start)
    stored = np.frombuffer(stream.read(height * width * dtype.itemsize), dtype=dtype, count=height * width)
    pixels = stored.reshape(height, width).astype(np.float64)
    if dtype.kind in "iu" and "BLANK" in header:
        pixels[stored.reshape(height, width) == int(header["BLANK"])] = np.nan
    scale, zero = _require_scaling(path, header)
    with np.errstate(over="ignore", invalid="ignore"):
        pixels *= scale
        pixels += zero
    return pixels


def _inherited(unit: Unit, primary: Any) -> list[Any]:
    """Return the headers that describe an image: its own, and the primary header if the image inherits its cards.

    It does with INHERIT = T, or without INHERIT if the primary unit holds no image.
    """
    if unit.number == 0 or not unit.header.get("INHERIT", primary["NAXIS"] == 0):
        return [unit.header]
    return [unit.header, primary]


def _pixel_scale(path: Path, headers: Sequence[Any], changes: list[str]) -> float | None:
    """Return the side of a pixel in arcsec, from the first header that states it; None if none does.

    Celestial coordinates take precedence over PIXSCALE and the like, which may be those of the detector; a difference
    is added to `changes`.
    """
    for header in headers:
        problems: list[PixelScaleError] = []
        scales: list[float | None] = []
        for statement in (_transformed_scale, _scale_cards):
            try:
                scales.append(statement(path, header))
            except PixelScaleError as error:
                problems.append(error)
                scales.append(None)
        transformed, stated = scales
        if transformed is not None and stated is not None and abs(stated / transformed - 1) > TOLERANCE:
            changes.append(
                f"pixel scale of {transformed:.4g} arcsec from the celestial coordinates; the header also states "
                f"{stated:.4g} arcsec"
            )
        scale = stated if transformed is None else transformed
        if scale is not None:
            return scale
        if problems:
            raise problems[0]
    return None


def _scale_cards(path: Path, header: Any) -> float | None:
    """Return the pixel scale in arcsec of PIXSCALE, SECPIX and the like; None without any."""
    from astropy.io.fits.card import Undefined

    scales = {}
    for name in dict.fromkeys(str(key) for key in header):
        keyword = name.split()[-1] if name else ""  # of ESO INS PIXSCALE, the last
        if not is_name(keyword):
            continue
        value, comment = header[name], str(header.comments[name])
        unit = unit_in_comment(comment)
        of_detector = _LENGTH.search(comment) or (unit is None and keyword.startswith(("PIXSIZE", "PIXELSIZE")))
        if not (of_detector or isinstance(value, Undefined) or not str(value).strip()):
            scales[keyword] = parse(path, keyword, value, unit)
    return combine(path, scales)


def _transformed_scale(path: Path, header: Any) -> float | None:
    """Return the side of a pixel in arcsec from the linear transformation to celestial coordinates, if there is one.

    Axes without type and unit are taken as celestial, in degrees, if the pixels then have a size that telescopes give.
    """
    types = [str(header.get(f"CTYPE{i}", "")).split("-")[0].strip().upper() for i in (1, 2)]
    units = [str(header.get(f"CUNIT{i}", "")).strip() for i in (1, 2)]
    celestial, unnamed = [bool(CELESTIAL.match(kind)) for kind in types], not any(types + units)
    matrix = _matrix(path, header)
    if matrix is None or not (any(celestial) or all(map(is_angle, units)) or unnamed):
        return None
    if any(celestial) and not all(celestial):
        raise PixelScaleError(f"{path}: has axes {types[0]} and {types[1]}, which are not both on the sky.")
    if unnamed and np.array_equal(np.abs(matrix), np.eye(2)):
        return None  # coordinates are pixels
    to_arcsec = [ARCSEC[unit_named(path, f"CUNIT{i + 1}", unit) if unit else "deg"] for i, unit in enumerate(units)]
    side = require_square(path, matrix * np.array(to_arcsec)[:, None], "the celestial coordinates")
    if unnamed and not 1e-3 <= side <= 10:
        raise PixelScaleError(
            f"{path}: states pixels of {side / ARCSEC['deg']:.4g} without a unit (CDELT or CD); give --pixel-scale."
        )
    return side


def _matrix(path: Path, header: Any) -> Float[np.ndarray, "2 2"] | None:
    """Return the steps along the coordinates (row) for a pixel along the axes (column); None if none is stated."""

    def number(keyword: str, default: float) -> float:
        try:
            return float(str(header.get(keyword, default)).upper().replace("D", "E"))
        except ValueError:
            raise PixelScaleError(f"{path}: states {keyword} = {header[keyword]}; give --pixel-scale.") from None

    pairs = [(i, j) for i in (1, 2) for j in (1, 2)]
    if any(f"CD{i}_{j}" in header for i, j in pairs):
        return np.array([number(f"CD{i}_{j}", 0.0) for i, j in pairs]).reshape(2, 2)
    rotations = [(i, j, key) for i, j in pairs for key in (f"PC{i}_{j}", f"PC00{i}00{j}") if key in header]
    if not rotations and not any(f"CDELT{i}" in header for i in (1, 2)):
        return None
    matrix = np.eye(2)
    for i, j, key in rotations:
        matrix[i - 1, j - 1] = number(key, 0.0)
    return np.array([[number(f"CDELT{i}", 1.0)] for i in (1, 2)]) * matrix
