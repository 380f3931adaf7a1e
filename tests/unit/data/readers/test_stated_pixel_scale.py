"""A pixel scale that a file states is read, or an error, by kind of statement and of file; it is never dropped."""

import math

import h5py
import numpy as np
import pytest
from astropy.io import fits

from darklens.data.prepare import prepare
from darklens.data.readers import Image, read_image
from darklens.errors import InputError

IMAGE = np.random.default_rng(3).random((40, 44))
SCALE = 0.08
SKY = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN"}


def write_npz(path, name, value, unit=None):
    with path.open("wb") as stream:
        np.savez(stream, image=IMAGE, **{name: value}, **({} if unit is None else {f"{name}_unit": unit}))


def write_attribute(holder):
    def write(path, name, value, unit=None):
        with h5py.File(path, "w") as file:
            file["deep/lens/image"] = IMAGE
            file[holder].attrs[name] = value
            if unit is not None:
                file[holder].attrs[f"{name}_unit"] = unit

    return write


def write_dataset(folder):
    def write(path, name, value, unit=None):
        with h5py.File(path, "w") as file:
            file["deep/lens/image"] = IMAGE
            file[f"{folder}{name}"] = value
            if unit is not None:
                file[f"{folder}{name}"].attrs["units"] = unit

    return write


WRITERS = {
    "npz": write_npz,
    "attribute of the dataset": write_attribute("deep/lens/image"),
    "attribute of the group": write_attribute("deep/lens"),
    "attribute of the outer group": write_attribute("deep"),
    "attribute of the file": write_attribute("/"),
    "dataset beside the image": write_dataset("deep/lens/"),
    "dataset of the file": write_dataset(""),
}
VALUES = {
    "number": ("pixel_scale", SCALE, None),
    "array": ("pixel_scale", [SCALE], None),
    "pair": ("pixel_scale", [SCALE, SCALE], None),
    "pair of two signs": ("pixel_scale", [-SCALE, SCALE], None),
    "matrix": ("pixel_scale", [[-SCALE, 0.0], [0.0, SCALE]], None),
    "integer": ("pixel_scale_mas", 80, None),
    "text": ("pixel_scale", "0.08", None),
    "text with unit": ("pixel_scale", "0.08 arcsec", None),
    "text per pixel": ("pixel_scale", '0.08"/pixel', None),
    "text of a pair": ("pixel_scale", "0.08 x 0.08 arcsec", None),
    "bytes": ("pixel_scale", np.bytes_("80 mas/pix"), None),
    "degrees": ("pixel_scale", f"{SCALE / 3600} deg", None),
    "unit apart": ("pixel_scale", SCALE / 3600, "degree"),
    "unit in the name": ("pixel_scale_arcmin", SCALE / 60, None),
    "another name": ("pixelScale", SCALE, None),
    "name of lenstronomy": ("deltaPix", SCALE, None),
    "name of PyAutoLens": ("pixel_scales", [SCALE, SCALE], None),
}


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("kind", WRITERS)
def test_a_pixel_scale_of_another_form_or_place_is_not_dropped(tmp_path, kind, value):
    WRITERS[kind](tmp_path / "x", *VALUES[value])
    assert read_image(tmp_path / "x").pixel_scale == pytest.approx(SCALE, rel=1e-6)


UNREADABLE = {"text": "unknown", "NaN": np.nan, "zero": 0.0, "three": [0.08, 0.09, 0.1], "unit": "0.08 furlong"}


@pytest.mark.parametrize("value", UNREADABLE)
@pytest.mark.parametrize("kind", WRITERS)
def test_an_unreadable_pixel_scale_is_an_error_that_pixel_scale_repairs(tmp_path, kind, value):
    WRITERS[kind](tmp_path / "x", "pixel_scale", UNREADABLE[value])
    with pytest.raises(InputError, match=r"pixel_scale.*--pixel-scale") as caught:
        read_image(tmp_path / "x")
    assert str(caught.value).startswith(f"{tmp_path / 'x'}: ") and "\n" not in str(caught.value)
    assert read_image(tmp_path / "x", pixel_scale=0.06).pixel_scale == 0.06


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ([0.08, 0.1], "pixels of 0.08 x 0.1 arcsec; resample it"),
        ("0.08, 0.1 arcsec", "pixels of 0.08 x 0.1 arcsec; resample it"),
        ([[0.08, 0.02], [0.0, np.sqrt(0.08**2 - 0.02**2)]], "slanted pixels"),
    ],
)
@pytest.mark.parametrize("kind", WRITERS)
def test_oblong_or_slanted_pixels_are_an_error_in_any_format(tmp_path, kind, value, sentence):
    WRITERS[kind](tmp_path / "x", "pixel_scale", value)
    with pytest.raises(InputError, match=sentence):
        read_image(tmp_path / "x")


def write_fits(path, cards, place):
    """Write cards, with comments, in the header of the image, or in a primary header that the image inherits."""
    header = fits.Header([(key, *(value if isinstance(value, tuple) else (value,))) for key, value in cards.items()])
    if place == "primary image":
        units = [fits.PrimaryHDU(IMAGE, header)]
    elif place == "extension":
        units = [fits.PrimaryHDU(), fits.ImageHDU(IMAGE, header)]
    elif place == "compressed":
        units = [fits.PrimaryHDU(), fits.CompImageHDU(IMAGE, header, compression_type="GZIP_1", quantize_level=0)]
    else:
        inherit = fits.Header({"INHERIT": True} if place == "INHERIT = T" else {})
        units = [fits.PrimaryHDU(header=header), fits.ImageHDU(IMAGE, inherit)]
    fits.HDUList(units).writeto(path, output_verify="silentfix")


STEP = SCALE / 3600
PLACES = ["primary image", "extension", "compressed", "INHERIT = T", "primary header alone"]
CARDS = {
    "CDELT": SKY | {"CDELT1": -STEP, "CDELT2": STEP},
    "CD": SKY | {"CD1_1": -STEP, "CD2_2": STEP},
    "PC": SKY | {"CDELT1": 1.0, "CDELT2": 1.0, "PC1_1": -STEP, "PC2_2": STEP},
    "rotated CD": SKY | {"CD1_1": -STEP * 0.6, "CD1_2": STEP * 0.8, "CD2_1": STEP * 0.8, "CD2_2": STEP * 0.6},
    "degree": SKY | {"CDELT1": -STEP, "CDELT2": STEP, "CUNIT1": "degree", "CUNIT2": "degree"},
    "arcsec": SKY | {"CDELT1": -SCALE, "CDELT2": SCALE, "CUNIT1": "arcsec", "CUNIT2": "ARCSEC"},
    "arcmin": SKY | {"CDELT1": -SCALE / 60, "CDELT2": SCALE / 60, "CUNIT1": "arcmin", "CUNIT2": "arcmin"},
    "mas": SKY | {"CDELT1": -80.0, "CDELT2": 80.0, "CUNIT1": "mas", "CUNIT2": "mas"},
    "rad": SKY | {"CD1_1": -math.radians(STEP), "CD2_2": math.radians(STEP), "CUNIT1": "rad", "CUNIT2": "rad"},
    "CDELT of nameless axes": {"CDELT1": -STEP, "CDELT2": STEP},
    "angles of linear axes": {"CDELT1": SCALE, "CDELT2": SCALE, "CUNIT1": "arcsec", "CUNIT2": "arcsec"},
    **{key: {key: SCALE} for key in ("PIXSCALE", "PIXSCAL", "SECPIX", "PIXSCL", "PIXELSCL", "PLTSCALE")},
    "pair": {"SECPIX1": -SCALE, "SECPIX2": SCALE},
    "text": {"PIXSCALE": "0.08 arcsec/pixel"},
    "unit of the comment": {"PIXSCALE": (80.0, "[mas/pixel] scale")},
    "HIERARCH": {"HIERARCH ESO INS PIXSCALE": SCALE},
    "position without steps": SKY | {"PIXSCALE": SCALE},
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("cards", CARDS)
def test_a_pixel_scale_of_any_keyword_unit_or_header_is_not_dropped(tmp_path, cards, place):
    write_fits(tmp_path / "x", CARDS[cards], place)
    image = read_image(tmp_path / "x")
    assert image.pixel_scale == pytest.approx(SCALE, rel=1e-6) and image.changes == ()


@pytest.mark.parametrize(
    ("cards", "sentence"),
    [
        (SKY | {"CDELT1": 0.0, "CDELT2": 0.0}, "no|not an angle"),
        (SKY | {"CDELT1": STEP, "CDELT2": STEP, "CUNIT1": "furlong", "CUNIT2": "furlong"}, "furlong"),
        (SKY | {"CDELT1": "wide", "CDELT2": STEP}, "CDELT1 = wide"),
        ({"CDELT1": 0.08, "CDELT2": 0.08}, "0.08 without a unit"),
        ({"PIXSCALE": "variable"}, "PIXSCALE = variable"),
        ({"PIXSCALE": 0.0}, "PIXSCALE"),
        ({"PIXSCALE": 0.05, "SECPIX": 0.08}, "two pixel scales"),
        (SKY | {"CTYPE2": "FREQ", "CDELT1": STEP, "CDELT2": 1.0}, "not both on the sky"),
    ],
)
@pytest.mark.parametrize("place", PLACES)
def test_a_stated_scale_that_cannot_be_read_is_an_error_in_any_header(tmp_path, cards, sentence, place):
    write_fits(tmp_path / "x", cards, place)
    with pytest.raises(InputError, match=sentence):
        read_image(tmp_path / "x")
    assert read_image(tmp_path / "x", pixel_scale=0.06).pixel_scale == 0.06


@pytest.mark.parametrize(
    ("cards", "sentence"),
    [
        (SKY | {"CDELT1": -STEP, "CDELT2": 1.2 * STEP}, "pixels of 0.08 x 0.096 arcsec"),
        ({"SECPIX1": 0.08, "SECPIX2": 0.1}, "pixels of 0.08 x 0.1 arcsec"),
        (SKY | {"CD1_1": STEP, "CD1_2": 0.2 * STEP, "CD2_2": math.sqrt(0.96) * STEP}, "slanted pixels"),
    ],
)
def test_oblong_or_slanted_pixels_of_a_header_are_an_error(tmp_path, cards, sentence):
    write_fits(tmp_path / "x", cards, "extension")
    for override in (None, 0.08):
        with pytest.raises(InputError, match=sentence):
            read_image(tmp_path / "x", pixel_scale=override)


def test_the_coordinates_outweigh_the_scale_of_the_detector_and_the_difference_is_said(tmp_path):
    write_fits(tmp_path / "x", CARDS["CDELT"] | {"PIXSCALE": 0.05, "PIXSIZE": (15.0, "[micron]")}, "extension")
    image = read_image(tmp_path / "x")
    assert image.pixel_scale == pytest.approx(SCALE) and "the header also states 0.05 arcsec" in image.changes[0]


def test_the_scale_of_another_image_or_of_a_plate_is_not_taken(tmp_path):
    other = fits.PrimaryHDU(IMAGE, fits.Header(CARDS["CDELT"]))
    plate = fits.Header([("PLTSCALE", 67.2, "Plate scale arcsec per mm"), ("INHERIT", False)])
    fits.HDUList([other, fits.ImageHDU(IMAGE + 1, plate, name="SCI")]).writeto(tmp_path / "x")
    assert read_image(tmp_path / "x").pixel_scale is None


def test_an_assumed_pixel_scale_is_said():
    assert prepare(Image(IMAGE), n_pixels=40, pixel_scale=0.05).changes[0] == "pixel scale of 0.05 arcsec assumed"
    stated = prepare(Image(IMAGE, 0.05), n_pixels=40, pixel_scale=0.05)
    assert not any("assumed" in change for change in stated.changes)
