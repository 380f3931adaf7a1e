"""The image that a reader returns, and the limits and checks that all readers share."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from darklens.errors import DarklensError, InputError

MAX_PIXELS = 16_000_000  # far more than any cut-out of a lens needs
MAX_BYTES = 1_000_000_000  # of a file, or of its decompressed content


@dataclass(frozen=True)
class Image:
    """An image as it is stored in a file.

    Attributes:
        pixels: Pixel values, NaN where there is no measurement; row 0 is at the bottom.
        pixel_scale: Side of a pixel in arcsec, if the file states it.
        changes: Changes that the reader made, and warnings about the file, in words.
    """

    pixels: Float[np.ndarray, "n m"]
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
    if not is_plane(shape):
        raise InputError(f"{path}: has shape {tuple(shape)}; one image of shape (n, n) or (1, n, n) is expected.")
    if math.prod(shape) == 0:
        raise InputError(f"{path}: the image has no pixels.")
    height, width = int(shape[-2]), int(shape[-1])
    if height * width > MAX_PIXELS:
        raise InputError(f"{path}: has {height} x {width} pixels; cut out the lens first.")
    return height, width


def is_plane(shape: Sequence[int]) -> bool:
    """Return whether a shape is that of one image: two axes, preceded only by axes of length 1."""
    return len(shape) >= 2 and all(n >= 0 for n in shape) and all(n == 1 for n in shape[:-2])


def choose_image(path: Path, candidates: Sequence[str], name: str | None, defaults: Sequence[str], kind: str) -> str:
    """Return the name of the image to read from a file.

    Args:
        path: The file, for messages.
        candidates: Names of all images in the file.
        name: Name that the user requested, if any.
        defaults: Names to choose if the file has several images.
        kind: What the file format calls an image.

    Raises:
        InputError: If the file has no image, not the requested one, or several without a default name.
    """
    if not candidates:
        raise InputError(f"{path}: holds no two-dimensional image.")
    listed = ", ".join(candidates[:8]) + (", ..." if len(candidates) > 8 else "")
    if name is not None:
        if name in candidates:
            return name
        raise InputError(f"{path}: has no {kind} {name!r} with an image; it has {listed}.")
    if len(candidates) == 1:
        return candidates[0]
    for default in defaults:
        if default in candidates:
            return default
    raise InputError(f"{path}: holds several images ({listed}); select one with --image NAME.")


def valid_pixel_scale(value: object) -> float | None:
    """Return a pixel scale in arcsec, or None if the value cannot be one."""
    try:
        scale = float(np.asarray(value, dtype=np.float64).reshape(()))
    except (TypeError, ValueError, OverflowError):
        return None
    return scale if 1e-6 < scale < 1e6 else None


def check_pixels(image: Float[np.ndarray, "n m"], name: str) -> None:
    """Raise `InputError` if the image has no pixels, has NaN or infinite pixels, or is constant."""
    if image.size == 0:
        raise InputError(f"{name}: the image has no pixels.")
    n = image.size - int(np.isfinite(image).sum())
    if n:
        raise InputError(f"{name}: {n} pixels are NaN or infinite; mask or fill them first.")
    if image.min() == image.max():
        raise InputError(f"{name}: all pixels have the same value, so there is nothing to classify.")
