"""Reader of tile-compressed FITS images (`.fits.fz`): astropy decompresses them after the sizes have been checked."""

import io
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from darklens.data.readers.image import MAX_PIXELS, require_image
from darklens.errors import InputError

ALGORITHMS = ("RICE_1", "RICE_ONE", "GZIP_1", "GZIP_2", "PLIO_1", "HCOMPRESS_1", "NOCOMPRESS")
BITPIX = {8: "u1", 16: "i2", 32: "i4", 64: "i8", -32: "f4", -64: "f8"}
MAX_BYTES = 10 * MAX_PIXELS  # of the compressed image
MAX_TILES, MAX_COLUMNS, BLOCK = 100_000, 999, 2880
_COLUMNS = ("COMPRESSED_DATA", "GZIP_COMPRESSED_DATA", "UNCOMPRESSED_DATA")


def image_shape(header: Any) -> list[int]:
    """Return the shape of the image that a header describes, in the order of the array."""
    return [int(header[f"ZNAXIS{i + 1}"]) for i in range(int(header["ZNAXIS"]))][::-1]


def read_tiled(path: Path, unit: bytes, header: Any) -> Float[np.ndarray, "n m"]:
    """Decompress the image of a header unit.

    Args:
        path: The file, for messages.
        unit: Header and data of the unit.
        header: Its header.

    Raises:
        InputError: If the image is too large, or compressed in a way that astropy does not read.
    """
    from astropy.io import fits

    height, width = require_image(path, image_shape(header), np.dtype(BITPIX[header["ZBITPIX"]]))
    if not 1 <= int(header["TFIELDS"]) <= MAX_COLUMNS:  # astropy makes a list of so many columns
        raise _damaged(path)
    algorithm = str(header["ZCMPTYPE"]).strip()
    if algorithm not in ALGORITHMS:
        raise InputError(f"{path}: uses {algorithm} compression, which is not supported; decompress it with funpack.")
    content = _with_primary_unit(unit)
    with fits.open(io.BytesIO(content), disable_image_compression=True, memmap=False) as units:
        _check_tiles(path, algorithm, header, np.asarray(units[1].data), unit)
    with fits.open(io.BytesIO(content), memmap=False) as units:
        return np.asarray(units[1].data).reshape(height, width).astype(np.float64)


def _with_primary_unit(unit: bytes) -> bytes:
    from astropy.io import fits

    stream = io.BytesIO()
    fits.PrimaryHDU().writeto(stream)
    return stream.getvalue() + unit


def _check_tiles(path: Path, algorithm: str, header: Any, table: np.ndarray, unit: bytes) -> None:
    """Check the tiles before astropy's C code decompresses them: it trusts the lengths that they state.

    Raises:
        InputError: If a tile lies outside the data, or states another size than its own.
    """
    shape = image_shape(header)
    axes = range(len(shape), 0, -1)
    tile = [int(header.get(f"ZTILE{axis}", shape[-1] if axis == 1 else 1)) for axis in axes]
    settings = {str(header[f"ZNAME{i}"]).upper(): header[f"ZVAL{i}"] for i in range(1, 20) if f"ZNAME{i}" in header}
    tiles_along = [-(-n // side) if side > 0 else 0 for n, side in zip(shape, tile, strict=True)]
    if not (
        math.prod(tiles_along) == len(table) <= MAX_TILES
        and (not algorithm.startswith("RICE") or settings.get("BYTEPIX", 4) in (1, 2, 4))
        and 0 < settings.get("BLOCKSIZE", 32) <= 1024
    ):
        raise _damaged(path)
    rows, heap_size = int(header["NAXIS1"]) * int(header["NAXIS2"]), int(header["PCOUNT"])
    data = memoryview(unit)[len(unit) - -(-(rows + heap_size) // BLOCK) * BLOCK :]
    heap = data[int(header.get("THEAP", rows)) : rows + heap_size]
    for i in range(1, int(header["TFIELDS"]) + 1):
        name, form = str(header[f"TTYPE{i}"]), str(header[f"TFORM{i}"]).removeprefix("1")
        if name not in _COLUMNS:
            continue
        method = {"GZIP_COMPRESSED_DATA": "GZIP_1", "UNCOMPRESSED_DATA": "NOCOMPRESS"}.get(name, algorithm)
        itemsize = {"B": 1, "I": 2, "J": 4, "E": 4, "D": 8}[form[1]]
        for number, (count, offset) in enumerate(table[name].reshape(-1, 2).tolist()):
            content = heap[offset : offset + count * itemsize] if offset >= 0 <= count else memoryview(b"")
            position = np.unravel_index(number, tiles_along)
            n_pixels = math.prod(
                min(side, n - side * int(at)) for n, side, at in zip(shape, tile, position, strict=True)
            )
            if len(content) != count * itemsize or (count and not _states_size(content, method, n_pixels)):
                raise _damaged(path)


def _states_size(tile: memoryview, algorithm: str, n_pixels: int) -> bool:
    """Return whether the lengths that a compressed tile states are at most those of `n_pixels` pixels."""
    if algorithm.startswith("GZIP"):
        limit = 8 * n_pixels
        return len(zlib.decompressobj(wbits=31).decompress(tile, limit + 1)) <= limit
    if algorithm == "HCOMPRESS_1":  # a magic number of 2 bytes, then two sides of 4 bytes
        sides = [int.from_bytes(tile[i : i + 4], "big", signed=True) for i in (2, 6)]
        return len(tile) > 14 and min(sides) > 0 and math.prod(sides) <= n_pixels
    if algorithm == "PLIO_1":  # 16-bit words: the third is the length of the list, or the fourth and fifth are
        words = np.frombuffer(tile[: len(tile) // 2 * 2], dtype=">i2").tolist()
        if len(words) < 5:
            return False
        length, first = (words[2], 3) if words[2] > 0 else ((words[4] << 15) + words[3], words[1])
        return first >= 0 and length <= len(words)
    return True


def _damaged(path: Path) -> InputError:
    return InputError(
        f"{path}: the tile-compressed image is damaged; copy the file again, or decompress it with funpack."
    )
