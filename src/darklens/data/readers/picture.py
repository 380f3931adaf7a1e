"""PNG and TIFF pictures in grey, through Pillow: allowed, not recommended, for most have been stretched for the eye."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from darklens.data.readers.image import MAX_PIXELS, Image, damaged, require_image
from darklens.errors import InputError

GREY = {"1", "L", "I", "F", "I;16", "I;16L", "I;16B", "I;16N"}
OF_COLOURS = {"RGB", "RGBA", "LA", "P", "PA"}
PACKED_BY = {"raw", "packbits", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate"}
WARNING = "a {kind} picture, whose pixels have usually lost their linearity"
_MOST_BYTES = 8 * MAX_PIXELS
_TILE_WIDTH, _TILE_LENGTH = 322, 323


def read_picture(path: Path, _: str | None = None) -> Image:
    """Read a PNG or TIFF picture in grey: 8 or 16 bits, 32-bit integers or floats.

    Its upper row comes first in the file and last in the result, as in FITS. Colours are taken where they are all
    grey and opaque.

    Raises:
        InputError: If it is damaged, enormous, in colours, of several frames, or packed in a way that only pictures
            for the eye are.
    """
    from PIL import Image as pillow
    from PIL import UnidentifiedImageError

    with damaged(path, "picture"):
        if path.stat().st_size > _MOST_BYTES:
            raise InputError(f"{path}: has {path.stat().st_size / 1e6:.0f} MB; cut out the lens first.")
        # Pillow asks for as many bytes as a chunk announces; a file would make room for them first.
        content = io.BytesIO(path.read_bytes())
        try:
            picture = pillow.open(content, formats=("PNG", "TIFF"))
        except pillow.DecompressionBombError:
            raise InputError(f"{path}: has too many pixels; cut out the lens first.") from None
        except UnidentifiedImageError:
            raise InputError(
                f"{path}: is a picture that is damaged, or of a kind that is not read; save it as npy or FITS."
            ) from None
        with picture:
            kind = str(picture.format)
            width, height = picture.size
            require_image(path, (height, width), np.dtype(np.float32))
            _require_plain(path, picture)
            pixels = _grey(path, picture)
            return Image(pixels[::-1].astype(np.float64), changes=(WARNING.format(kind=kind),))


def _require_plain(path: Path, picture: Any) -> None:
    if getattr(picture, "is_animated", False):
        raise InputError(f"{path}: holds several pictures; save the one of the lens alone.")
    if picture.format != "TIFF":
        return
    packed = picture.info.get("compression", "raw")
    if packed not in PACKED_BY:
        raise InputError(f"{path}: is packed by {packed}; save it unpacked, or with LZW or deflate.")
    tags = picture.tag_v2
    if int(tags.get(_TILE_WIDTH, 0)) * int(tags.get(_TILE_LENGTH, 0)) > MAX_PIXELS:
        raise InputError(f"{path}: is stored in enormous tiles; save the picture again without them.")


def _grey(path: Path, picture: Any) -> Float[np.ndarray, "n m"]:
    if picture.mode in GREY:
        return np.asarray(picture).astype(np.float64)
    if picture.mode in OF_COLOURS:
        channels = np.asarray(picture.convert("RGBA"))
        red, others, opaque = channels[..., :1], channels[..., 1:3], channels[..., 3]
        if (others == red).all() and (opaque == 255).all():
            return channels[..., 0].astype(np.float64)
    raise InputError(f"{path}: is a picture in colours; give one band of the measurement in grey.")
