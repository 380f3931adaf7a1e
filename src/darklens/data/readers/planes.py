"""All images of a file with their roles: science image, noise map, mask, PSF, exposure map; and rows of stacks."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from darklens.data.readers import read_image, require_file, warnings_lock
from darklens.data.readers.fits import list_units
from darklens.data.readers.hdf5 import datasets_of, require_h5py, require_readable
from darklens.data.readers.image import MAX_BYTES, plane_shape, reject_damaged, require_image
from darklens.data.readers.npy import open_archive, read_header
from darklens.data.readers.pixel_scale import TRANSFORM, is_name
from darklens.data.readers.roles import Role, role_of
from darklens.errors import InputError
from darklens.files import change_stamp

_NUMBERS = ("exposure_time", "exptime", "exposure", "background_rms", "gain", "noise", "sigma")
_LARGEST_STACK = 10**13  # bytes; only single images are read
_MAX_ROWS = 1_000_000  # images in a stack, each of which has a name in memory
_PART_BYTES = 30_000_000  # of the part of a stack that is read at once, float64
_NPY = b"\x93NUMPY"
_ZIP, _HDF5, _FITS = b"PK\x03\x04", b"\x89HDF\r\n\x1a\n", (b"SIMPLE  =", b"\x1f\x8b", b"BZh")


@dataclass(frozen=True)
class Plane:
    """An image of a file, not yet read.

    Attributes:
        path: The file.
        name: Name of the array, dataset or header unit; empty if the file has only one image without a name.
        key: Name under which `read_image` reads it; None for the only image of a file.
        role: What it is by its name, or by that of the file if it has no name.
        shape: Rows and columns.
        unit: BUNIT, if stated.
        row: Row of a stack of images; None if it is no stack.
    """

    path: Path
    name: str
    key: str | None
    role: Role
    shape: tuple[int, int]
    unit: str = ""
    row: int | None = None

    def __str__(self) -> str:
        return f"{self.path.name}[{self.name}]" if self.name else self.path.name

    def read(self) -> tuple[Float[np.ndarray, "rows columns"], float | None, tuple[str, ...]]:
        """Return pixels (row 0 first), the stated pixel scale in arcsec or None, and remarks of the reader.

        Raises:
            InputError: If the image cannot be read.
        """
        if self.row is not None:
            rows = max(1, _PART_BYTES // (8 * math.prod(self.shape)))
            part = _part(self.path, self.key, self.row // rows * rows, rows, change_stamp(self.path))
            return part[self.row % rows].astype(np.float64), None, ()
        image = read_image(self.path, name=self.key)
        return np.asarray(image.pixels, dtype=np.float64), image.pixel_scale, image.changes


@dataclass(frozen=True)
class Contents:
    """What a file holds.

    Attributes:
        planes: Its images.
        numbers: Numbers by name, as `exposure_time` (s), `background_rms`, `gain`, and `pixel_scale` of stacks.
        n_rows: Number of images in a stack, such as an npz with `images` (k, n, n); None for other files.
        numbers_of_rows: Names of the numbers that each image of a stack has for itself.
    """

    planes: tuple[Plane, ...]
    numbers: Mapping[str, float] = field(default_factory=dict)
    n_rows: int | None = None
    numbers_of_rows: frozenset[str] = frozenset()


def contents(path: Path, *, row: int | None = None) -> Contents:
    """Return the images of a file, without reading their pixels.

    Args:
        path: The file.
        row: Row of a stack; the first by default.

    Raises:
        InputError: If the file cannot be used, or has no such row.
    """
    head = require_file(path, max_bytes=_LARGEST_STACK)
    if not head.startswith((_ZIP, _HDF5, _NPY)):
        require_file(path)
    if head.startswith(_FITS):
        with reject_damaged(path, "FITS"), warnings_lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _of_fits(path)
    if head.startswith((_ZIP, _HDF5)):
        shapes, values = _arrays_of_npz(path) if head.startswith(_ZIP) else _arrays_of_hdf5(path)
        return _of_arrays(path, shapes, values, row or 0)
    if head.startswith(_NPY) and (shape := _stack_shape(path)) is not None:
        stack = _of_arrays(path, {"": shape}, {}, row or 0)
        return replace(stack, planes=tuple(replace(plane, role=role_of(path.stem)) for plane in stack.planes))
    image = read_image(path)
    rows, columns = np.shape(image.pixels)
    return Contents((Plane(path, "", None, role_of(path.stem), (rows, columns)),))


def n_rows_of(path: Path) -> int | None:
    """Return the number of images in a stack; None for other files, of which only npz and HDF5 files are opened.

    Raises:
        InputError: If the file cannot be used.
    """
    head = require_file(path, max_bytes=_LARGEST_STACK)
    if head.startswith((_ZIP, _HDF5)) or (head.startswith(_NPY) and _stack_shape(path) is not None):
        return contents(path).n_rows
    return None


def _stack_shape(path: Path) -> tuple[int, ...] | None:
    """Return the shape of an npy file with several images; None for others."""
    with reject_damaged(path, ".npy"), path.open("rb") as stream:
        shape, _, _ = read_header(stream)
    return shape if len(shape) > 2 and plane_shape(shape) is None and plane_shape(shape[1:]) is not None else None


def _of_fits(path: Path) -> Contents:
    planes: list[Plane] = []
    numbers: dict[str, float] = {}
    with reject_damaged(path, "FITS"):  # a card that cannot be parsed
        for number, name, shape, header in list_units(path):
            plane = plane_shape(shape)
            for key, keywords in (("exposure_time", ("EXPTIME", "EXPOSURE")), ("gain", ("GAIN", "CCDGAIN", "EGAIN"))):
                for keyword in keywords:
                    value = header.get(keyword)
                    if isinstance(value, int | float) and math.isfinite(value) and value > 0:
                        numbers.setdefault(key, float(value))
            if plane is not None and min(plane) > 0:
                role = role_of(name) if name else role_of(path.name.partition(".")[0])
                unit = header.get("BUNIT", "")
                planes.append(
                    Plane(path, name, str(number), role, plane, unit.strip() if isinstance(unit, str) else "")
                )
    if len(planes) == 1:
        if planes[0].role == "science":  # `PRIMARY` or `SCI` in noise.fits
            planes = [replace(planes[0], role=role_of(path.name.partition(".")[0]))]
    else:  # an unnamed first image is the science image
        planes = [replace(p, role="science") if not p.name and p.role != "science" else p for p in planes]
    return Contents(tuple(planes), numbers)


def _of_arrays(
    path: Path, shapes: Mapping[str, tuple[int, ...]], values: Mapping[str, np.ndarray], row: int
) -> Contents:
    """Return the images of an npz or HDF5 file; an array of several images makes it a stack."""
    science = [key for key in shapes if role_of(key) == "science" and len(shapes[key]) > 2]
    stacks = [k for k in science if plane_shape(shapes[k]) is None or k.rsplit("/", 1)[-1].lower() == "images"]
    n_rows = shapes[stacks[0]][0] if stacks else None
    if n_rows is not None and n_rows > _MAX_ROWS:
        raise InputError(f"{path}: states {n_rows} images; a file may have at most {_MAX_ROWS:,}; split it.")
    if n_rows is not None and not 0 <= row < n_rows:
        raise InputError(f"{path}: has no row {row}; it holds {n_rows} images.")
    planes: list[Plane] = []
    numbers: dict[str, float] = {}
    of_rows: set[str] = set()
    for key, shape in shapes.items():
        per_row = n_rows is not None and len(shape) > 2 and shape[0] == n_rows and key not in values
        plane = plane_shape(shape[1:] if per_row else shape)
        if plane is None or min(plane) < 2 or (key in values) or key.endswith(TRANSFORM):
            continue
        planes.append(Plane(path, key, key, role_of(key), plane, row=row if per_row else None))
    for key, value in values.items():
        name = "pixel_scale" if is_name(key.rsplit("/", 1)[-1]) else key.rsplit("/", 1)[-1].lower()
        if name in _NUMBERS or (name == "pixel_scale" and n_rows is not None):
            flat = value.ravel()
            if flat.size == 1 or flat.size == n_rows:
                numbers[name] = float(flat[row if flat.size > 1 else 0])
            if flat.size == n_rows:
                of_rows.add(name)
    return Contents(tuple(planes), numbers, n_rows, frozenset(of_rows))


def _arrays_of_npz(path: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, np.ndarray]]:
    """Return the shapes of the arrays, and the values of numbers and short lists of numbers."""
    archive, members = open_archive(path)
    shapes: dict[str, tuple[int, ...]] = {}
    values: dict[str, np.ndarray] = {}
    with reject_damaged(path, ".npz"), archive:
        for key, member in members.items():
            with archive.open(member) as stream:
                shape, _, dtype = read_header(stream)
                if dtype.kind not in "fiub" or math.prod(shape) * dtype.itemsize > MAX_BYTES:
                    continue
                shapes[key] = shape
                if len(shape) < 2 and math.prod(shape) <= MAX_BYTES // 1000:
                    values[key] = np.frombuffer(stream.read(math.prod(shape) * dtype.itemsize), dtype=dtype)
    return shapes, values


def _arrays_of_hdf5(path: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, np.ndarray]]:
    """As `_arrays_of_npz`."""
    h5py = require_h5py(path)
    shapes: dict[str, tuple[int, ...]] = {}
    values: dict[str, np.ndarray] = {}
    with reject_damaged(path, "HDF5"), h5py.File(path, "r") as file:
        for key, dataset in datasets_of(file, h5py).items():
            if dataset.dtype.kind not in "fiub":
                continue
            shapes[key] = dataset.shape
            if len(dataset.shape) < 2 and dataset.size <= MAX_BYTES // 1000:
                require_readable(path, dataset)
                values[key] = np.asarray(dataset[()])
    return shapes, values


@lru_cache(maxsize=2)
def _part(path: Path, key: str | None, start: int, n: int, _stamp: bytes) -> Shaped[np.ndarray, "rows height width"]:
    """Return up to n images of a stack; `_stamp` changes if the file does.

    Images are read in parts, because a compressed archive has to be read from its beginning.
    """
    head = require_file(path, max_bytes=_LARGEST_STACK)
    if head.startswith(_HDF5):
        h5py = require_h5py(path)
        with reject_damaged(path, "HDF5"), h5py.File(path, "r") as file:
            dataset = datasets_of(file, h5py)[str(key)]
            height, width = require_image(path, dataset.shape[1:], dataset.dtype)
            rows = range(start, min(start + n, dataset.shape[0]))
            require_readable(path, dataset, rows=rows)
            return np.asarray(dataset[rows.start : rows.stop]).reshape(len(rows), height, width)
    if head.startswith(_NPY):
        with reject_damaged(path, ".npy"), path.open("rb") as stream:
            return _rows_of_npy(path, stream, start, n)
    archive, members = open_archive(path)
    with reject_damaged(path, ".npz"), archive, archive.open(members[str(key)]) as stream:
        return _rows_of_npy(path, stream, start, n)


def _rows_of_npy(path: Path, stream: Any, start: int, n: int) -> Shaped[np.ndarray, "rows height width"]:
    shape, fortran_order, dtype = read_header(stream)
    height, width = require_image(path, shape[1:], dtype)
    if fortran_order:
        raise InputError(f"{path}: is in Fortran order; save it with numpy.ascontiguousarray.")
    n_rows = min(n, shape[0] - start)
    n_bytes = height * width * dtype.itemsize
    stream.seek(start * n_bytes, 1)
    content = stream.read(n_rows * n_bytes)
    return np.frombuffer(content, dtype=dtype, count=n_rows * height * width).reshape(n_rows, height, width)
