"""Readers of NumPy's `.npy` and `.npz` files."""

import math
import zipfile
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from darklens.data.readers.image import (
    MAX_BYTES,
    MAX_PIXELS,
    Image,
    choose_image,
    reject_damaged,
    require_image,
)
from darklens.data.readers.object_arrays import only_image
from darklens.data.readers.pixel_scale import (
    MAX_VALUES,
    TRANSFORM,
    PixelScaleError,
    combine,
    is_name,
    parse,
    unit_named,
    unless_replaced,
)
from darklens.errors import InputError

MAX_MEMBERS, MAX_DIRECTORY = 1000, 1_000_000  # bytes: enough for a thousand members with long names
MAX_HEADER = 10_000  # bytes; NumPy has the same limit, but checks it only after it has read the header
MAX_NESTED = 100  # characters that can make Python's parser recurse
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # zipfile decompresses others without a limit
_END, _END_SIZE, _COMMENT = b"PK\x05\x06", 22, 65_535
_END_64, _END_64_SIZE = b"PK\x06\x07", 20


@runtime_checkable
class Readable(Protocol):
    """A binary stream, such as a file or a member of an archive."""

    def read(self, size: int = -1, /) -> bytes:
        """Return up to `size` bytes."""


def read_npy(path: Path, _: str | None = None, pixel_scale: float | None = None) -> Image:
    """Read a `.npy` file without executing anything in it.

    Of pickled object arrays it reads only those of DeepLenseSim, which hold an image and a mass.

    Raises:
        InputError: If the file is damaged or is not a two-dimensional array of real numbers.
    """
    with reject_damaged(path, ".npy"), path.open("rb") as stream:
        shape, _order, dtype = read_header(stream)
        if dtype.hasobject and len(shape) == 1:
            try:
                return Image(only_image(stream.read(MAX_PIXELS * 8 + MAX_DIRECTORY)), pixel_scale)
            except Exception:
                require_image(path, shape, dtype)
        stream.seek(0)
        return Image(_plane(path, stream), pixel_scale)


def read_npz(path: Path, name: str | None = None, pixel_scale: float | None = None) -> Image:
    """Read the array `name` of a `.npz` file, or its science image.

    That is the array `image`, `sci`, `data` or the like, or else the only one that is no weight map, mask or PSF. The
    pixel scale is `pixel_scale` or the like: a number, a pair or a text, in arcsec unless it states a unit.

    Raises:
        InputError: If the file is damaged, decompresses to more than 1 GB, or has no such image.
    """
    archive, members = open_archive(path)
    with reject_damaged(path, ".npz"), archive:
        if sum(member.file_size for member in members.values()) > MAX_BYTES:
            raise InputError(f"{path}: decompresses to more than 1 GB; save only the image with numpy.savez.")
        arrays = {}
        for key, member in members.items():
            with archive.open(member) as stream:
                shape, _, dtype = read_header(stream)
            if key == name or not (key == TRANSFORM or is_scale(key, shape)):
                arrays[key] = shape, dtype
        with archive.open(members[choose_image(path, arrays, name, "array")]) as stream:
            pixels = _plane(path, stream)
        return Image(pixels, unless_replaced(pixel_scale, lambda: stated_scale(path, archive, members)))


def is_scale(name: str, shape: Sequence[int]) -> bool:
    """Return whether an array states the pixel scale."""
    return is_name(name) and (len(shape) < 2 or math.prod(shape) <= 4)


def stated_scale(path: Path, archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo]) -> float | None:
    """Return the pixel scale that the arrays of an npz file state, arcsec; None without any.

    Raises:
        PixelScaleError: If one cannot be read.
        InputError: If pixels are oblong or slanted.
    """
    scales = {}
    for key, member in members.items():
        with archive.open(member) as stream:
            shape, fortran_order, dtype = read_header(stream)
            if is_scale(key, shape):
                if dtype.hasobject or dtype.itemsize > 1024 or math.prod(shape) > MAX_VALUES:
                    raise PixelScaleError(f"{path}: states {key} as {dtype} values; give --pixel-scale.")
                values = np.frombuffer(stream.read(math.prod(shape) * dtype.itemsize), dtype=dtype)
                values = values.reshape(shape, order="F" if fortran_order else "C")
                unit = _text(archive, members, f"{key}_unit") or _text(archive, members, f"{key}_units")
                scales[key] = parse(path, key, values, unit_named(path, key, unit) if unit else None)
            elif key == TRANSFORM and shape == (2, 2) and dtype.kind == "f":
                values = np.frombuffer(stream.read(4 * dtype.itemsize), dtype=dtype).reshape(shape)
                scales.setdefault(key, parse(path, key, values))
    return combine(path, scales)


def _text(archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo], name: str) -> str | None:
    if name not in members:
        return None
    with archive.open(members[name]) as stream:
        shape, _, dtype = read_header(stream)
        if math.prod(shape) != 1 or dtype.kind not in "US" or dtype.itemsize > 1024:
            return None
        value = np.frombuffer(stream.read(dtype.itemsize), dtype=dtype).item(0)
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def open_archive(path: Path) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
    """Open a `.npz` file; return it and its members by name. The caller closes it.

    Raises:
        InputError: If the file is damaged, has too many members, or uses an unsupported compression.
    """
    with reject_damaged(path, ".npz"):
        if _directory_size(path) > MAX_DIRECTORY:
            raise InputError(f"{path}: has too many members; save only the image with numpy.savez.")
        archive = zipfile.ZipFile(path)
    members = archive.infolist()
    if len(members) > MAX_MEMBERS or any(member.compress_type not in _COMPRESSIONS for member in members):
        archive.close()
        raise InputError(f"{path}: uses an unsupported compression; save only the image with numpy.savez.")
    return archive, {member.filename.removesuffix(".npy"): member for member in members}


def _plane(path: Path, stream: Readable) -> Float[np.ndarray, "n m"]:
    shape, fortran_order, dtype = read_header(stream)
    height, width = require_image(path, shape, dtype)
    data = stream.read(height * width * dtype.itemsize)
    array = np.frombuffer(data, dtype=dtype, count=height * width)
    return array.reshape(shape, order="F" if fortran_order else "C").reshape(height, width).astype(np.float64)


def read_header(stream: Readable) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Return shape, Fortran order and dtype of an array; the stream is then at the start of its data.

    Raises:
        ValueError: If the header is damaged, too long or too deeply nested.
    """
    version = np.lib.format.read_magic(stream)
    n_bytes = 2 if version == (1, 0) else 4
    length = stream.read(n_bytes)
    if int.from_bytes(length, "little") > MAX_HEADER:
        raise ValueError("header too long")
    text = stream.read(int.from_bytes(length, "little"))
    if sum(text.count(character) for character in b"([{-+~") > MAX_NESTED:
        raise ValueError("header nested too deeply")
    header = BytesIO(length + text)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(header)


def _directory_size(path: Path) -> int:
    """Return the size in bytes of the directory of a zip archive, as the archive states it; zipfile reads all of it."""
    with path.open("rb") as stream:
        n_bytes = stream.seek(0, 2)
        stream.seek(max(0, n_bytes - _COMMENT - _END_SIZE - _END_64_SIZE))
        tail = stream.read()
    largest, offset = 0, tail.find(_END)
    while offset >= 0:
        if tail[max(0, offset - _END_64_SIZE) : offset].startswith(_END_64):
            return n_bytes  # a zip64 archive, with more than 4 GB or 65,535 members
        largest = max(largest, int.from_bytes(tail[offset + 12 : offset + 16], "little"))
        offset = tail.find(_END, offset + 1)
    return largest
