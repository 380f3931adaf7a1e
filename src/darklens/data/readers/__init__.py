"""Reads untrusted image files. The content determines the file type, not the name."""

import os
import stat
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from darklens.data.readers.fits import read_fits
from darklens.data.readers.hdf5 import read_hdf5
from darklens.data.readers.image import MAX_BYTES, Image, check_pixels
from darklens.data.readers.npy import read_npy, read_npz
from darklens.data.readers.picture import read_picture
from darklens.errors import InputError

__all__ = [
    "MEASUREMENTS",
    "PICTURES",
    "SUFFIXES",
    "Image",
    "check_pixels",
    "read_finite_image",
    "read_image",
    "require_file",
    "warnings_lock",
]

Reader = Callable[[Path, str | None, float | None], Image]
_FITS = (".fits", ".fit", ".fts")
MEASUREMENTS = (
    ".npy",
    ".npz",
    *(f"{s}{packed}" for packed in ("", ".gz", ".bz2", ".fz") for s in _FITS),
    ".h5",
    ".hdf5",
)
PICTURES = (".png", ".tif", ".tiff")
SUFFIXES = MEASUREMENTS + PICTURES
_MAGIC: dict[bytes, Reader] = {
    b"\x93NUMPY": read_npy,
    b"PK\x03\x04": read_npz,
    b"SIMPLE  =": read_fits,
    b"\x1f\x8b": read_fits,
    b"BZh": read_fits,
    b"\x89HDF\r\n\x1a\n": read_hdf5,
}
_PICTURES = {b"\x89PNG": "PNG", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"II+\0": "TIFF", b"MM\0+": "TIFF"}
_UNSUPPORTED = {
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"%PDF": "a PDF document",
    b"\x80": "a Python pickle, which is never loaded",
}
warnings_lock = threading.Lock()  # warnings.catch_warnings changes the state of all threads


def read_image(path: Path, *, name: str | None = None, pixel_scale: float | None = None) -> Image:
    """Read an image file: npy, npz, FITS (plain, gzip, bzip2 or tile-compressed), HDF5, or a greyscale PNG or TIFF.

    The reader executes nothing in the file, reads nothing outside it, and allocates no memory for the sizes in a header
    before it has checked them. NaN pixels remain; `prepare` fills or rejects them. Only one thread reads at a time.

    Args:
        path: The file.
        name: Array, FITS extension (name or number) or HDF5 dataset to read from a file with several images.
        pixel_scale: Pixel scale in arcsec that replaces that of the file, even if that cannot be read.

    Raises:
        InputError: If the file cannot be used; one sentence says why and what to do.
    """
    read = _reader(path, require_file(path))
    with warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read(path, name, pixel_scale)


def _reader(path: Path, head: bytes) -> Reader:
    for magic, read in _MAGIC.items():
        if head.startswith(magic):
            return read
    for magic, kind in _PICTURES.items():
        if head.startswith(magic):
            if path.name.lower().endswith(MEASUREMENTS):
                raise InputError(
                    f"{path}: is a {kind} image despite its name; give the measured image, or correct the name."
                )
            return read_picture
    for magic, kind in _UNSUPPORTED.items():
        if head.startswith(magic):
            raise InputError(f"{path}: is {kind}; give the measured image as npy, npz, FITS or HDF5.")
    raise InputError(f"{path}: is not an npy, npz, FITS or HDF5 file; save it as one of these.")


def read_finite_image(path: Path) -> Float32[np.ndarray, "n m"]:
    """Return the pixels of an image file that `read_image` can read and that has no NaN.

    Raises:
        InputError: As for `read_image`; also if pixels are NaN or infinite, or all equal.
    """
    with np.errstate(over="ignore"):
        pixels = read_image(path).pixels.astype(np.float32)
    check_pixels(pixels, str(path))
    return pixels


def require_file(path: Path, *, max_bytes: int = MAX_BYTES) -> bytes:
    """Return the first 16 bytes of a regular file.

    Raises:
        InputError: If it is not a regular file, is empty, has more than `max_bytes`, or cannot be read.
    """
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise InputError(f"{path}: is a folder; give the files in it.")
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path}: is not a regular file; save the image to one.")
        if status.st_size == 0:
            raise InputError(f"{path}: the file is empty; copy or create it again.")
        if status.st_size > max_bytes:
            raise InputError(f"{path}: has {status.st_size / 1e9:.1f} GB; cut out the lens first.")
        with path.open("rb") as stream:
            return stream.read(16)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file.") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({(error.strerror or str(error)).lower()}).") from None
    except ValueError:
        raise InputError(f"{str(path)!r}: is not a valid file name.") from None
