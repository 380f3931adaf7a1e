"""Many images and their labels in one file: npz or HDF5, or images.npy beside labels.npy. Read one image at a time."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from darklens.data.classes import CLASSES, label_of
from darklens.data.readers import require_file
from darklens.data.readers.hdf5 import datasets_of, require_readable
from darklens.data.readers.image import Image, damaged, require_image, sensible_scale
from darklens.data.readers.npy import Readable, open_archive, read_header
from darklens.errors import InputError

IMAGES, LABELS = "images", "labels"
MAX_IMAGES, MAX_BYTES = 10_000_000, 1_000_000_000_000  # of a file from which one image is read at a time


@dataclass(frozen=True)
class Stack:
    """Labelled images of a file.

    Attributes:
        path: The file.
        labels: Numbers of the classes.
        images: Gives the images one after the other, and closes the file in the end.
    """

    path: Path
    labels: Int[np.ndarray, " k"]
    images: Callable[[], Iterator[Image]]


def open_stack(source: Path) -> Stack | None:
    """Return the labelled images of a file, or of a folder with images.npy and labels.npy; none, if it is neither.

    Raises:
        InputError: If the file is damaged, has no images with labels, or a label is no class.
    """
    if source.is_dir():
        if not (source / f"{IMAGES}.npy").is_file() or not (source / f"{LABELS}.npy").is_file():
            return None
        return _of_npy(source / f"{IMAGES}.npy", source / f"{LABELS}.npy")
    if not source.exists() and not source.is_symlink():
        return None
    head = require_file(source, most=MAX_BYTES)
    if head.startswith(b"PK\x03\x04"):
        return _of_npz(source)
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return _of_hdf5(source)
    raise InputError(
        f"{source}: holds no labels; give a folder with {', '.join(CLASSES)}, or an npz or HDF5 file with "
        f"{IMAGES} and {LABELS}."
    )


def _of_npy(images: Path, labels: Path) -> Stack:
    for path in (images, labels):
        require_file(path, most=MAX_BYTES)
    with damaged(labels, ".npy"), labels.open("rb") as stream:
        numbers = _labels(labels, *_small(stream, labels))
    with damaged(images, ".npy"), images.open("rb") as stream:
        header = read_header(stream)
    _require_stack(images, header[0], header[2], len(numbers))

    def each() -> Iterator[Image]:
        with images.open("rb") as stream:
            yield from _streamed(images, stream, ".npy", None)

    return Stack(images, numbers, each)


def _of_npz(path: Path) -> Stack:
    archive, members = open_archive(path)
    try:
        for name in (IMAGES, LABELS):
            if name not in members:
                raise _absent(path, name, list(members))
        with damaged(path, ".npz"):
            with archive.open(members[LABELS]) as stream:
                numbers = _labels(path, *_small(stream, path))
            with archive.open(members[IMAGES]) as stream:
                header = read_header(stream)
            scale = None
            if "pixel_scale" in members:
                with archive.open(members["pixel_scale"]) as stream:
                    scale = sensible_scale(_small(stream, path)[0])
        _require_stack(path, header[0], header[2], len(numbers))
    except BaseException:
        archive.close()
        raise

    def each() -> Iterator[Image]:
        with archive, archive.open(members[IMAGES]) as stream:
            yield from _streamed(path, stream, ".npz", scale)

    return Stack(path, numbers, each)


def _of_hdf5(path: Path) -> Stack:
    try:
        import h5py
    except ImportError:
        raise InputError(f"{path}: HDF5 files need h5py; pip install 'darklens[hdf5]'.") from None
    with damaged(path, "HDF5"):
        file = h5py.File(path, "r")
    try:
        with damaged(path, "HDF5"):
            found = datasets_of(file, h5py)
            for name in (IMAGES, LABELS):
                if name not in found:
                    raise _absent(path, name, list(found))
            images, labels = found[IMAGES], found[LABELS]
            _require_stack(path, images.shape, images.dtype, labels.shape[0])
            for dataset in (images, labels):
                require_readable(path, dataset, most=MAX_IMAGES)
            text = labels.dtype.kind == "O" and h5py.check_string_dtype(labels.dtype) is not None
            values = labels.asstr()[()] if text else labels[()]
            numbers = _labels(path, np.asarray(values, dtype=str if text else None))
            scale = _scale(images) or _scale(file)
    except BaseException:
        file.close()
        raise

    def each() -> Iterator[Image]:
        with file:
            for i in range(images.shape[0]):
                with damaged(path, "HDF5"):
                    plane = np.asarray(images[i]).reshape(images.shape[-2:]).astype(np.float64)
                yield Image(plane, scale)

    return Stack(path, numbers, each)


def _scale(holder: Any) -> float | None:
    if "pixel_scale" not in holder.attrs or holder.attrs.get_id("pixel_scale").shape not in ((), (1,)):
        return None
    return sensible_scale(holder.attrs["pixel_scale"])


def _absent(path: Path, name: str, there: list[str]) -> InputError:
    listed = ", ".join(there[:8]) or "nothing"
    return InputError(f"{path}: has no {name!r} ({listed}); a file to import has {IMAGES} and {LABELS}.")


def _require_stack(path: Path, shape: tuple[int, ...], dtype: np.dtype, n_labels: int) -> None:
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[1] != 1):
        raise InputError(f"{path}: {IMAGES} has shape {shape}; (k, n, n) or (k, 1, n, n) is expected.")
    if shape[0] != n_labels:
        raise InputError(f"{path}: has {shape[0]} {IMAGES} and {n_labels} {LABELS}.")
    require_image(path, shape[-2:], dtype)
    if not 0 < n_labels <= MAX_IMAGES:
        raise InputError(f"{path}: has {n_labels} images; import between 1 and {MAX_IMAGES:,} at a time.")


def _streamed(path: Path, stream: Readable, kind: str, scale: float | None) -> Iterator[Image]:
    with damaged(path, kind):
        shape, fortran_order, dtype = read_header(stream)
    if fortran_order:
        raise InputError(f"{path}: {IMAGES} is in Fortran order; save it with numpy.ascontiguousarray.")
    n_bytes = math.prod(shape[1:]) * dtype.itemsize
    for _ in range(shape[0]):
        with damaged(path, kind):
            plane = np.frombuffer(stream.read(n_bytes), dtype=dtype, count=math.prod(shape[1:]))
        yield Image(plane.reshape(shape[-2:]).astype(np.float64), scale)


def _small(stream: Readable, path: Path) -> tuple[np.ndarray]:
    """Return an array of numbers or short text, of at most as many elements as there may be images."""
    shape, _, dtype = read_header(stream)
    if dtype.kind not in "iufUS" or dtype.itemsize > 256 or len(shape) > 1 or math.prod(shape) > MAX_IMAGES:
        raise InputError(f"{path}: {LABELS} holds {dtype} values of shape {shape}; one number or name an image is due.")
    n = math.prod(shape)
    return (np.frombuffer(stream.read(n * dtype.itemsize), dtype=dtype, count=n).reshape(shape),)


def _labels(path: Path, values: np.ndarray) -> Int[np.ndarray, " k"]:
    if values.ndim != 1:
        raise InputError(f"{path}: {LABELS} has shape {values.shape}; (k,) is expected.")
    if values.dtype.kind == "S":
        values = np.char.decode(values, "latin-1")
    different, back = np.unique(values, return_inverse=True)
    numbers = [label_of(str(value.item() if hasattr(value, "item") else value)) for value in different]
    wrong = [str(value) for value, number in zip(different, numbers, strict=True) if number is None]
    if wrong:
        raise InputError(
            f"{path}: {LABELS} has {wrong[0]!r}; labels are {', '.join(CLASSES)}, or 0 to {len(CLASSES) - 1}."
        )
    return np.array(numbers, dtype=np.int64)[back.reshape(-1)]
