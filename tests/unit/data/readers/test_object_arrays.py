"""The image of a DeepLenseSim object array is read from its pickle; nothing else in a pickle is executed."""

import io
import os
import pickle

import numpy as np
import pytest

from darklens.data.readers import read_image
from darklens.errors import InputError

GOOD = np.arange(120.0).reshape(10, 12)


def pair(first, second):
    array = np.empty(2, dtype=object)
    array[0], array[1] = first, second
    return array


def as_npy(payload):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|O", "fortran_order": False, "shape": (2,)})
    return stream.getvalue() + payload


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("owned",)


@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("mass", [1e-23, np.float64(1e-23), 3, None])
@pytest.mark.parametrize("image", [GOOD, GOOD.astype(">f4"), np.asfortranarray(GOOD)])
def test_an_array_of_image_and_mass_is_read(tmp_path, protocol, mass, image):
    (tmp_path / "x").write_bytes(as_npy(pickle.dumps(pair(image, mass), protocol=protocol)))
    np.testing.assert_array_equal(read_image(tmp_path / "x").pixels, GOOD)


@pytest.mark.parametrize(
    "payload",
    [
        pickle.dumps(pair(GOOD, Hostile()), protocol=4),
        pickle.dumps(pair(GOOD, {}), protocol=4),
        pickle.dumps(pair(GOOD, GOOD), protocol=4),
        pickle.dumps(GOOD, protocol=4),
        pickle.dumps(Hostile()),
        b"cos\nmkdir\n(S'owned'\ntR.",
        b"",
        b"\x80\x04r\xff\xff\xff\xff.",
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
        pickle.dumps(pair(GOOD, 1.0), protocol=4)[:-300],
    ],
)
def test_other_pickles_are_rejected_and_not_executed(tmp_path, monkeypatch, payload):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").write_bytes(as_npy(payload))
    with pytest.raises(InputError, match="pickled Python objects, which are never loaded"):
        read_image(tmp_path / "x")
    assert not (tmp_path / "owned").exists()


def test_a_repeated_image_is_rejected_before_it_is_created(tmp_path, monkeypatch):
    array = np.empty(3, dtype=object)
    array[:] = [None, None, None]
    outer, plane = pickle.dumps(array, protocol=3), pickle.dumps(GOOD, protocol=3)[2:-1]
    start, end = outer.index(b"(NNNe"), outer.index(b"(NNNe") + 5
    payload = outer[:start] + b"(" + plane + b"q\xf0" + b"h\xf0" * 9000 + b"e" + outer[end:]
    monkeypatch.setattr("darklens.data.readers.object_arrays._plane", lambda item: pytest.fail("created"))
    (tmp_path / "x").write_bytes(as_npy(payload))
    with pytest.raises(InputError, match="pickled Python objects"):
        read_image(tmp_path / "x")


@pytest.mark.parametrize(
    "payload",
    [
        b"\x80\x04" + b"(" * 9000 + b".",
        b"\x80\x04)" + b"\x85" * 9000 + b".",
        b"\x80\x04]" + b"q\x00h\x00a" * 3000 + b".",
        b"\x80\x04K\x01" + b"2" * 9000 + b".",
        b"\x80\x04" + b"N" * 20_000 + b".",
        b"\x80\x04cnumpy\ndtype\nX\x0b\0\0\0V4000000000\x85R.",
        b"\x80\x04cnumpy.f2py\n__import__\n.",
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x0bmkdir owned\x85R.",
        b"\x80\x04cnumpy\nndarray\n)\x81.",
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncos\nsystem\nK\0\x85U\x01b\x87R.",
        b"(S'a'\nios\nsystem\n.",
    ],
)
def test_malicious_opcodes_are_rejected(tmp_path, monkeypatch, payload):
    monkeypatch.chdir(tmp_path)
    for name in ("Unpickler", "load", "loads"):
        monkeypatch.setattr(pickle, name, None)
    (tmp_path / "x").write_bytes(as_npy(payload))
    with pytest.raises(InputError, match="pickled Python objects, which are never loaded"):
        read_image(tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_random_damage_gives_one_sentence(tmp_path):
    path, rng, n_rejected = tmp_path / "x", np.random.default_rng(8), 0
    good = as_npy(pickle.dumps(pair(GOOD[:4, :4], 1e-23), protocol=4))
    for _ in range(500):
        content = bytearray(good)
        content[rng.integers(100, len(content))] = rng.integers(256)
        path.write_bytes(content)
        try:
            read_image(path)
        except InputError:
            n_rejected += 1
    assert n_rejected > 50
