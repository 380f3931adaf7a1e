"""Labelled images in arrays: an npz or HDF5 file, or images.npy and labels.npy. Images are read one at a time."""

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int

from darklens.data.classes import CLASSES, label_of
from darklens.data.readers import require_file
from darklens.data.readers.hdf5 import datasets_of, require_h5py, require_readable
from darklens.data.readers.hdf5 import stated_scale as hdf5_scale
from darklens.data.readers.image import Image, plane_shape, reject_damaged, require_image
from darklens.data.readers.npy import Readable, open_archive, read_header
from darklens.data.readers.npy import stated_scale as npz_scale
from darklens.data.readers.pixel_scale import unless_replaced
from darklens.errors import InputError

IMAGES, LABELS = "images", "labels"
MAX_IMAGES, MAX_BYTES = 10_000_000, 1_000_000_000_000  # of a file, of which only one image at a time is in memory


@dataclass(frozen=True)
class LabelledArrays:
    """Labelled images of a file.

    Attributes:
        path: The file.
        labels: Number of the class of each image.
        images: Returns an iterator over the images, which closes the file at its end.
    """

    path: Path
    labels: Int[np.ndarray, " k"]
    images: Callable[[], Iterator[Image]]


def open_labelled_arrays(source: Path) -> LabelledArrays | None:
    """Open a file of labelled images, or a folder with images.npy and labels.npy; return None if it is neither.

    Raises:
        InputError: If the file is damaged, has no images with labels, or a label is not a class.
    """
    if source.is_dir():
        if not (source / f"{IMAGES}.npy").is_file() or not (source / f"{LABELS}.npy").is_file():
            return None
        return _open_npy(source / f"{IMAGES}.npy", source / f"{LABELS}.npy")
    if not source.exists() and not source.is_symlink():
        return None
    head = require_file(source, max_bytes=MAX_BYTES)
    if head.startswith(b"PK\x03\x04"):
        return _open_npz(source)
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return _open_hdf5(source)
    raise InputError(
        f"{source}: has no labels; give a folder with {', '.join(CLASSES)}, or an npz or HDF5 file with "
        f"{IMAGES} and {LABELS}."
    )


def _open_npy(images: Path, labels: Path) -> LabelledArrays:
    for path in (images, labels):
        require_file(path, max_bytes=MAX_BYTES)
    with reject_damaged(labels, ".npy"), labels.open("rb") as stream:
        numbers = _label_numbers(labels, _read_small_array(stream, labels))
    with reject_damaged(images, ".npy"), images.open("rb") as stream:
        header = read_header(stream)
    _require_shapes(images, header[0], header[2], len(numbers))

    def read() -> Iterator[Image]:
        with images.open("rb") as stream:
            yield from _read_images(images, stream, ".npy", None)

    return LabelledArrays(images, numbers, read)


def _open_npz(path: Path) -> LabelledArrays:
    archive, members = open_archive(path)
    try:
        _require_arrays(path, members)
        with reject_damaged(path, ".npz"):
            with archive.open(members[LABELS]) as stream:
                numbers = _label_numbers(path, _read_small_array(stream, path))
            with archive.open(members[IMAGES]) as stream:
                header = read_header(stream)
            scale = unless_replaced(None, lambda: npz_scale(path, archive, members))
        _require_shapes(path, header[0], header[2], len(numbers))
    except BaseException:
        archive.close()
        raise

    def read() -> Iterator[Image]:
        with archive, archive.open(members[IMAGES]) as stream:
            yield from _read_images(path, stream, ".npz", scale)

    return LabelledArrays(path, numbers, read)


def _open_hdf5(path: Path) -> LabelledArrays:
    h5py = require_h5py(path)
    with reject_damaged(path, "HDF5"):
        file = h5py.File(path, "r")
    try:
        with reject_damaged(path, "HDF5"):
            datasets = datasets_of(file, h5py)
            _require_arrays(path, datasets)
            images, labels = datasets[IMAGES], datasets[LABELS]
            _require_shapes(path, images.shape, images.dtype, labels.shape[0])
            for dataset in (images, labels):
                require_readable(path, dataset, max_chunks=MAX_IMAGES)
            text = labels.dtype.kind == "O" and h5py.check_string_dtype(labels.dtype) is not None
            values = labels.asstr()[()] if text else labels[()]
            numbers = _label_numbers(path, np.asarray(values, dtype=str if text else None))
            scale = unless_replaced(None, lambda: hdf5_scale(path, images, datasets))
    except BaseException:
        file.close()
        raise

    def read() -> Iterator[Image]:
        with file:
            for i in range(images.shape[0]):
                with reject_damaged(path, "HDF5"):
                    plane = np.asarray(images[i]).reshape(plane_shape(images.shape[1:]) or ()).astype(np.float64)
                yield Image(plane, scale)

    return LabelledArrays(path, numbers, read)


def _require_arrays(path: Path, arrays: Collection[str]) -> None:
    for name in (IMAGES, LABELS):
        if name not in arrays:
            listed = ", ".join(list(arrays)[:8]) or "nothing"
            raise InputError(f"{path}: has no array {name!r} (it has {listed}); an import needs {IMAGES} and {LABELS}.")


def _require_shapes(path: Path, shape: tuple[int, ...], dtype: np.dtype, n_labels: int) -> None:
    if len(shape) not in (3, 4) or plane_shape(shape[1:]) is None:
        raise InputError(f"{path}: {IMAGES} has shape {shape}; (k, n, n) or (k, 1, n, n) is expected.")
    if shape[0] != n_labels:
        raise InputError(f"{path}: has {shape[0]} {IMAGES} and {n_labels} {LABELS}.")
    require_image(path, shape[1:], dtype)
    if not 0 < n_labels <= MAX_IMAGES:
        raise InputError(f"{path}: has {n_labels} images; an import takes 1 to {MAX_IMAGES:,}.")


def _read_images(path: Path, stream: Readable, kind: str, scale: float | None) -> Iterator[Image]:
    with reject_damaged(path, kind):
        shape, fortran_order, dtype = read_header(stream)
    if fortran_order:
        raise InputError(f"{path}: {IMAGES} is in Fortran order; save it with numpy.ascontiguousarray.")
    n_bytes = math.prod(shape[1:]) * dtype.itemsize
    for _ in range(shape[0]):
        with reject_damaged(path, kind):
            plane = np.frombuffer(stream.read(n_bytes), dtype=dtype, count=math.prod(shape[1:]))
        yield Image(plane.reshape(plane_shape(shape[1:]) or ()).astype(np.float64), scale)


def _read_small_array(stream: Readable, path: Path) -> np.ndarray:
    """Read a one-dimensional array of numbers or short strings, with at most `MAX_IMAGES` elements."""
    shape, _, dtype = read_header(stream)
    if dtype.kind not in "iufUS" or dtype.itemsize > 256 or len(shape) > 1 or math.prod(shape) > MAX_IMAGES:
        raise InputError(
            f"{path}: {LABELS} holds {dtype} values of shape {shape}; one number or name per image is expected."
        )
    n = math.prod(shape)
    return np.frombuffer(stream.read(n * dtype.itemsize), dtype=dtype, count=n).reshape(shape)


def _label_numbers(path: Path, values: np.ndarray) -> Int[np.ndarray, " k"]:
    if values.ndim != 1:
        raise InputError(f"{path}: {LABELS} has shape {values.shape}; (k,) is expected.")
    if values.dtype.kind == "S":
        values = np.char.decode(values, "latin-1")
    unique, inverse = np.unique(values, return_inverse=True)
    numbers = [label_of(str(value.item() if hasattr(value, "item") else value)) for value in unique]
    unknown = [str(value) for value, number in zip(unique, numbers, strict=True) if number is None]
    if unknown:
        raise InputError(
            f"{path}: {LABELS} has {unknown[0]!r}; labels are {', '.join(CLASSES)}, or 0 to {len(CLASSES) - 1}."
        )
    return np.array(numbers, dtype=np.int64)[inverse.reshape(-1)]
