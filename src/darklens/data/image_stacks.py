"""Stacks: many images in one array of an npz, HDF5 or npy file. `FILE#i` is the image in row i."""

import os
import re
from functools import lru_cache
from pathlib import Path

from darklens.data.readers import hdf5, npy
from darklens.data.readers.hdf5 import datasets_of, require_h5py
from darklens.data.readers.image import Image, reject_damaged
from darklens.data.readers.npy import open_archive
from darklens.data.readers.planes import contents, n_rows_of
from darklens.errors import InputError
from darklens.files import change_stamp

_ROW = re.compile(r"(?P<file>.+)#(?P<row>\d+)")
_MAX_BANDS = 16  # images in an array that may be the bands of one image
_HDF5 = (".h5", ".hdf5")
_SUFFIXES = (".npz", ".npy", *_HDF5)


def location(label: Path | str) -> tuple[Path, int | None]:
    """Return the file or folder that a label names, and the row of a stack; None for other files."""
    match = _ROW.fullmatch(str(label))
    if match and not os.path.lexists(label):
        return Path(match["file"]), int(match["row"])
    return Path(label), None


def stem(label: Path) -> str:
    """Return a name for outputs of an image: that of its file without suffix, and the row of a stack, `FILE-i`."""
    path, row = location(label)
    return path.stem if row is None else f"{path.stem}-{row}"


def labels_of(path: Path) -> list[Path]:
    """Return a label for each image of a stack; the path of any other file, and of one that cannot be read."""
    if not path.name.lower().endswith(_SUFFIXES) or not path.is_file():
        return [path]
    try:
        n_rows = n_rows_of(path)
    except InputError:
        return [path]  # reported when it is read
    return [path] if n_rows is None else [Path(f"{path}#{i}") for i in range(n_rows)]


def images_of(path: Path) -> list[Path]:
    """Return a label for each image of a stack, if it cannot be anything else; the path of any other file.

    Up to 16 images may be the bands of one, unless their array is called `images`.
    """
    labels = labels_of(path)
    if len(labels) == 1 or (len(labels) <= _MAX_BANDS and not _is_named_images(path)):
        return [path]
    return labels


def _is_named_images(path: Path) -> bool:
    stacks = [plane for plane in contents(path).planes if plane.row is not None and plane.role == "science"]
    return [plane.name.rpartition("/")[-1].lower() for plane in stacks] == ["images"]


def read_row(path: Path, row: int, *, name: str | None = None, pixel_scale: float | None = None) -> Image:
    """Read one image of a stack. Other arrays of one map for each image are not used, and the changes say so.

    Args:
        path: The file.
        row: From 0.
        name: Name of the array in files with several stacks; by default that of the images.
        pixel_scale: Pixel scale in arcsec that replaces that of the file.

    Raises:
        InputError: If the file is not a stack, has no such row or array, or cannot be read.
    """
    content = contents(path, row=row)
    if content.n_rows is None:
        raise InputError(f"{path}: is not a stack of images; leave out #{row}.")
    rows = [plane for plane in content.planes if plane.row is not None]
    wanted = None if name is None or rows[0].key == "" else name.strip("/")  # an npy file has no names
    chosen = [plane for plane in rows if (plane.role == "science" if wanted is None else plane.name == wanted)]
    if len(chosen) != 1:
        names = ", ".join(plane.name for plane in rows)
        raise InputError(
            f"{path}: has no stack named {name}; it holds {names}."
            if wanted is not None
            else f"{path}: holds several stacks of images ({names}); select one with --image NAME."
        )
    pixels, _, changes = chosen[0].read()
    unused = tuple(f"{plane} not used" for plane in rows if plane.role != "science")
    if pixel_scale is None and "pixel_scale" in content.numbers_of_rows:
        pixel_scale = content.numbers["pixel_scale"]
    elif pixel_scale is None:
        pixel_scale = _stated_scale(chosen[0].path, chosen[0].key, change_stamp(path))
    return Image(pixels, pixel_scale, (*changes, *unused))


@lru_cache(maxsize=8)
def _stated_scale(path: Path, key: str | None, _stamp: bytes) -> float | None:
    """Return the pixel scale that a file states for all images of a stack, arcsec; None without any."""
    suffix = path.suffix.lower()
    if suffix in _HDF5:
        h5py = require_h5py(path)
        with reject_damaged(path, "HDF5"), h5py.File(path, "r") as file:
            datasets = datasets_of(file, h5py)
            return hdf5.stated_scale(path, datasets[str(key)], datasets)
    if suffix == ".npz":
        archive, members = open_archive(path)
        with reject_damaged(path, ".npz"), archive:
            return npy.stated_scale(path, archive, members)
    return None
