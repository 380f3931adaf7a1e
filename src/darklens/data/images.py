"""Reading one image file without trusting it."""

import math
from pathlib import Path

import numpy as np
from jaxtyping import Float

from darklens.errors import InputError

MAX_PIXELS = 16_000_000  # refuses a header that announces more memory than any lens cutout needs


def read_npy(path: Path) -> Float[np.ndarray, "n m"]:
    """Read a `.npy` image of shape (n, m) or (1, n, m) as float32.

    Nothing in the file is executed: pickled arrays are refused.

    Raises:
        InputError: If the file is missing, empty, truncated, pickled, enormous, of another shape or type, holds
            NaN or infinite pixels, or is constant. The message names the file and what to do.
    """
    if not path.exists():
        raise InputError(f"{path}: there is no such file.")
    if path.suffix.lower() != ".npy":
        raise InputError(f"{path}: only .npy images are read; save the array with numpy.save.")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty; copy or make it again.")
    shape, dtype = _header(path)
    if dtype.hasobject:
        raise InputError(f"{path}: holds pickled Python objects, which are never loaded; save a plain number array.")
    if dtype.kind not in "fiub":
        raise InputError(f"{path}: holds {dtype} values; save a real-valued number array.")
    if not (len(shape) == 2 or (len(shape) == 3 and shape[0] == 1)):
        raise InputError(f"{path}: has shape {shape}; one image of shape (n, n) or (1, n, n) is expected.")
    if shape[-1] * shape[-2] > MAX_PIXELS:
        raise InputError(f"{path}: has {shape[-2]} x {shape[-1]} pixels; cut out the lens first.")
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError):
        raise InputError(f"{path}: the file is truncated or damaged; copy or make it again.") from None
    image = np.asarray(array.reshape(shape[-2:]), dtype=np.float32)
    check_pixels(image, str(path))
    return image


def read_fits(path: Path) -> Float[np.ndarray, "n m"]:
    """Read the first two-dimensional image of a FITS file as float32.

    Raises:
        InputError: If the file is missing, is not FITS or holds no image, is enormous, or has NaN, infinite or only
            equal pixels. The message names the file and what to do.
    """
    from astropy.io import fits

    if not path.exists():
        raise InputError(f"{path}: there is no such file.")
    try:
        with fits.open(path, memmap=False, lazy_load_hdus=True) as hdus:
            for hdu in hdus:
                if not hdu.is_image or len(hdu.shape) != 2:
                    continue
                if math.prod(hdu.shape) > MAX_PIXELS:
                    raise InputError(f"{path}: has {hdu.shape} pixels; cut out the object first.")
                image = np.asarray(hdu.data, dtype=np.float32)
                check_pixels(image, str(path))
                return image
    except (OSError, ValueError, TypeError):
        raise InputError(f"{path}: is not a FITS file, or is damaged; copy or make it again.") from None
    raise InputError(f"{path}: holds no two-dimensional image.")


def check_pixels(image: Float[np.ndarray, "n m"], name: str) -> None:
    """Raise `InputError` if the image has no pixels, NaN or infinite pixels, or is constant."""
    if image.size == 0:
        raise InputError(f"{name}: the image has no pixels.")
    bad = image.size - int(np.isfinite(image).sum())
    if bad:
        raise InputError(f"{name}: {bad} pixels are NaN or infinite; mask or fill them first.")
    if image.min() == image.max():
        raise InputError(f"{name}: all pixels have the same value, so there is nothing to classify.")


def _header(path: Path) -> tuple[tuple[int, ...], np.dtype]:
    try:
        with path.open("rb") as stream:
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(stream)
            return shape, dtype
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from None
    except (ValueError, EOFError, SyntaxError):
        raise InputError(f"{path}: is not a .npy file, whatever its name says; save it with numpy.save.") from None
