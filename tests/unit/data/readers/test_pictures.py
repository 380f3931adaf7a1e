"""Greyscale PNG and TIFF are read with a warning; colour, several frames and decompression bombs are errors."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image as pillow

from darklens.data.prepare import prepare
from darklens.data.readers import read_image
from darklens.errors import InputError

GREY = np.arange(120).reshape(10, 12)
COLOURED = np.stack([GREY, GREY, GREY + 1], 2).astype(np.uint8)


def encoded(array, kind, **options):
    stream = io.BytesIO()
    pillow.fromarray(array).save(stream, format=kind, **options)
    return stream.getvalue()


def png_of(width, height, *chunks):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


@pytest.mark.parametrize(
    ("kind", "options", "dtype"),
    [("PNG", {}, dtype) for dtype in (np.uint8, np.uint16)]
    + [
        ("TIFF", options, dtype)
        for options in ({}, {"compression": "tiff_lzw"})
        for dtype in (np.uint8, np.uint16, np.int32, np.float32)
    ],
)
def test_greyscale_of_any_depth_has_its_top_row_last(tmp_path, kind, options, dtype):
    path = tmp_path / f"x.{kind.lower()}"
    path.write_bytes(encoded(GREY.astype(dtype), kind, **options))
    image = read_image(path)
    np.testing.assert_array_equal(image.pixels, GREY[::-1])
    assert image.changes == (f"a {kind} image, whose pixel values are usually not linear in brightness",)
    assert prepare(image, n_pixels=10, pixel_scale=0.05).changes[0] == image.changes[0]


def test_colour_images_without_colour_are_read(tmp_path):
    for i, array in enumerate((np.stack([GREY] * 3, 2), np.stack([GREY, GREY, GREY, 0 * GREY + 255], 2))):
        path = tmp_path / f"{i}.png"
        path.write_bytes(encoded(array.astype(np.uint8), "PNG"))
        np.testing.assert_array_equal(read_image(path).pixels, GREY[::-1])


TILES = encoded(GREY.astype(np.uint8), "TIFF")
BAD = {
    "colours.png": (encoded(COLOURED, "PNG"), "is a colour image; give one band"),
    "colours.tif": (encoded(COLOURED, "TIFF"), "is a colour image; give one band"),
    "clear.png": (encoded(np.stack([GREY] * 4, 2).astype(np.uint8), "PNG"), "is a colour image"),
    "jpeg.tif": (encoded(GREY.astype(np.uint8), "TIFF", compression="jpeg"), "uses jpeg compression"),
    "film.tif": (
        encoded(GREY.astype(np.uint8), "TIFF", save_all=True, append_images=[pillow.fromarray(GREY.astype(np.uint8))]),
        "holds several images",
    ),
    "enormous.png": (png_of(60_000, 60_000, (b"IDAT", zlib.compress(bytes(100)))), "has too many pixels; cut out"),
    "large.png": (png_of(9000, 9000, (b"IDAT", zlib.compress(bytes(100)))), "9000 x 9000 pixels; cut out"),
    "short.png": (encoded(GREY.astype(np.uint8), "PNG")[:45], "truncated or damaged"),
    "text.png": (
        png_of(8, 8, (b"zTXt", b"a\0\0" + zlib.compress(bytes(90_000_000))), (b"IDAT", b"")),
        "truncated or damaged",
    ),
    "nothing.tif": (b"II*\0\x08\0\0\0", "damaged"),
    "wrong.npy": (encoded(GREY.astype(np.uint8), "PNG"), "is a PNG image despite its name"),
}


@pytest.mark.parametrize("name", BAD)
def test_other_files_give_one_sentence(tmp_path, name):
    content, sentence = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_image(tmp_path / name)
    assert sentence in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path / name}: ") and "\n" not in str(caught.value)
