"""Good files of all types are read unchanged; all others give one sentence."""

import bz2
import gzip
import io
import os
import pickle
import warnings
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from astropy.wcs.utils import proj_plane_pixel_scales
from hypothesis import given, settings
from hypothesis import strategies as st

from darklens.data.readers import read_image
from darklens.errors import InputError

GOOD = np.arange(120.0).reshape(10, 12)


def sky(scale, angle=0.0, **cards):
    """Return a header with square pixels of `scale` arcsec, rotated by `angle` radians."""
    cosine, sine, step = np.cos(angle), np.sin(angle), scale / 3600
    header = fits.Header({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CUNIT1": "deg", "CUNIT2": "deg"})
    header.update({"CD1_1": -step * cosine, "CD1_2": step * sine, "CD2_1": step * sine, "CD2_2": step * cosine})
    header.update(cards)
    return header


def as_fits(*units):
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fits.HDUList(list(units)).writeto(stream)
    return stream.getvalue()


def as_npy(array):
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def as_npz(**arrays):
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def as_hdf5(**datasets):
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        for name, data in datasets.items():
            file[name] = data
    return stream.getvalue()


HST = as_hdf5(image_data=GOOD, exposure_time=GOOD + 1, ra_at_xy_0=1.0, transform_pix2angle=np.diag([-0.04, 0.04]))
ARCSEC = {"CUNIT1": "arcsec", "CUNIT2": "arcsec"}
PRIMARY = fits.PrimaryHDU(GOOD, sky(0.04))
KINDS = {
    "npy": as_npy(GOOD),
    "npz": as_npz(image=GOOD, pixel_scale=0.04),
    "fits": as_fits(PRIMARY),
    "extension": as_fits(fits.PrimaryHDU(), fits.ImageHDU(GOOD, sky(0.04), name="SCI")),
    "gz": gzip.compress(as_fits(PRIMARY)),
    "bz2": bz2.compress(as_fits(PRIMARY)),
    "hdf5": HST,
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_type_is_determined_by_the_content(tmp_path, kind):
    (tmp_path / "x").write_bytes(KINDS[kind])
    image = read_image(tmp_path / "x")
    np.testing.assert_array_equal(image.pixels, GOOD)
    assert image.pixel_scale == (None if kind == "npy" else pytest.approx(0.04, rel=1e-12))


@settings(max_examples=60, deadline=None)
@given(
    scale=st.floats(1e-3, 10.0),
    angle=st.floats(0, 6.28),
    bits=st.sampled_from([16, 32, -32, -64]),
    seed=st.integers(0, 2**32 - 1),
    packed=st.booleans(),
)
def test_fits_keeps_flux_and_pixel_scale(tmp_path_factory, scale, angle, bits, seed, packed):
    pixels = np.random.default_rng(seed).uniform(0.0, 1e4, size=(9, 14))
    unit = fits.PrimaryHDU(pixels, sky(scale, angle))
    if bits > 0:
        unit.scale(f"int{bits}", "minmax")
    elif bits == -32:
        unit.data = pixels.astype(np.float32)
    content = as_fits(unit)
    path = tmp_path_factory.mktemp("fits") / "x.fits"
    path.write_bytes(gzip.compress(content, 1) if packed else content)
    image = read_image(path)
    with fits.open(io.BytesIO(content)) as units:
        expected, wcs_scale = units[0].data, proj_plane_pixel_scales(WCS(units[0].header)) * 3600
    assert image.pixels.sum() == pytest.approx(np.sum(expected, dtype=np.float64), rel=1e-6)
    np.testing.assert_allclose(image.pixels, expected, rtol=1e-5, atol=1e-2)
    assert image.pixel_scale == pytest.approx(scale, rel=1e-6) == pytest.approx(wcs_scale[0], rel=1e-6)


def test_fits_units_masks_and_scales(tmp_path):
    mask = np.where(GOOD == 5, np.nan, GOOD)
    counts = fits.ImageHDU(GOOD.astype(np.int16), name="CTS")
    counts.header["BLANK"] = 7
    path = tmp_path / "x.fits"
    table = fits.BinTableHDU.from_columns([fits.Column("a", "E", array=[1.0])])
    path.write_bytes(as_fits(fits.PrimaryHDU(), table, fits.ImageHDU(mask, name="SCI"), counts))
    assert np.isnan(read_image(path).pixels[0, 5]) and np.isnan(read_image(path).pixels).sum() == 1
    for name in ("cts", "3"):
        assert np.flatnonzero(np.isnan(read_image(path, name=name).pixels)).tolist() == [7]
    with pytest.raises(InputError, match=r"no header unit 'ERR' with an image; it has 0, 1, SCI, CTS"):
        read_image(path, name="ERR")
    with pytest.raises(InputError, match="header unit 1 holds no two-dimensional"):
        read_image(path, name="1")


@pytest.mark.parametrize(
    ("cards", "scale"),
    [
        ({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CDELT1": -1e-5, "CDELT2": 1e-5}, 0.036),
        ({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CDELT1": 1, "CDELT2": 1, "PC1_1": -2e-5, "PC2_2": 2e-5}, 0.072),
        ({"CTYPE1": "GLON-CAR", "CTYPE2": "GLAT-CAR", "CD1_1": 0.1, "CD2_2": 0.1, **ARCSEC}, 0.1),
        ({"CDELT1": 1.0, "CDELT2": 1.0}, None),
        ({"CTYPE1": "LINEAR", "CTYPE2": "LINEAR", "CDELT1": 0.1, "CDELT2": 0.1}, None),
        ({}, None),
    ],
)
def test_the_pixel_scale_needs_celestial_coordinates(tmp_path, cards, scale):
    (tmp_path / "x").write_bytes(as_fits(fits.PrimaryHDU(GOOD, fits.Header(cards))))
    assert read_image(tmp_path / "x").pixel_scale == (None if scale is None else pytest.approx(scale))


def test_one_of_several_images_is_selected_by_name(tmp_path):
    (tmp_path / "a").write_bytes(as_npz(one=GOOD, two=GOOD + 1, table=np.zeros((3, 4, 5))))
    (tmp_path / "b").write_bytes(as_hdf5(**{"deep/one": GOOD, "deep/two": GOOD + 1}))
    for path, two in ((tmp_path / "a", "two"), (tmp_path / "b", "deep/two")):
        np.testing.assert_array_equal(read_image(path, name=two).pixels, GOOD + 1)
        with pytest.raises(InputError, match=r"several images \(.*one, .*two\)|several images \(.*two, .*one\)"):
            read_image(path)
        with pytest.raises(InputError, match=r"has no (array|dataset) 'three'"):
            read_image(path, name="three")


def test_hdf5_reads_nothing_from_outside(tmp_path):
    (tmp_path / "secret").write_bytes(GOOD.tobytes())
    (tmp_path / "other.h5").write_bytes(HST)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["link"] = h5py.ExternalLink(tmp_path / "other.h5", "image_data")
        file["round"] = h5py.SoftLink("/")
        file.create_dataset("raw", shape=(10, 12), dtype="f8", external=[(tmp_path / "secret", 0, 960)])
        layout = h5py.VirtualLayout(shape=(10, 12), dtype="f8")
        layout[:] = h5py.VirtualSource(tmp_path / "other.h5", "image_data", shape=(10, 12))
        file.create_virtual_dataset("virtual", layout)
    with pytest.raises(InputError, match="holds no two-dimensional image"):
        read_image(tmp_path / "x.h5")


def header_with(old, new):
    return KINDS["fits"].replace(old.encode(), new.encode(), 1)


NAXIS1 = "NAXIS1  =                   12"
BAD = {
    "empty": (b"", "the file is empty"),
    "text": (b"not an image", "is not an npy, npz, FITS or HDF5 file; save it"),
    "PNG": (b"\x89PNG\r\n\x1a\n" + bytes(99), "is a PNG image despite its name"),
    "TIFF": (b"II*\0" + bytes(99), "is a TIFF image despite its name"),
    "JPEG": (b"\xff\xd8\xff" + bytes(99), "is a JPEG image"),
    "pickle": (pickle.dumps([os.getcwd]), "is a Python pickle, which is never loaded"),
    "object array": (as_npy(np.array([{}, 1.0], dtype=object)), "pickled Python objects"),
    "objects in npz": (as_npz(image=np.array([[{}, 1]], dtype=object)), "pickled Python objects"),
    "complex": (as_npy(GOOD * 1j), "complex128 values"),
    "complex HDF5": (as_hdf5(a=GOOD * 1j), "complex128 values"),
    "text array": (as_npz(image=np.array([["a", "b"]])), "<U1 values"),
    "a cube": (as_npy(np.zeros((3, 4, 5))), "has shape (3, 4, 5)"),
    "a cube in npz": (as_npz(a=np.zeros((3, 4, 5))), "has shape (3, 4, 5)"),
    "a cube in HDF5": (as_hdf5(a=np.zeros((3, 4, 5))), "has shape (3, 4, 5)"),
    "a cube in FITS": (as_fits(fits.PrimaryHDU(np.zeros((3, 4, 5)))), "3 x 4 x 5, no two-dimensional image"),
    "no pixels": (as_npy(np.zeros((0, 6))), "has no pixels"),
    "no arrays": (as_hdf5(), "holds no two-dimensional image"),
    "negative NAXIS": (header_with("NAXIS   =                    2", "NAXIS   =                   -2"), "NAXIS = -2"),
    "huge NAXIS": (header_with("NAXIS   =                    2", "NAXIS   =            999999999"), "NAXIS = 99999"),
    "negative NAXIS1": (header_with(NAXIS1, NAXIS1.replace(" 12", "-12")), "a negative size"),
    "enormous FITS": (header_with(NAXIS1, NAXIS1.replace("      12", "99999912")), "x 99999912 pixels; cut out"),
    "enormous npy": (as_npy(GOOD).replace(b"(10, 12), }      ", b"(99999, 99999), }", 1), "99999 pixels; cut out"),
    "oblong": (as_fits(fits.PrimaryHDU(GOOD, sky(0.04, CD1_1=1e-4))), "resample it to square pixels"),
}
TRUNCATED = {kind: content[: len(content) * 3 // 5] for kind, content in KINDS.items() if kind != "extension"}
BAD |= {f"truncated {kind}": (content, "truncated or damaged") for kind, content in TRUNCATED.items()}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_gives_one_sentence_that_names_it(tmp_path, name):
    content, sentence = BAD[name]
    path = tmp_path / "x.npy"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_image(path)
    assert sentence in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_what_is_not_a_regular_file(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "sparse.npy").open("wb") as stream:
        stream.truncate(10_000_000_000)
    for name, sentence in {
        "absent": "no such file",
        "loop": "too many levels of symbolic links",
        "pipe": "not a regular file",
        "sparse.npy": "has 10.0 GB",
        ".": "is a folder",
        "nul\0": "not a valid file name",
        "x" * 300: "file name too long",
    }.items():
        with pytest.raises(InputError, match=sentence):
            read_image(tmp_path / name)


def test_decompression_bombs_are_rejected_early(tmp_path, monkeypatch):
    monkeypatch.setattr("darklens.data.readers.fits.MAX_BYTES", 4_000_000)
    (tmp_path / "a").write_bytes(gzip.compress(KINDS["fits"] + bytes(2_000_000)))
    with pytest.raises(InputError, match=r"decompresses to more than 0\.5 MB"):
        read_image(tmp_path / "a")
    with zipfile.ZipFile(tmp_path / "b", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("image.npy", KINDS["npy"])
        for i in range(4):
            with archive.open(f"{i}.npy", "w") as stream:
                stream.write(bytes(1_000_000))
    monkeypatch.setattr("darklens.data.readers.npy.MAX_BYTES", 3_000_000)
    with pytest.raises(InputError, match="decompresses to more than 1 GB"):
        read_image(tmp_path / "b")
    with h5py.File(tmp_path / "c", "w") as file:
        file.create_dataset(
            "image", shape=(9, 9), dtype="f8", chunks=(9000, 9000), maxshape=(None, None), compression="gzip"
        )
    with pytest.raises(InputError, match="too large or too many chunks"):
        read_image(tmp_path / "c")


def test_false_lengths_allocate_no_memory(tmp_path):
    def assert_rejected(content, sentence):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(InputError, match=sentence):
            read_image(tmp_path / "x")

    assert_rejected(b"\x93NUMPY\x02\0" + b"\xff" * 4 + bytes(99), "truncated or damaged")
    assert_rejected(b"\x93NUMPY\x01\0\x10\x27" + b"(" * 10_000, "truncated or damaged")
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("image.npy", KINDS["npy"])
    assert_rejected(stream.getvalue(), "unsupported compression")
    directory = bytearray(KINDS["npz"])
    end = directory.rindex(b"PK\x05\x06")
    directory[end + 12 : end + 16] = (2_000_000).to_bytes(4, "little")
    assert_rejected(directory, "too many members")
    for card in ("BSCALE  =                  0.0", "BZERO   = 'NaN     '", "BSCALE  = 'inf     '"):
        content = as_fits(fits.PrimaryHDU(GOOD))
        assert_rejected(content.replace(b"END".ljust(160), card.encode().ljust(80) + b"END".ljust(80), 1), "BSCALE = ")


def test_hdf5_chunks_that_decompress_to_more_than_their_size(tmp_path):
    with h5py.File(tmp_path / "x", "w") as file:
        image = file.create_dataset("image", shape=(8, 8), dtype="f8", chunks=(8, 8), compression="gzip")
        image.id.write_direct_chunk((0, 0), zlib.compress(bytes(50_000_000)))
    with pytest.raises(InputError, match="decompresses to more than its size"):
        read_image(tmp_path / "x")
    with h5py.File(tmp_path / "y", "w") as file:
        image = file.create_dataset("image", shape=(8, 8), dtype="f8", chunks=(8, 8), compression="lzf")
        image.id.write_direct_chunk((0, 0), b"\x00a" + b"\xe0\xff\x00" * 1000)  # copies of 264 bytes
    with pytest.raises(InputError, match="decompresses to more than its size"):
        read_image(tmp_path / "y")
    with h5py.File(tmp_path / "w", "w") as file:
        file.create_dataset("image", data=GOOD, chunks=(5, 6), scaleoffset=3)
    with pytest.raises(InputError, match="unsupported filters"):
        read_image(tmp_path / "w")
    with h5py.File(tmp_path / "z", "w") as file:
        file.create_dataset("image", data=GOOD, chunks=(5, 6), compression="gzip", shuffle=True, fletcher32=True)
    np.testing.assert_array_equal(read_image(tmp_path / "z").pixels, GOOD)


def test_the_pixel_scale_is_not_read_from_another_file(tmp_path):
    (tmp_path / "other.h5").write_bytes(HST)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["image_data"] = GOOD
        file["transform_pix2angle"] = h5py.ExternalLink(tmp_path / "other.h5", "transform_pix2angle")
    assert read_image(tmp_path / "x.h5").pixel_scale is None
    with h5py.File(tmp_path / "y.h5", "w") as file:
        file["image"] = GOOD
        file.attrs["pixel_scale"] = np.zeros(5000)
    with pytest.raises(InputError, match="states 5000 values of pixel_scale; give --pixel-scale"):
        read_image(tmp_path / "y.h5")


def test_threads_do_not_change_each_others_warnings(tmp_path):
    (tmp_path / "x").write_bytes(KINDS["fits"])
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        sums = list(pool.map(lambda _: read_image(tmp_path / "x").pixels.sum(), range(200)))
    assert set(sums) == {GOOD.sum()} and warnings.filters == before


CORPUS = sorted((Path(__file__).parent.parent / "corpus").iterdir())


@pytest.mark.parametrize("source", CORPUS, ids=lambda path: path.name)
def test_files_from_fuzzing_give_one_sentence(tmp_path, source):
    """Each file made an earlier reader crash or hang (tools/fuzz_readers.py)."""
    path = tmp_path / "x"
    path.write_bytes(source.read_bytes())
    sentence = sentence_of(path)
    assert sentence.startswith(f"{path}: ") or not sentence


def sentence_of(path):
    """Return the error message for a file, or an empty string if it can be read."""
    try:
        assert read_image(path).pixels.ndim == 2
    except InputError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("kind", KINDS)
def test_random_damage_gives_one_sentence(tmp_path, kind):
    path, rng, sentences = tmp_path / "x", np.random.default_rng(8), []
    for _ in range(250):
        content = bytearray(KINDS[kind])
        for _ in range(rng.choice([1, 2, 4, 16])):
            reach = min(len(content), rng.choice([200, 3000, len(content)]))
            content[rng.integers(reach)] = rng.choice([0, 45, 57, 127, 255, rng.integers(256)])
        if rng.random() < 0.1:
            content = content[: rng.integers(len(content))]
        path.write_bytes(content)
        sentences.append(sentence_of(path))
    bad = [sentence for sentence in sentences if sentence]
    assert len(bad) > 50
    assert all(sentence.startswith(f"{path}: ") and "\n" not in sentence for sentence in bad)
