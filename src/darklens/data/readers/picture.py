"""Reader of greyscale PNG and TIFF files. Most of them have been stretched for display, so FITS is preferable."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from darklens.data.readers.image import MAX_PIXELS, Image, reject_damaged, require_image
from darklens.errors import InputError

GREY_MODES = {"1", "L", "I", "F", "I;16", "I;16L", "I;16B", "I;16N"}
COLOUR_MODES = {"RGB", "RGBA", "LA", "P", "PA"}
COMPRESSIONS = {"raw", "packbits", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate"}
WARNING = "a {kind} image, whose pixel values are usually not linear in brightness"
_MAX_BYTES = 8 * MAX_PIXELS
_TILE_WIDTH, _TILE_LENGTH = 322, 323


def read_picture(path: Path, _: str | None = None, pixel_scale: float | None = None) -> Image:
    """Read a greyscale PNG or TIFF: 8 or 16 bits, 32-bit integers or floats.

    The top row is the first in the file and the last in the result, as in FITS. Colour images are accepted if all
    pixels are grey and opaque.

    Raises:
        InputError: If the file is damaged, too large, in colour, has several frames, or uses lossy compression.
    """
    from PIL import Image as pillow
    from PIL import UnidentifiedImageError

    with reject_damaged(path, "image"):
        if path.stat().st_size > _MAX_BYTES:
            raise InputError(f"{path}: has {path.stat().st_size / 1e6:.0f} MB; cut out the lens first.")
        # Pillow reads as many bytes as a chunk states; a file object would allocate them first, BytesIO does not.
        content = io.BytesIO(path.read_bytes())
        try:
            picture = pillow.open(content, formats=("PNG", "TIFF"))
        except pillow.DecompressionBombError:
            raise InputError(f"{path}: has too many pixels; cut out the lens first.") from None
        except UnidentifiedImageError:
            raise InputError(f"{path}: is damaged or of an unsupported type; save it as npy or FITS.") from None
        with picture:
            kind = str(picture.format)
            width, height = picture.size
            require_image(path, (height, width), np.dtype(np.float32))
            _require_supported(path, picture)
            pixels = _grey_values(path, picture)
            return Image(pixels[::-1].astype(np.float64), pixel_scale, (WARNING.format(kind=kind),))


def _require_supported(path: Path, picture: Any) -> None:
    if getattr(picture, "is_animated", False):
        raise InputError(f"{path}: holds several images; save only the one of the lens.")
    if picture.format != "TIFF":
        return
    compression = picture.info.get("compression", "raw")
    if compression not in COMPRESSIONS:
        raise InputError(f"{path}: uses {compression} compression; save it uncompressed, or with LZW or deflate.")
    tags = picture.tag_v2
    if int(tags.get(_TILE_WIDTH, 0)) * int(tags.get(_TILE_LENGTH, 0)) > MAX_PIXELS:
        raise InputError(f"{path}: is stored in too large tiles; save the image again without tiles.")


def _grey_values(path: Path, picture: Any) -> Float[np.ndarray, "n m"]:
    if picture.mode in GREY_MODES:
        return np.asarray(picture).astype(np.float64)
    if picture.mode in COLOUR_MODES:
        channels = np.asarray(picture.convert("RGBA"))
        red, green_blue, alpha = channels[..., :1], channels[..., 1:3], channels[..., 3]
        if (green_blue == red).all() and (alpha == 255).all():
            return channels[..., 0].astype(np.float64)
    raise InputError(f"{path}: is a colour image; give one band in greyscale.")
