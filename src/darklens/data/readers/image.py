"""What reading a file gives, and the limits that every reader keeps to."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from darklens.errors import DarklensError, InputError

MAX_PIXELS = 16_000_000  # refuses a header that announces more memory than any lens cutout needs
MAX_BYTES = 1_000_000_000  # of a file, or of what it unpacks to


@dataclass(frozen=True)
class Image:
    """An image as it stands in a file.

    Attributes:
        pixels: Finite numbers, or NaN where the file has no measurement; row 0 is lowest.
        pixel_scale: Side of a pixel in arcsec, if the file says so.
        changes: What reading it did to the numbers, or what is known to have been done before, in words.
    """

    pixels: Float[np.ndarray, "n m"]
    pixel_scale: float | None = None
    changes: tuple[str, ...] = ()


@contextmanager
def damaged(path: Path, kind: str) -> Iterator[None]:
    """Turn whatever a library raises on a damaged file into one sentence.

    Raises:
        InputError: If anything but our own errors is raised inside.
    """
    try:
        yield
    except DarklensError:
        raise
    except (Exception, RecursionError):
        raise InputError(f"{path}: the {kind} file is truncated or damaged; copy or make it again.") from None


def require_image(path: Path, shape: Sequence[int], dtype: np.dtype) -> tuple[int, int]:
    """Return the two sides of an image that a header announces, before memory is taken for it.

    Raises:
        InputError: If it is no plane of real numbers, has no pixels, or is enormous.
    """
    if dtype.hasobject:
        raise InputError(f"{path}: holds pickled Python objects, which are never loaded; save a plain number array.")
    if dtype.kind not in "fiub":
        raise InputError(f"{path}: holds {dtype} values; save a real-valued number array.")
    if not is_plane(shape):
        raise InputError(f"{path}: has shape {tuple(shape)}; one image of shape (n, n) or (1, n, n) is expected.")
    if math.prod(shape) == 0:
        raise InputError(f"{path}: the image has no pixels.")
    height, width = int(shape[-2]), int(shape[-1])
    if height * width > MAX_PIXELS:
        raise InputError(f"{path}: has {height} x {width} pixels; cut out the lens first.")
    return height, width


def is_plane(shape: Sequence[int]) -> bool:
    """Tell whether a shape is that of one image: two axes, and before them only axes of length 1."""
    return len(shape) >= 2 and all(n >= 0 for n in shape) and all(n == 1 for n in shape[:-2])


def choose(path: Path, candidates: Sequence[str], wanted: str | None, usual: Sequence[str], kind: str) -> str:
    """Return the name of the image to read among those of a file.

    Args:
        path: The file, for messages.
        candidates: Names of all images in it.
        wanted: The name that the user asked for, if any.
        usual: Names that are taken where there are several images.
        kind: What the file calls an image.

    Raises:
        InputError: If there is none, not the one asked for, or several of which none has a usual name.
    """
    if not candidates:
        raise InputError(f"{path}: holds no two-dimensional image.")
    listed = ", ".join(candidates[:8]) + (", ..." if len(candidates) > 8 else "")
    if wanted is not None:
        if wanted in candidates:
            return wanted
        raise InputError(f"{path}: has no {kind} {wanted!r} with an image; it has {listed}.")
    if len(candidates) == 1:
        return candidates[0]
    for name in usual:
        if name in candidates:
            return name
    raise InputError(f"{path}: holds several images ({listed}); say which one with --image NAME.")


def sensible_scale(value: object) -> float | None:
    """Return a pixel scale in arcsec, or None where the file's number cannot be one."""
    try:
        scale = float(np.asarray(value, dtype=np.float64).reshape(()))
    except (TypeError, ValueError, OverflowError):
        return None
    return scale if 1e-6 < scale < 1e6 else None


def check_pixels(image: Float[np.ndarray, "n m"], name: str) -> None:
    """Raise `InputError` if the image has no pixels, NaN or infinite pixels, or is constant."""
    if image.size == 0:
        raise InputError(f"{name}: the image has no pixels.")
    bad = image.size - int(np.isfinite(image).sum())
    if bad:
        raise InputError(f"{name}: {bad} pixels are NaN or infinite; mask or fill them first.")
    if image.min() == image.max():
        raise InputError(f"{name}: all pixels have the same value, so there is nothing to classify.")
