"""Reader of FITS files. It parses headers itself: astropy trusts their values, and a huge NAXIS makes it hang."""

import bz2
import gzip
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from darklens.data.readers.image import MAX_BYTES, Image, choose_image, reject_damaged, require_image, valid_pixel_scale
from darklens.errors import InputError

BLOCK, CARD = 2880, 80
MAX_HEADER_BLOCKS, MAX_UNITS, MAX_AXES = 1000, 200, 999  # blocks: in all headers of a file
COMPRESSED = {
    b"\x1f\x8b": (gzip.GzipFile, 8),
    b"BZ": (bz2.BZ2File, 16),
}  # decompressor, and the divisor of MAX_BYTES that limits its output; bzip2 is slow
TYPES = {8: ">u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}
ARCSEC = {"": 3600.0, "deg": 3600.0, "arcmin": 60.0, "arcsec": 1.0, "mas": 1e-3, "rad": math.degrees(3600.0)}
CELESTIAL = ("RA", "DEC", "GLON", "GLAT", "ELON", "ELAT")


def read_fits(path: Path, name: str | None = None) -> Image:
    """Read an image from a FITS file, plain or compressed with gzip or bzip2.

    Applies BSCALE, BZERO and BLANK. The pixel scale is that of the celestial coordinates in the header.

    Args:
        path: The file.
        name: EXTNAME or number of the header unit (0 is the first); by default the first two-dimensional image.

    Raises:
        InputError: If the file is damaged, too large, tile-compressed, has no such image, or has pixels that are not
            square.
    """
    with reject_damaged(path, "FITS"), _opened(path) as stream:
        tiled, labels = False, list[str]()
        for number, header, size in _units(path, stream):
            start = stream.tell()
            labels.append(str(header.get("EXTNAME", "")).strip() or str(number))
            if _matches(header, number, name):
                shape = _image_shape(header)
                tiled |= bool(header.get("ZIMAGE", False))
                if shape is not None:
                    return Image(_pixels(path, stream, header, shape), _pixel_scale(path, header))
                if name is not None and not tiled:
                    raise InputError(f"{path}: header unit {name} holds no two-dimensional image.")
            stream.seek(start + size)
        if tiled:
            raise InputError(f"{path}: the image is tile-compressed; decompress it with funpack first.")
        choose_image(path, labels if name is not None else [], name, (), "header unit")
    raise InputError(f"{path}: holds no two-dimensional image.")


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


def _units(path: Path, stream: io.BufferedIOBase) -> Iterator[tuple[int, Any, int]]:
    """Yield number, header and data size in bytes of each header unit, with the stream at the start of its data."""
    from astropy.io.fits import Header

    end, blocks = "END".ljust(CARD), 0
    for number in range(MAX_UNITS):
        cards: list[str] = []
        block_cards: list[str] = []
        while end not in block_cards:
            block = stream.read(BLOCK)
            if number and not cards and not block.strip(b"\0 "):
                return
            blocks += 1
            if len(block) < BLOCK or blocks > MAX_HEADER_BLOCKS:
                raise InputError(f"{path}: the FITS file is truncated or damaged; copy or create it again.")
            text = block.decode("ascii")
            block_cards = [text[i : i + CARD] for i in range(0, BLOCK, CARD)]
            cards += block_cards
        header = Header.fromstring("".join(cards[: cards.index(end)]))
        yield number, header, _data_size(path, header)


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


def _matches(header: Any, number: int, name: str | None) -> bool:
    return name is None or name == str(number) or str(header.get("EXTNAME", "")).strip().lower() == name.lower()


def _image_shape(header: Any) -> list[int] | None:
    if str(header.get("XTENSION", "IMAGE")).strip() != "IMAGE" or header["NAXIS"] < 2:
        return None
    shape = [int(header[f"NAXIS{i + 1}"]) for i in range(header["NAXIS"])][::-1]
    return shape if all(n == 1 for n in shape[:-2]) and min(shape) > 0 else None


def _pixels(path: Path, stream: io.BufferedIOBase, header: Any, shape: list[int]) -> Float[np.ndarray, "n m"]:
    dtype = np.dtype(TYPES[header["BITPIX"]])
    height, width = require_image(path, shape, dtype)
    stored = np.frombuffer(stream.read(height * width * dtype.itemsize), dtype=dtype, count=height * width)
    pixels = stored.reshape(height, width).astype(np.float64)
    if dtype.kind in "iu" and "BLANK" in header:
        pixels[stored.reshape(height, width) == int(header["BLANK"])] = np.nan
    scale, zero = float(header.get("BSCALE", 1.0)), float(header.get("BZERO", 0.0))
    if not (math.isfinite(scale) and math.isfinite(zero) and scale):
        raise InputError(f"{path}: a FITS header has BSCALE = {scale}, BZERO = {zero}; copy or create the file again.")
    with np.errstate(over="ignore", invalid="ignore"):
        pixels *= scale
        pixels += zero
    return pixels


def _pixel_scale(path: Path, header: Any) -> float | None:
    """Return the side of a pixel in arcsec from the linear transformation of the header, if it is celestial."""
    if not all(str(header.get(f"CTYPE{i}", "")).split("-")[0] in CELESTIAL for i in (1, 2)):
        return None
    if any(key in header for key in ("CD1_1", "CD1_2", "CD2_1", "CD2_2")):
        matrix = [[float(header.get(f"CD{i}_{j}", 0.0)) for j in (1, 2)] for i in (1, 2)]
    else:
        step = [float(header.get(f"CDELT{i}", 1.0)) for i in (1, 2)]
        matrix = [[step[i - 1] * float(header.get(f"PC{i}_{j}", float(i == j))) for j in (1, 2)] for i in (1, 2)]
    unit = [ARCSEC.get(str(header.get(f"CUNIT{i}", "")).strip().lower(), math.nan) for i in (1, 2)]
    to_sky = np.array(matrix) * np.array(unit)[:, None]
    sides = np.hypot(to_sky[0], to_sky[1])
    if valid_pixel_scale(sides[0]) is None or valid_pixel_scale(sides[1]) is None:
        return None
    if abs(sides[0] / sides[1] - 1) > 0.01:
        raise InputError(
            f"{path}: has pixels of {sides[0]:.4g} x {sides[1]:.4g} arcsec; resample it to square pixels first."
        )
    return float(math.sqrt(sides[0] * sides[1]))
