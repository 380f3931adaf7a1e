"""Reader of HDF5 files. It ignores links to other files and external storage, so it reads nothing outside the file."""

import itertools
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from darklens.data.readers.image import MAX_PIXELS, Image, choose_image, reject_damaged, require_image
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

MAX_DEPTH, MAX_OBJECTS, MAX_CHUNKS = 4, 1000, 10_000
# Numbers of the HDF5 filters that are allowed: those of HDF5 itself, and LZF, which h5py brings.
_DEFLATE, _SHUFFLE, _FLETCHER32, _LZF = 1, 2, 3, 32000


def read_hdf5(path: Path, name: str | None = None, pixel_scale: float | None = None) -> Image:
    """Read the dataset `name` of an HDF5 file, or its science image.

    That is the dataset `image`, `image_data`, `sci`, `data` or the like, in any group, or else the only image that is
    no weight map, noise map, mask or PSF. The pixel scale is the attribute or dataset `pixel_scale`, or the like, of
    the dataset, its groups or the file, in arcsec unless it states a unit, or else the pixel size in the dataset
    `transform_pix2angle` of the same group.

    Raises:
        InputError: If h5py is not installed, or the file is damaged, too large, or has no such image.
    """
    h5py = require_h5py(path)
    with reject_damaged(path, "HDF5"), h5py.File(path, "r") as file:
        datasets = datasets_of(file, h5py)
        path_in_file = None if name is None else name.strip("/")
        arrays = {
            key: (item.shape, item.dtype)
            for key, item in datasets.items()
            if key == path_in_file
            or not (key.endswith(TRANSFORM) or (item.size <= 4 and is_name(key.rsplit("/", 1)[-1])))
        }
        image = datasets[choose_image(path, arrays, path_in_file, "dataset")]
        height, width = require_image(path, image.shape, image.dtype)
        require_readable(path, image)
        pixels = np.asarray(image[()]).reshape(height, width).astype(np.float64)
        return Image(pixels, unless_replaced(pixel_scale, lambda: stated_scale(path, image, datasets)))


def require_h5py(path: Path) -> Any:
    """Return the module h5py; raise InputError if it is not installed."""
    try:
        import h5py
    except ImportError:
        raise InputError(f"{path}: HDF5 files need h5py; pip install 'darklens[hdf5]'.") from None
    return h5py


def require_readable(path: Path, dataset: Any, *, rows: range | None = None, max_chunks: int = MAX_CHUNKS) -> None:
    """Check that reading a dataset needs no more memory than its shape states, and no filter plug-in.

    Args:
        path: The file, for messages.
        dataset: Dataset of h5py whose data lie in the file.
        rows: Part of the first axis that is read; None for all.
        max_chunks: Largest number of chunks that are read.

    Raises:
        InputError: If the dataset has other filters, or too large or too many chunks.
    """
    properties = dataset.id.get_create_plist()
    filters = [properties.get_filter(i) for i in range(properties.get_nfilters())]
    numbers = [number for number, *_ in filters]
    if not set(numbers) <= {_DEFLATE, _SHUFFLE, _FLETCHER32, _LZF} or len(set(numbers)) < len(numbers):
        raise InputError(
            f"{path}: is compressed with unsupported filters; save the image again with gzip or without compression."
        )
    if dataset.chunks is None:
        return
    size = math.prod(dataset.chunks)
    n_chunks = dataset.id.get_num_chunks() if rows is None else math.prod(map(len, _corners(dataset, rows)))
    if size > MAX_PIXELS or n_chunks > max_chunks:
        raise InputError(f"{path}: is stored in too large or too many chunks; save the image again without chunks.")
    limit = size * dataset.dtype.itemsize + 8
    if any(number == _LZF and max(values[2:], default=0) > limit for number, _, values, _ in filters):
        raise InputError(f"{path}: a chunk decompresses to more than its size; save the image again.")
    packing = [i for i, number in enumerate(numbers) if number in (_DEFLATE, _LZF)]
    for skipped, content in _chunks(dataset, rows) if packing else ():
        # HDF5 does not limit the decompressed size of a chunk.
        applied = [numbers[k] for k in packing if not skipped >> k & 1]
        if _FLETCHER32 in numbers and not skipped >> numbers.index(_FLETCHER32) & 1:
            content = content[:-4]  # the checksum
        if len(applied) > 1 or (applied and _decompressed_size(content, applied[0], limit) >= limit):
            raise InputError(f"{path}: a chunk decompresses to more than its size; save the image again.")


def _corners(dataset: Any, rows: range) -> list[range]:
    """Return the positions of chunks along each axis, for some rows of a dataset."""
    corners = [range(0, n, step) for n, step in zip(dataset.shape, dataset.chunks, strict=True)]
    step = dataset.chunks[0]
    return [range(rows.start // step * step, rows.stop, step), *corners[1:]]


def _chunks(dataset: Any, rows: range | None) -> Iterator[tuple[int, bytes]]:
    """Yield the stored chunks of a dataset, or of some rows: the mask of skipped filters, and the bytes."""
    if rows is None:
        for i in range(dataset.id.get_num_chunks()):
            yield dataset.id.read_direct_chunk(dataset.id.get_chunk_info(i).chunk_offset)
        return
    for corner in itertools.product(*_corners(dataset, rows)):
        if dataset.id.get_chunk_info_by_coord(corner).byte_offset is not None:  # None: never written
            yield dataset.id.read_direct_chunk(corner)


def _decompressed_size(content: bytes, number: int, limit: int) -> int:
    """Return the decompressed size of a chunk, or `limit` if it is larger."""
    if number == _DEFLATE:
        return len(zlib.decompressobj().decompress(content, limit))
    size = at = 0
    while at < len(content) and size < limit:  # LZF: runs of literal bytes, and copies of earlier bytes
        control = content[at]
        if control < 32:
            size, at = size + control + 1, at + control + 2
        elif control < 224:
            size, at = size + (control >> 5) + 2, at + 2
        else:
            size, at = size + (content[at + 1] if at + 1 < len(content) else 0) + 9, at + 3
    return min(size, limit)


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
            elif (
                isinstance(item, h5py.Dataset) and item.shape is not None and not item.is_virtual and not item.external
            ):
                datasets[f"{prefix}{key}"] = item
    return datasets


def stated_scale(path: Path, image: Any, datasets: Mapping[str, Any]) -> float | None:
    """Return the pixel scale that an HDF5 file states for a dataset, arcsec; None without any.

    Attributes of the dataset come first, then attributes and datasets of its group, and so on up to the file.

    Args:
        path: The file, for messages.
        image: The dataset.
        datasets: Result of `datasets_of`.

    Raises:
        PixelScaleError: If a pixel scale cannot be read.
        InputError: If pixels are oblong or slanted.
    """
    if (scale := combine(path, _from_attributes(path, image))) is not None:
        return scale
    folder = image.name
    while folder.strip("/"):
        folder = folder.rpartition("/")[0]
        group = image.file[folder or "/"]
        scales = _from_attributes(path, group)
        for key, item in datasets.items():
            parent, _, name = key.rpartition("/")
            if parent == folder.strip("/") and is_name(name) and (item.ndim < 2 or item.size <= 4):
                scales[name] = _from_dataset(path, name, item)
        if (scale := combine(path, scales)) is not None:
            return scale
    transform = datasets.get(f"{image.parent.name}/{TRANSFORM}".strip("/"))
    if transform is None or transform.shape != (2, 2) or transform.dtype.kind != "f":
        return None
    require_readable(path, transform)
    return parse(path, TRANSFORM, transform[()])


def _from_attributes(path: Path, holder: Any) -> dict[str, float]:
    names = list(holder.attrs) if len(holder.attrs) <= MAX_OBJECTS else []
    scales = {}
    for name in filter(is_name, names):
        attribute = holder.attrs.get_id(name)
        if math.prod(attribute.shape or ()) > 4:
            raise PixelScaleError(f"{path}: states {math.prod(attribute.shape)} values of {name}; give --pixel-scale.")
        units = [holder.attrs[key] for key in (f"{name}_unit", f"{name}_units") if key in names]
        scales[name] = parse(path, name, holder.attrs[name], _unit(path, name, units))
    return scales


def _from_dataset(path: Path, name: str, dataset: Any) -> float:
    if dataset.size > (MAX_VALUES if dataset.dtype.kind in "fiu" else 2):
        raise PixelScaleError(f"{path}: states {name} as {dataset.size} {dataset.dtype} values; give --pixel-scale.")
    require_readable(path, dataset)
    units = [dataset.attrs[key] for key in ("unit", "units") if key in dataset.attrs]
    return parse(path, name, dataset[()], _unit(path, name, units))


def _unit(path: Path, name: str, units: Sequence[object]) -> str | None:
    """Return the unit that the first of some attributes names; None without any."""
    if not units:
        return None
    text = units[0].decode("latin-1") if isinstance(units[0], bytes) else str(units[0])
    return unit_named(path, name, text) if text.strip() else None
