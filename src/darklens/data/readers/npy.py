"""NumPy's files: `.npy` and `.npz`."""

import zipfile
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from darklens.data.readers.image import MAX_BYTES, Image, choose, damaged, is_plane, require_image, sensible_scale
from darklens.data.readers.objects import only_image
from darklens.errors import InputError

MAX_MEMBERS = 1000


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
        shape, _, dtype = _header(stream)
        if dtype.hasobject and len(shape) == 1:
            try:
                return Image(only_image(stream.read(MAX_BYTES)))
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
    with damaged(path, ".npz"), zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if len(members) > MAX_MEMBERS or sum(member.file_size for member in members) > MAX_BYTES:
            raise InputError(f"{path}: unpacks to too much; save the image alone with numpy.savez.")
        found = {member.filename.removesuffix(".npy"): member for member in members}
        planes, refused = [], None
        for key, member in found.items():
            with archive.open(member) as stream:
                shape, _, dtype = _header(stream)
            if is_plane(shape):
                planes.append(key)
            elif dtype.kind != "O" and len(shape) > 0:
                refused = shape, dtype
        if not planes and name is None and refused is not None:
            require_image(path, *refused)
        with archive.open(found[choose(path, planes, name, ("image",), "array")]) as stream:
            pixels = _plane(path, stream)
        return Image(pixels, _scale(archive, found.get("pixel_scale")))


def _plane(path: Path, stream: Readable) -> Float[np.ndarray, "n m"]:
    shape, fortran_order, dtype = _header(stream)
    height, width = require_image(path, shape, dtype)
    data = stream.read(height * width * dtype.itemsize)
    array = np.frombuffer(data, dtype=dtype, count=height * width)
    return array.reshape(shape, order="F" if fortran_order else "C").reshape(height, width).astype(np.float64)


def _scale(archive: zipfile.ZipFile, member: zipfile.ZipInfo | None) -> float | None:
    if member is None:
        return None
    with archive.open(member) as stream:
        shape, _, dtype = _header(stream)
        if shape not in ((), (1,)) or dtype.kind not in "fiu":
            return None
        return sensible_scale(np.frombuffer(stream.read(dtype.itemsize), dtype=dtype, count=1))


def _header(stream: Readable) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(stream)
