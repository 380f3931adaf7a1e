"""The image that a reader returns, and the limits and checks that all readers share."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Shaped

from darklens.data.readers.roles import is_science, science_names
from darklens.errors import DarklensError, InputError

MAX_PIXELS = 16_000_000  # far more than any cut-out of a lens needs
MAX_BYTES = 1_000_000_000  # of a file, or of its decompressed content


@dataclass(frozen=True)
class Image:
    """An image as it is stored in a file.

    Attributes:
        pixels: Pixel values, real numbers of any type, NaN where there is no measurement; row 0 is at the bottom.
        pixel_scale: Side of a pixel in arcsec, if the file states it.
        changes: Changes that the reader made, and warnings about the file, in words.
    """

    pixels: Shaped[np.ndarray, "n m"]
    pixel_scale: float | None = None
    changes: tuple[str, ...] = ()


@contextmanager
def reject_damaged(path: Path, kind: str) -> Iterator[None]:
    """Replace any exception that a library raises on a damaged file by one sentence.

    Raises:
        InputError: If the body raises anything but a `DarklensError`.
    """
    try:
        yield
    except DarklensError:
        raise
    except (Exception, RecursionError):
        raise InputError(f"{path}: the {kind} file is truncated or damaged; copy or create it again.") from None


def require_image(path: Path, shape: Sequence[int], dtype: np.dtype) -> tuple[int, int]:
    """Return height and width of the image that a header describes, before memory is allocated for it.

    Raises:
        InputError: If it is not a two-dimensional array of real numbers, has no pixels, or is too large.
    """
    if dtype.hasobject:
        raise InputError(f"{path}: holds pickled Python objects, which are never loaded; save a plain number array.")
    if dtype.kind not in "fiub":
        raise InputError(f"{path}: holds {dtype} values; save a real-valued number array.")
    plane = plane_shape(shape)
    if plane is None:
        raise InputError(f"{path}: has shape {tuple(shape)}; one image of shape (n, n) or (1, n, n) is expected.")
    height, width = plane
    if height * width == 0:
        raise InputError(f"{path}: the image has no pixels.")
    if height * width > MAX_PIXELS:
        raise InputError(f"{path}: has {height} x {width} pixels; cut out the lens first.")
    return height, width


def plane_shape(shape: Sequence[int]) -> tuple[int, int] | None:
    """Return height and width of an array that is one image: two axes, and others of length 1 before or after them."""
    sides = [int(n) for n in shape]
    while len(sides) > 2 and sides[0] == 1:
        sides.pop(0)
    while len(sides) > 2 and sides[-1] == 1:
        sides.pop()
    return (sides[0], sides[1]) if len(sides) == 2 and min(sides) >= 0 else None


def choose_image(path: Path, arrays: Mapping[str, tuple[Sequence[int], np.dtype]], name: str | None, kind: str) -> str:
    """Return the name of the array to read from a file: the one requested, or else the science image.

    Args:
        path: The file, for messages.
        arrays: Shape and type of all arrays in the file.
        name: Name that the user requested, if any.
        kind: What the file format calls an array.

    Raises:
        InputError: If the file has no image, not the requested one, several that may be the science image, a science
            image that is a cube, or only weight maps, masks and the like.
    """
    planes = {key: plane for key, (shape, _) in arrays.items() if (plane := plane_shape(shape)) is not None}
    candidates = [key for key, plane in planes.items() if min(plane) > 2] or list(planes)
    if name is not None:
        if name in planes:
            return name
        raise InputError(f"{path}: has no {kind} {name!r} with an image; it has {_listed(list(planes)) or 'none'}.")
    cubes = [key for key, (shape, _) in arrays.items() if len(shape) > 2 and key not in planes]
    for key in cubes:  # no other array is read in place of a cube
        if is_science(key) or not candidates:
            require_image(path, *arrays[key])
    if not candidates:
        raise InputError(f"{path}: holds no two-dimensional image.")
    science = science_names(candidates)
    if not science:
        raise InputError(
            f"{path}: holds no science image, only {_listed(candidates)}; select one with --image NAME if it is."
        )
    if len(science) > 1:
        raise InputError(f"{path}: holds several images ({_listed(candidates)}); select one with --image NAME.")
    return science[0]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def as_float64(array: Shaped[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Return an array of real numbers of any type, byte order and strides as float64, with NaN where it is masked."""
    values = np.ma.asanyarray(array).astype(np.float64)
    return np.asarray(np.ma.filled(values, np.nan))


def check_pixels(image: Float[np.ndarray, "n m"], name: str) -> None:
    """Raise `InputError` if the image has no pixels, has NaN or infinite pixels, or is constant."""
    if image.size == 0:
        raise InputError(f"{name}: the image has no pixels.")
    n = image.size - int(np.isfinite(image).sum())
    if n:
        raise InputError(f"{name}: {n} pixels are NaN or infinite; mask or fill them first.")
    if image.min() == image.max():
        raise InputError(f"{name}: all pixels have the same value, so there is nothing to classify.")
