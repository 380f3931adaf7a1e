"""NumPy's files: `.npy` and `.npz`."""

import zipfile
from io import BytesIO
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from darklens.data.readers.image import (
    MAX_BYTES,
    MAX_PIXELS,
    Image,
    choose,
    damaged,
    is_plane,
    require_image,
    sensible_scale,
)
from darklens.data.readers.objects import only_image
from darklens.errors import InputError

MAX_MEMBERS, MAX_DIRECTORY = 1000, 1_000_000  # bytes: what a thousand members with long names take
MAX_HEADER = 10_000  # bytes, numpy's own limit, which it keeps to only after having read everything
MAX_NESTED = 100  # signs that can make Python's parser recurse
_PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # zipfile unpacks the others without a limit
_END, _END_SIZE, _COMMENT = b"PK\x05\x06", 22, 65_535
_END_64, _END_64_SIZE = b"PK\x06\x07", 20


@runtime_checkable
class Readable(Protocol):
    """A stream of bytes, in an archive or not."""

    def read(self, size: int = -1, /) -> bytes:
        """Return up to so many bytes."""


def read_npy(path: Path) -> Image:
    """Read a `.npy` file. Nothing in it is executed: of pickled objects only DeepLenseSim's image with a mass is read.

    Raises:
        InputError: If it is damaged or holds no plane of real numbers.
    """
    with damaged(path, ".npy"), path.open("rb") as stream:
        shape, _, dtype = read_header(stream)
        if dtype.hasobject and len(shape) == 1:
            try:
                return Image(only_image(stream.read(MAX_PIXELS * 8 + MAX_DIRECTORY)))
            except Exception:
                require_image(path, shape, dtype)
        stream.seek(0)
        return Image(_plane(path, stream))


def read_npz(path: Path, name: str | None = None) -> Image:
    """Read the array `name` of a `.npz` file, or its only image, or the one called `image`.

    A number `pixel_scale` beside it is the side of a pixel in arcsec.

    Raises:
        InputError: If it is damaged, unpacks to more than a gigabyte, or has no such image.
    """
    archive, found = open_archive(path)
    with damaged(path, ".npz"), archive:
        if sum(member.file_size for member in found.values()) > MAX_BYTES:
            raise InputError(f"{path}: unpacks to too much; save the image alone with numpy.savez.")
        planes, refused = [], None
        for key, member in found.items():
            with archive.open(member) as stream:
                shape, _, dtype = read_header(stream)
            if is_plane(shape):
                planes.append(key)
            elif dtype.kind != "O" and len(shape) > 0:
                refused = shape, dtype
        if not planes and name is None and refused is not None:
            require_image(path, *refused)
        with archive.open(found[choose(path, planes, name, ("image",), "array")]) as stream:
            pixels = _plane(path, stream)
        return Image(pixels, _scale(archive, found.get("pixel_scale")))


def open_archive(path: Path) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
    """Open a `.npz` file and return it with its members by name; it is for the caller to close.

    Raises:
        InputError: If it is damaged, has too many members, or is packed in a way that unpacks without a limit.
    """
    with damaged(path, ".npz"):
        if _directory_size(path) > MAX_DIRECTORY:
            raise InputError(f"{path}: has too many members; save the image alone with numpy.savez.")
        archive = zipfile.ZipFile(path)
    members = archive.infolist()
    if len(members) > MAX_MEMBERS or any(member.compress_type not in _PACKINGS for member in members):
        archive.close()
        raise InputError(f"{path}: is packed in an unusual way; save the image alone with numpy.savez.")
    return archive, {member.filename.removesuffix(".npy"): member for member in members}


def _plane(path: Path, stream: Readable) -> Float[np.ndarray, "n m"]:
    shape, fortran_order, dtype = read_header(stream)
    height, width = require_image(path, shape, dtype)
    data = stream.read(height * width * dtype.itemsize)
    array = np.frombuffer(data, dtype=dtype, count=height * width)
    return array.reshape(shape, order="F" if fortran_order else "C").reshape(height, width).astype(np.float64)


def _scale(archive: zipfile.ZipFile, member: zipfile.ZipInfo | None) -> float | None:
    if member is None:
        return None
    with archive.open(member) as stream:
        shape, _, dtype = read_header(stream)
        if shape not in ((), (1,)) or dtype.kind not in "fiu":
            return None
        return sensible_scale(np.frombuffer(stream.read(dtype.itemsize), dtype=dtype, count=1))


def read_header(stream: Readable) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Return shape, whether it is in Fortran's order, and type of an array; the stream is then at its data.

    Raises:
        ValueError: If it is damaged, or of a kind that no array of ours has.
    """
    version = np.lib.format.read_magic(stream)
    n_bytes = 2 if version == (1, 0) else 4
    length = stream.read(n_bytes)
    if int.from_bytes(length, "little") > MAX_HEADER:
        raise ValueError("header too long")
    text = stream.read(int.from_bytes(length, "little"))
    if sum(text.count(sign) for sign in b"([{-+~") > MAX_NESTED:
        raise ValueError("header nested too deeply")
    header = BytesIO(length + text)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(header)


def _directory_size(path: Path) -> int:
    """Return the bytes of a zip archive's list of members, which zipfile reads whole, as the archive announces them."""
    with path.open("rb") as stream:
        n_bytes = stream.seek(0, 2)
        stream.seek(max(0, n_bytes - _COMMENT - _END_SIZE - _END_64_SIZE))
        tail = stream.read()
    largest, at = 0, tail.find(_END)
    while at >= 0:
        if tail[max(0, at - _END_64_SIZE) : at].startswith(_END_64):
            return n_bytes  # an archive beyond 4 GB or 65,535 members
        largest = max(largest, int.from_bytes(tail[at + 12 : at + 16], "little"))
        at = tail.find(_END, at + 1)
    return largest
