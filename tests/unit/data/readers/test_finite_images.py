"""`read_finite_image` gives one sentence for each problem of an image file."""

import io
import pickle

import numpy as np
import pytest

from darklens.data.readers import read_finite_image
from darklens.errors import InputError


def saved(array, **kwargs):
    stream = io.BytesIO()
    np.save(stream, array, **kwargs)
    return stream.getvalue()


GOOD = np.arange(36.0).reshape(6, 6)
HOSTILE = (
    b"\x93NUMPY\x01\x00v\x00"
    + b"{'descr': __import__('os').system('touch owned'), 'fortran_order': False, 'shape': (1,)}".ljust(117)
    + b"\n"
)

CASES = {
    "empty": (b"", "the file is empty"),
    "text": (b"not an image", "is not an npy, npz, FITS or HDF5 file"),
    "truncated": (saved(GOOD)[:-20], "truncated or damaged"),
    "header only": (saved(GOOD)[:20], "truncated or damaged"),
    "pickled array": (saved(np.array([{"a": 1}], dtype=object), allow_pickle=True), "pickled Python objects"),
    "pickle": (pickle.dumps([1, 2]), "a Python pickle, which is never loaded"),
    "code in the header": (HOSTILE, "truncated or damaged"),
    "three channels": (saved(np.zeros((3, 6, 6))), "has shape (3, 6, 6)"),
    "a line": (saved(np.zeros(6)), "has shape (6,)"),
    "no pixels": (saved(np.zeros((0, 6))), "no pixels"),
    "complex": (saved(GOOD + 1j), "complex128 values"),
    "text array": (saved(np.array([["a", "b"], ["c", "d"]])), "values; save a real-valued"),
    "NaN": (saved(np.where(GOOD == 3, np.nan, GOOD)), "1 pixels are NaN or infinite"),
    "infinite": (saved(np.where(GOOD < 2, np.inf, GOOD)), "2 pixels are NaN or infinite"),
    "too large for float32": (saved(np.where(GOOD < 2, 1e300, GOOD)), "2 pixels are NaN or infinite"),
    "constant": (saved(np.ones((6, 6))), "all pixels have the same value"),
    "enormous": (
        saved(np.zeros((1, 1)))[:0] + saved(np.zeros((2, 2))).replace(b"(2, 2), }", b"(99999, 99999), }", 1),
        "pixels; cut out",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_bad_file_gives_one_sentence_that_names_it(tmp_path, monkeypatch, name):
    content, sentence = CASES[name]
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.npy"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_finite_image(path)
    assert sentence in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "owned").exists()


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_finite_image(tmp_path / "x.npy")
    (tmp_path / "x.jpg").write_bytes(b"123")
    with pytest.raises(InputError, match="is not an npy, npz, FITS or HDF5 file"):
        read_finite_image(tmp_path / "x.jpg")


@pytest.mark.parametrize(
    "array", [GOOD, GOOD[None], GOOD.astype(np.uint16), GOOD.astype(">f4"), np.asfortranarray(GOOD)]
)
def test_good_files_become_float32_planes(tmp_path, array):
    np.save(tmp_path / "x.npy", array)
    image = read_finite_image(tmp_path / "x.npy")
    assert image.dtype == np.float32
    np.testing.assert_array_equal(image, GOOD.astype(np.float32))
