"""HDF5 files. Nothing outside the file is read: links to other files and data kept in them are left alone."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from darklens.data.readers.image import MAX_PIXELS, Image, choose, damaged, is_plane, require_image, sensible_scale
from darklens.errors import InputError

USUAL = ("image", "image_data")
TRANSFORM = "transform_pix2angle"  # of lenstronomy and dolphin: a step of one pixel in x and y, in arcsec
MAX_DEPTH, MAX_OBJECTS = 4, 1000


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
        found = _datasets(file, h5py)
        planes = [key for key, item in found.items() if is_plane(item.shape) and min(item.shape[-2:]) > 2]
        wanted = None if name is None else name.strip("/")
        if not planes and wanted is None and len(found) == 1:
            item = next(iter(found.values()))
            require_image(path, item.shape, item.dtype)
        chosen = found[choose(path, planes, wanted, USUAL, "dataset")]
        height, width = require_image(path, chosen.shape, chosen.dtype)
        if chosen.chunks is not None and math.prod(chosen.chunks) > MAX_PIXELS:
            raise InputError(f"{path}: is stored in enormous chunks; save the image again without them.")
        pixels = np.asarray(chosen[()]).reshape(height, width).astype(np.float64)
        return Image(pixels, _pixel_scale(file, chosen))


def _datasets(file: Any, h5py: Any) -> dict[str, Any]:
    """Return the datasets that are wholly in this file, by their path without the first slash."""
    found: dict[str, Any] = {}
    groups, seen = [("", file, 0)], 0
    while groups:
        prefix, group, depth = groups.pop()
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


def _pixel_scale(file: Any, chosen: Any) -> float | None:
    for holder in (chosen, file):
        if "pixel_scale" in holder.attrs:
            return sensible_scale(holder.attrs["pixel_scale"])
    transform = chosen.parent.get(TRANSFORM)
    if transform is None or transform.shape != (2, 2) or transform.dtype.kind != "f":
        return None
    return sensible_scale(math.sqrt(abs(np.linalg.det(np.asarray(transform[()], dtype=np.float64)))))
