"""Reader of HDF5 files. It ignores links to other files and external storage, so it reads nothing outside the file."""

import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from darklens.data.readers.image import (
    MAX_PIXELS,
    Image,
    choose_image,
    is_plane,
    reject_damaged,
    require_image,
    valid_pixel_scale,
)
from darklens.errors import InputError

DEFAULT_NAMES = ("image", "image_data")
TRANSFORM = "transform_pix2angle"  # written by lenstronomy and dolphin: steps of one pixel in x and y, arcsec
MAX_DEPTH, MAX_OBJECTS, MAX_CHUNKS = 4, 1000, 10_000
_DEFLATE, _SHUFFLE, _FLETCHER32 = 1, 2, 3  # numbers of the built-in HDF5 filters that are allowed


def read_hdf5(path: Path, name: str | None = None) -> Image:
    """Read the dataset `name` of an HDF5 file, or its only image, or the one called `image` or `image_data`.

    The pixel scale is the attribute `pixel_scale` (arcsec) of the dataset or the file, or else the pixel size in the
    dataset `transform_pix2angle` of the same group.

    Raises:
        InputError: If h5py is not installed, or the file is damaged, too large, or has no such image.
    """
    try:
        import h5py
    except ImportError:
        raise InputError(f"{path}: HDF5 files need h5py; pip install 'darklens[hdf5]'.") from None
    with reject_damaged(path, "HDF5"), h5py.File(path, "r") as file:
        datasets = datasets_of(file, h5py)
        planes = [key for key, item in datasets.items() if is_plane(item.shape) and min(item.shape[-2:]) > 2]
        path_in_file = None if name is None else name.strip("/")
        if not planes and path_in_file is None and len(datasets) == 1:
            item = next(iter(datasets.values()))
            require_image(path, item.shape, item.dtype)
        image = datasets[choose_image(path, planes, path_in_file, DEFAULT_NAMES, "dataset")]
        height, width = require_image(path, image.shape, image.dtype)
        require_readable(path, image)
        pixels = np.asarray(image[()]).reshape(height, width).astype(np.float64)
        transform = datasets.get(f"{image.parent.name}/{TRANSFORM}".strip("/"))
        return Image(pixels, _pixel_scale(path, file, image, transform))


def require_readable(path: Path, dataset: Any, *, max_chunks: int = MAX_CHUNKS) -> None:
    """Check that reading a dataset needs no more memory than its shape states, and no filter plug-in.

    Args:
        path: The file, for messages.
        dataset: Dataset of h5py whose data lie in the file.
        max_chunks: Largest number of chunks.

    Raises:
        InputError: If the dataset has other filters, or too large or too many chunks.
    """
    filters = dataset.id.get_create_plist()
    numbers = [filters.get_filter(i)[0] for i in range(filters.get_nfilters())]
    if not set(numbers) <= {_DEFLATE, _SHUFFLE, _FLETCHER32} or numbers.count(_DEFLATE) > 1:
        raise InputError(
            f"{path}: is compressed with unsupported filters; save the image again with gzip or without compression."
        )
    if dataset.chunks is None:
        return
    size, n_chunks = math.prod(dataset.chunks), dataset.id.get_num_chunks()
    if size > MAX_PIXELS or n_chunks > max_chunks:
        raise InputError(f"{path}: is stored in too large or too many chunks; save the image again without chunks.")
    for i in range(n_chunks if _DEFLATE in numbers else 0):
        # HDF5 does not limit the decompressed size of a chunk.
        mask, compressed = dataset.id.read_direct_chunk(dataset.id.get_chunk_info(i).chunk_offset)
        limit = size * dataset.dtype.itemsize + 8
        if not mask and len(zlib.decompressobj().decompress(compressed, limit)) == limit:
            raise InputError(f"{path}: a chunk decompresses to more than its size; save the image again.")


def datasets_of(file: Any, h5py: Any) -> dict[str, Any]:
    """Return the datasets whose data lie in this file, by path without the leading slash."""
    datasets: dict[str, Any] = {}
    groups, n_objects = [("", file, 0)], 0
    while groups:
        prefix, group, depth = groups.pop()
        if len(group) > MAX_OBJECTS:  # checked before their names are read
            return datasets
        for key in group:
            n_objects += 1
            if n_objects > MAX_OBJECTS:
                return datasets
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                continue
            item = group[key]
            if isinstance(item, h5py.Group) and depth < MAX_DEPTH:
                groups.append((f"{prefix}{key}/", item, depth + 1))
            elif isinstance(item, h5py.Dataset) and item.shape and not item.is_virtual and not item.external:
                datasets[f"{prefix}{key}"] = item
    return datasets


def _pixel_scale(path: Path, file: Any, image: Any, transform: Any) -> float | None:
    for holder in (image, file):
        if "pixel_scale" in holder.attrs:
            attribute = holder.attrs.get_id("pixel_scale")
            if attribute.shape not in ((), (1,)) or attribute.dtype.kind not in "fiu":
                return None
            return valid_pixel_scale(holder.attrs["pixel_scale"])
    if transform is None or transform.shape != (2, 2) or transform.dtype.kind != "f":
        return None
    require_readable(path, transform)
    return valid_pixel_scale(math.sqrt(abs(np.linalg.det(np.asarray(transform[()], dtype=np.float64)))))
