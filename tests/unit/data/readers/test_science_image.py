"""The image that is read is the science image, by kind of fault and of file: never another one in its place."""

import gzip
import io
import warnings

import h5py
import numpy as np
import pytest
from astropy.io import fits

from darklens.data.readers import read_image
from darklens.data.readers.roles import is_auxiliary
from darklens.errors import InputError

RNG = np.random.default_rng(3)
IMAGE = np.round(RNG.normal(1000, 50, (40, 44)))
OTHER = RNG.random((40, 44))
CUBE = np.stack([IMAGE] * 3)


def write_fits(path, units):
    """Write `units` (name: array) as extensions."""
    extensions = [fits.ImageHDU(array, name=name) for name, array in units.items()]
    fits.HDUList([fits.PrimaryHDU(), *extensions]).writeto(path)


def write_npz(path, arrays):
    with path.open("wb") as stream:
        np.savez(stream, **arrays)


def write_hdf5(path, arrays):
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[f"data/{name}"] = array


WRITERS = {"FITS": write_fits, "npz": write_npz, "HDF5": write_hdf5}
SCIENCE = {"FITS": "SCI", "npz": "image", "HDF5": "image_data"}
AUXILIARY = "WHT ERR DQ MASK PSF VAR_POISSON NOISE_MAP Weight RMS IVAR BPM CTX EXPOSURE_TIME PSF_IMAGE ERR2"


@pytest.mark.parametrize("name", AUXILIARY.split())
@pytest.mark.parametrize("kind", WRITERS)
def test_a_weight_map_mask_or_psf_is_never_taken_for_the_science_image(tmp_path, kind, name):
    path = tmp_path / "x"
    WRITERS[kind](path, {name: OTHER, SCIENCE[kind]: IMAGE})
    np.testing.assert_array_equal(read_image(path).pixels, IMAGE)
    path.unlink()
    WRITERS[kind](path, {name: OTHER})
    with pytest.raises(InputError, match=rf"holds no science image, (?i:only .*{name}).*--image NAME"):
        read_image(path)
    selected = f"data/{name}" if kind == "HDF5" else name
    np.testing.assert_array_equal(read_image(path, name=selected).pixels, OTHER)


@pytest.mark.parametrize("other", ["WHT", "MODEL"])
@pytest.mark.parametrize("kind", WRITERS)
def test_a_science_cube_is_an_error_and_no_plane_is_read_in_its_place(tmp_path, kind, other):
    path = tmp_path / "x"
    WRITERS[kind](path, {SCIENCE[kind]: CUBE, other: OTHER})
    with pytest.raises(InputError, match=r"3 x 40 x 44|\(3, 40, 44\)"):
        read_image(path)


def test_names_of_images_that_are_no_science_image():
    assert all(
        map(is_auxiliary, ["VAR_RNOISE", "noiseMap", "err", "data/noise/map", "kernel_point_source", "sci_mask"])
    )
    assert not any(
        map(is_auxiliary, ["SCI", "F814W", "image_with_noise", "masked", "lens", "error_free", "exposure/i"])
    )


def test_a_unit_called_sci_is_read_before_an_unnamed_primary_image(tmp_path):
    units = [fits.PrimaryHDU(OTHER), fits.ImageHDU(OTHER, name="ERR"), fits.ImageHDU(IMAGE, name="SCI")]
    fits.HDUList(units).writeto(tmp_path / "x")
    np.testing.assert_array_equal(read_image(tmp_path / "x").pixels, IMAGE)


def test_damage_after_the_image_does_not_hide_it(tmp_path):
    fits.PrimaryHDU(IMAGE).writeto(tmp_path / "x")
    with (tmp_path / "x").open("ab") as stream:
        stream.write(b"not a header unit")
    np.testing.assert_array_equal(read_image(tmp_path / "x").pixels, IMAGE)


FLOATS = (IMAGE + OTHER).astype(np.float32)
EXACT = {"quantize_level": 0}
COMPRESSED = {
    "RICE_1 of 8 bits": ("RICE_1", (IMAGE % 200).astype(np.uint8), {}),
    "RICE_1 of 16 bits": ("RICE_1", IMAGE.astype(np.int16), {}),
    "RICE_1 of unsigned 16 bits": ("RICE_1", (IMAGE * 40).astype(np.uint16), {}),
    "RICE_1 of 32 bits in tiles": ("RICE_1", IMAGE.astype(np.int32), {"tile_shape": (16, 16)}),
    "GZIP_1 of floats": ("GZIP_1", FLOATS, EXACT),
    "GZIP_2 of doubles": ("GZIP_2", IMAGE + OTHER, EXACT),
    "GZIP_2 of 32 bits": ("GZIP_2", IMAGE.astype(np.int32), {}),
    "PLIO_1 of 16 bits": ("PLIO_1", IMAGE.astype(np.int16), {}),
    "HCOMPRESS_1 of 32 bits": ("HCOMPRESS_1", IMAGE.astype(np.int32), {"tile_shape": (20, 22)}),
    "NOCOMPRESS": ("NOCOMPRESS", IMAGE.astype(np.int16), {}),
}


def as_tiled(algorithm, array, **options):
    unit = fits.CompImageHDU(array, name="SCI", compression_type=algorithm, **options)
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fits.HDUList([fits.PrimaryHDU(), unit, fits.ImageHDU(OTHER, name="WHT")]).writeto(stream)
    return stream.getvalue()


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("kind", COMPRESSED)
def test_tile_compressed_images_are_read_and_not_skipped_for_the_weight_map(tmp_path, kind, pack):
    algorithm, array, options = COMPRESSED[kind]
    path = tmp_path / "lens.fits.fz"
    path.write_bytes(pack(as_tiled(algorithm, array, **options)))
    np.testing.assert_array_equal(read_image(path).pixels, array)


def test_quantised_floats_keep_nan_pixels_and_integers_their_blank_ones(tmp_path):
    floats = np.where(IMAGE.max() == IMAGE, np.nan, IMAGE + OTHER).astype(np.float32)
    (tmp_path / "x").write_bytes(as_tiled("RICE_1", floats, quantize_level=64))
    pixels = read_image(tmp_path / "x").pixels
    np.testing.assert_array_equal(np.isnan(pixels), np.isnan(floats))
    np.testing.assert_allclose(pixels, floats, atol=5)


@pytest.mark.parametrize(
    "kind", ["GZIP_1 of floats", "RICE_1 of 16 bits", "PLIO_1 of 16 bits", "HCOMPRESS_1 of 32 bits"]
)
def test_damaged_tiles_are_one_sentence_and_no_crash(tmp_path, kind):
    algorithm, array, options = COMPRESSED[kind]
    content, path, rng = as_tiled(algorithm, array, **options), tmp_path / "x", np.random.default_rng(4)
    header = content[2880 : 2880 * 4].index(b"END".ljust(80)) // 2880 * 2880 + 5760  # where the table begins
    sentences = []
    for _ in range(25):
        damaged = bytearray(content)
        for _ in range(int(rng.integers(1, 4))):
            damaged[header + int(rng.integers(700))] = int(rng.integers(256))
        path.write_bytes(damaged)
        sentences.append(sentence_of(path))
    assert all(not text or (text.startswith(f"{path}: ") and "\n" not in text) for text in sentences)
    assert any(sentences)


def sentence_of(path):
    """Return the error message for a file, or an empty string if it can be read."""
    try:
        read_image(path)
    except InputError as error:
        return str(error)
    return ""


def test_a_tile_that_would_decompress_to_more_than_its_size_is_refused(tmp_path):
    content = as_tiled("GZIP_1", np.zeros((1, 40_000), np.int32), tile_shape=(1, 40_000))
    bomb = content.replace(b"ZNAXIS1 =                40000", b"ZNAXIS1 =                  100").replace(
        b"ZTILE1  =                40000", b"ZTILE1  =                  100"
    )
    (tmp_path / "x").write_bytes(bomb)
    with pytest.raises(InputError, match="damaged"):
        read_image(tmp_path / "x")


@pytest.mark.parametrize(
    "options",
    [{"compression": "lzf"}, {"compression": "lzf", "shuffle": True, "fletcher32": True}, {"compression": "gzip"}],
    ids=str,
)
def test_the_filters_of_h5py_are_read(tmp_path, options):
    with h5py.File(tmp_path / "x", "w") as file:
        file.create_dataset("image", data=IMAGE, chunks=(16, 16), **options)
    np.testing.assert_array_equal(read_image(tmp_path / "x").pixels, IMAGE)


@pytest.mark.parametrize("shape", [(1, 40, 44), (40, 44, 1), (1, 40, 44, 1), (1, 1, 40, 44)])
@pytest.mark.parametrize("kind", ["npy", *WRITERS])
def test_axes_of_length_one_are_dropped(tmp_path, kind, shape):
    path, array = tmp_path / "x", IMAGE.reshape(shape)
    if kind == "npy":
        with path.open("wb") as stream:
            np.save(stream, array)
    else:
        WRITERS[kind](path, {SCIENCE[kind]: array})
    np.testing.assert_array_equal(read_image(path).pixels, IMAGE)


@pytest.mark.parametrize("name", [b"M\xfcller", "Müller".encode(), b"M\tller", b"M\x00ller"], ids=repr)
@pytest.mark.parametrize("tiled", [False, True])
def test_a_header_that_is_not_ascii_is_not_called_truncated(tmp_path, name, tiled):
    header = fits.Header({"OBSERVER": "M" * len(name), "PIXSCALE": 0.08})
    unit = (fits.CompImageHDU if tiled else fits.ImageHDU)(IMAGE.astype(np.int16), header)
    stream = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), unit]).writeto(stream)
    (tmp_path / "x").write_bytes(stream.getvalue().replace(b"M" * len(name), name))
    image = read_image(tmp_path / "x")
    np.testing.assert_array_equal(image.pixels, IMAGE)
    assert image.pixel_scale == pytest.approx(0.08)
