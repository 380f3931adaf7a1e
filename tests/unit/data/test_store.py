import json

import numpy as np
import pytest

from darklens.data.store import Shard, Store, StoreIndex, write_index, write_shard
from darklens.errors import InputError


@pytest.fixture
def store(tmp_path):
    """Three shards of 4, 4 and 2 images whose first pixel is their index."""
    shards: list[Shard] = []
    for number, (start, stop) in enumerate(((0, 4), (4, 8), (8, 10))):
        images = np.random.default_rng(number).random((stop - start, 1, 5, 5)).astype(np.float32)
        images[:, 0, 0, 0] = np.arange(start, stop)
        truth = {"label": np.arange(start, stop) % 2, "theta_E": np.arange(start, stop) / 10}
        shards.append(write_shard(tmp_path / "s", number, images, truth))
    index = StoreIndex(classes=["no", "yes"], n_pixels=5, pixel_scale=0.1, version="0", shards=shards)
    write_index(tmp_path / "s", index)
    return tmp_path / "s"


def test_images_are_in_the_order_of_the_indices_across_shards(store):
    opened = Store(store)
    assert len(opened) == 10
    assert opened.images([9, 0, 4, 3, 4])[:, 0, 0, 0].tolist() == [9, 0, 4, 3, 4]
    assert opened.labels.tolist() == [0, 1] * 5
    assert opened.truth("theta_E")[7] == 0.7


def test_indices_are_those_of_numpy(store):
    opened = Store(store)
    mask = opened.labels == 1
    assert opened.images(mask)[:, 0, 0, 0].tolist() == [1, 3, 5, 7, 9]
    assert opened.images([-1, 0])[:, 0, 0, 0].tolist() == [9, 0]
    assert opened.images(range(2, 4))[:, 0, 0, 0].tolist() == [2, 3]
    assert opened.images([]).shape == (0, 1, 5, 5)
    for index in (10, -11):
        with pytest.raises(IndexError, match=f"10 images; index {index} is out of range"):
            opened.images([0, index])
    with pytest.raises(IndexError, match=r"the mask has shape \(5,\)"):
        opened.images(mask[:5])


def test_numpy_opens_each_file_with_one_call(store):
    assert np.load(store / "shards" / "00001.images.npy").shape == (4, 1, 5, 5)
    assert np.load(store / "shards" / "00001.truth.npz")["theta_E"].tolist() == [0.4, 0.5, 0.6, 0.7]


def test_writing_the_same_twice_gives_the_same_bytes(store, tmp_path):
    first = Store(store).index.shards[0]
    repeated = write_shard(
        tmp_path / "t", 0, Store(store).images(range(4)), {"label": np.arange(4) % 2, "theta_E": np.arange(4) / 10}
    )
    assert repeated == first


def test_an_unknown_column_is_named(store):
    with pytest.raises(InputError, match="no column 'gamma'; it has label, theta_E"):
        Store(store).truth("gamma")


def test_verify_finds_changed_missing_and_mislabelled_shards(store):
    assert Store(store).verify() == []
    path = store / "shards" / "00002.images.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    (store / "shards" / "00000.truth.npz").unlink()
    problems = Store(store).verify()
    assert len(problems) == 2
    assert "00000.truth.npz is missing" in problems[0]
    assert "00002.images.npy does not match" in problems[1]


GOOD = {"label": np.array([0, 1]), "theta_E": np.array([0.5, 0.6])}


@pytest.mark.parametrize(
    ("images", "truth", "sentence"),
    [
        ({}, {"label": np.array([0, 7])}, "labels must be 2 integers from 0 to 1"),
        ({}, {"label": np.array([0.0, 1.0])}, "labels must be 2 integers"),
        ({}, {"theta_E": np.array([0.5, np.nan])}, "column 'theta_E' has NaN or infinite values"),
        ({}, {"theta_E": np.array([1j, 2j])}, "column 'theta_E' is complex128"),
        ({}, {"theta_E": None}, "no column 'theta_E'"),
        ({}, {"theta_E": np.ones((2, 3))}, "columns differ from those of the previous shards"),
        ({(0, 0, 0, 0): np.inf}, {}, "NaN or infinite pixels"),
    ],
)
def test_verify_checks_contents(store, images, truth, sentence):
    """The second of two shards has valid checksums but invalid contents."""
    opened = Store(store)
    pixels = opened.images(range(2))
    for index, value in images.items():
        pixels[index] = value
    columns = {name: value for name, value in (GOOD | truth).items() if value is not None}
    shards = [write_shard(store, 0, opened.images(range(2)), GOOD), write_shard(store, 1, pixels, columns)]
    for name in ("00002.images.npy", "00002.truth.npz"):
        (store / "shards" / name).unlink()
    write_index(store, opened.index.model_copy(update={"shards": shards, "columns": {"theta_E": "arcsec"}}))
    problems = Store(store).verify()
    assert any(sentence in problem and "00001" in problem for problem in problems), problems
    assert not any("00000" in problem for problem in problems)


def test_verify_checks_the_shape_of_every_file(store):
    index = Store(store).index
    write_index(store, index.model_copy(update={"n_pixels": 6}))
    assert sum("float32 (4, 1, 5, 5), not float32 (4, 1, 6, 6)" in p for p in Store(store).verify()) == 2
    short = index.shards[2].model_copy(update={"n": 3})
    write_index(store, index.model_copy(update={"shards": [*index.shards[:2], short]}))
    assert any("column 'label' has shape (2,), not 3 rows" in p for p in Store(store).verify())


def test_verify_reports_files_that_do_not_belong(store):
    (store / "shards" / "00003.images.npy").write_bytes(b"")
    (store / "shards" / ".00001.truth.npz.ab3_x9qz.npz").write_bytes(b"")
    problems = Store(store).verify()
    assert len(problems) == 2 and all("does not belong to the store" in p for p in problems)


@pytest.mark.parametrize("content", [b"", b"PK", None])
def test_a_damaged_table_is_named_when_read(store, content):
    path = store / "shards" / "00001.truth.npz"
    path.write_bytes(path.read_bytes()[:-30] if content is None else content)
    with pytest.raises(InputError, match=r"00001\.truth\.npz is missing or damaged"):
        Store(store).truth("theta_E")


def test_a_truncated_shard_is_named_when_read(store):
    path = store / "shards" / "00001.images.npy"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(InputError, match=r"00001\.images\.npy is missing or damaged"):
        Store(store).images([5])


def test_a_table_that_decompresses_to_more_than_its_limit_is_not_read(store, monkeypatch):
    monkeypatch.setattr("darklens.data.store._MAX_TRUTH_BYTES", 100)
    with pytest.raises(InputError, match="is missing or damaged"):
        Store(store).truth("theta_E")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"classes": ["no", "../../x"]}, "the name of a class"),
        ({"schema": 2}, "schema"),
        ({"shards": []}, "shards"),
        ({"extra": 1}, "extra"),
        ({"n_pixels": "x"}, "n_pixels"),
        ({"population": {"version": 1}}, "population: .* needs a name"),
        ({"population": {"name": "\x1b[31m"}}, "population: .* needs a name"),
    ],
)
def test_an_invalid_index_is_an_error(store, change, sentence):
    tree = json.loads((store / "store.json").read_text()) | change
    (store / "store.json").write_text(json.dumps(tree))
    with pytest.raises(InputError, match=sentence):
        Store(store)


def test_a_folder_that_is_not_a_store_is_an_error(tmp_path):
    with pytest.raises(InputError, match="interrupted"):
        Store(tmp_path)
    with pytest.raises(InputError, match="not a folder"):
        Store(tmp_path / "absent")
