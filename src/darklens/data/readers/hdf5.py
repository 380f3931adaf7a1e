"""HDF5 files. Nothing outside the file is read: links to other files and data kept in them are left alone."""

import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from darklens.data.readers.image import MAX_PIXELS, Image, choose, damaged, is_plane, require_image, sensible_scale
from darklens.errors import InputError

USUAL = ("image", "image_data")
TRANSFORM = "transform_pix2angle"  # of lenstronomy and dolphin: a step of one pixel in x and y, in arcsec
MAX_DEPTH, MAX_OBJECTS, MAX_CHUNKS = 4, 1000, 10_000
_DEFLATE, _SHUFFLE, _FLETCHER32 = 1, 2, 3  # HDF5's numbers of the filters that are applied; none is from a plug-in


def read_hdf5(path: Path, name: str | None = None) -> Image:
    """Read the dataset `name` of an HDF5 file, or its only image, or the one called `image` or `image_data`.

    The pixel scale is the attribute `pixel_scale` (arcsec) of the dataset or the file, or the length of the steps in
    `transform_pix2angle` beside it.

    Raises:
        InputError: If h5py is not installed, or the file is damaged, enormous, or has no such image.
    """
    try:
        import h5py
    except ImportError:
        raise InputError(f"{path}: HDF5 files need h5py; pip install 'darklens[hdf5]'.") from None
    with damaged(path, "HDF5"), h5py.File(path, "r") as file:
        found = datasets_of(file, h5py)
        planes = [key for key, item in found.items() if is_plane(item.shape) and min(item.shape[-2:]) > 2]
        wanted = None if name is None else name.strip("/")
        if not planes and wanted is None and len(found) == 1:
            item = next(iter(found.values()))
            require_image(path, item.shape, item.dtype)
        chosen = found[choose(path, planes, wanted, USUAL, "dataset")]
        height, width = require_image(path, chosen.shape, chosen.dtype)
        require_readable(path, chosen)
        pixels = np.asarray(chosen[()]).reshape(height, width).astype(np.float64)
        beside = found.get(f"{chosen.parent.name}/{TRANSFORM}".strip("/"))
        return Image(pixels, _pixel_scale(path, file, chosen, beside))


def require_readable(path: Path, dataset: Any, *, most: int = MAX_CHUNKS) -> None:
    """Check that reading a dataset takes no more memory than its shape says, and runs no plug-in.

    Args:
        path: The file, for messages.
        dataset: Of h5py, wholly in the file.
        most: Chunks.

    Raises:
        InputError: If it does.
    """
    filters = dataset.id.get_create_plist()
    numbers = [filters.get_filter(i)[0] for i in range(filters.get_nfilters())]
    if not set(numbers) <= {_DEFLATE, _SHUFFLE, _FLETCHER32} or numbers.count(_DEFLATE) > 1:
        raise InputError(f"{path}: is packed by unusual filters; save the image again with gzip or unpacked.")
    if dataset.chunks is None:
        return
    size, n_chunks = math.prod(dataset.chunks), dataset.id.get_num_chunks()
    if size > MAX_PIXELS or n_chunks > most:
        raise InputError(f"{path}: is stored in enormous chunks; save the image again without them.")
    for i in range(n_chunks if _DEFLATE in numbers else 0):
        # The library unpacks a chunk to whatever comes out.
        mask, packed = dataset.id.read_direct_chunk(dataset.id.get_chunk_info(i).chunk_offset)
        unpacking, most = zlib.decompressobj(), size * dataset.dtype.itemsize + 8
        if not mask and len(unpacking.decompress(packed, most)) == most:
            raise InputError(f"{path}: a chunk unpacks to more than its size; save the image again.")


def datasets_of(file: Any, h5py: Any) -> dict[str, Any]:
    """Return the datasets that are wholly in this file, by their path without the first slash."""
    found: dict[str, Any] = {}
    groups, seen = [("", file, 0)], 0
    while groups:
        prefix, group, depth = groups.pop()
        if len(group) > MAX_OBJECTS:  # before their names are read
            return found
        for key in group:
            seen += 1
            if seen > MAX_OBJECTS:
                return found
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                continue
            item = group[key]
            if isinstance(item, h5py.Group) and depth < MAX_DEPTH:
                groups.append((f"{prefix}{key}/", item, depth + 1))
            elif isinstance(item, h5py.Dataset) and item.shape and not item.is_virtual and not item.external:
                found[f"{prefix}{key}"] = item
    return found


def _pixel_scale(path: Path, file: Any, chosen: Any, transform: Any) -> float | None:
    for holder in (chosen, file):
        if "pixel_scale" in holder.attrs:
            stored = holder.attrs.get_id("pixel_scale")
            if stored.shape not in ((), (1,)) or stored.dtype.kind not in "fiu":
                return None
            return sensible_scale(holder.attrs["pixel_scale"])
    if transform is None or transform.shape != (2, 2) or transform.dtype.kind != "f":
        return None
    require_readable(path, transform)
    return sensible_scale(math.sqrt(abs(np.linalg.det(np.asarray(transform[()], dtype=np.float64)))))
