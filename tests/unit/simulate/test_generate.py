"""The same recipe and seed are the same bytes, however they are made; nothing is overwritten or half-written."""

import numpy as np
import pytest
import torch

from darklens.data.store import Store
from darklens.errors import InputError
from darklens.simulate import generate as module
from darklens.simulate import populations
from darklens.simulate.draw import draw
from darklens.simulate.batch import simulate_batch
from darklens.simulate.generate import generate
from darklens.simulate.render import render

POPULATION = populations.get("common-test-i", ["field.n_pixels=24"])


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(module, "SHARD_SIZE", 6)


def bytes_of(store):
    return {p.name: p.read_bytes() for p in sorted((store / "shards").iterdir())}


@pytest.mark.parametrize("name", populations.names())
def test_an_image_is_the_same_bytes_in_any_batch(name):
    population = populations.get(name, ["field.n_pixels=31"])
    together, truth = simulate_batch(population, 3, list(range(9)))
    backwards, _ = simulate_batch(population, 3, list(range(8, -1, -1)))
    assert together.tobytes() == backwards[::-1].tobytes()
    alone, one = simulate_batch(population, 3, [5])
    assert together[5].tobytes() == alone[0].tobytes()
    assert all(np.array_equal(truth[key][5], one[key][0]) for key in truth)
    assert not np.array_equal(together[0], simulate_batch(population, 4, [0])[0][0])


def test_a_store_does_not_depend_on_the_number_of_processes(tmp_path, monkeypatch):
    one = generate(POPULATION, tmp_path / "one", n_per_class=5, seed=1)
    two = generate(POPULATION, tmp_path / "two", n_per_class=5, seed=1, workers=2)
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")
    assert one.sha256 == two.sha256
    assert (tmp_path / "one" / "store.json").read_bytes() == (tmp_path / "two" / "store.json").read_bytes()
    assert one.labels.tolist() == [0, 1, 2] * 5 and len(one.index.shards) == 3
    assert one.verify() == []


def test_a_longer_store_begins_with_the_shorter_one(tmp_path):
    short = generate(POPULATION, tmp_path / "a", n_per_class=2, seed=1)
    long = generate(POPULATION, tmp_path / "b", n_per_class=5, seed=1)
    np.testing.assert_array_equal(short.images(range(6)), long.images(range(6)))


def test_an_interrupted_simulation_goes_on_and_keeps_what_is_finished(tmp_path, monkeypatch):
    whole = generate(POPULATION, tmp_path / "whole", n_per_class=5, seed=1)
    original = module.simulate_batch

    def fail_in_the_second_shard(population, seed, indices):
        if indices[0] >= 6:
            raise KeyboardInterrupt
        return original(population, seed, indices)

    monkeypatch.setattr(module, "simulate_batch", fail_in_the_second_shard)
    with pytest.raises(KeyboardInterrupt):
        generate(POPULATION, tmp_path / "s", n_per_class=5, seed=1)
    with pytest.raises(InputError, match="interrupted"):
        Store(tmp_path / "s")
    kept = tmp_path / "s" / "shards" / "00000.images.npy"
    modified = kept.stat().st_mtime_ns
    monkeypatch.setattr(module, "simulate_batch", original)
    with pytest.raises(InputError, match="unfinished simulation of another"):
        generate(POPULATION, tmp_path / "s", n_per_class=5, seed=2)
    resumed = generate(POPULATION, tmp_path / "s", n_per_class=5, seed=1)
    assert kept.stat().st_mtime_ns == modified
    assert bytes_of(tmp_path / "s") == bytes_of(tmp_path / "whole") and resumed.sha256 == whole.sha256
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == ["shards", "store.json"]


def test_progress_counts_every_image_once(tmp_path):
    seen = []
    for _ in range(2):
        generate(POPULATION, tmp_path / "s", n_per_class=5, seed=1, advance=seen.append)
    assert sum(seen) == 30


def test_other_contents_are_never_overwritten(tmp_path):
    generate(POPULATION, tmp_path / "s", n_per_class=2, seed=1)
    with pytest.raises(InputError, match="already holds another store"):
        generate(POPULATION, tmp_path / "s", n_per_class=2, seed=2)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("x")
    with pytest.raises(InputError, match="not empty"):
        generate(POPULATION, tmp_path / "notes", n_per_class=2, seed=2)
    assert [p.name for p in (tmp_path / "notes").iterdir()] == ["a.txt"]


@pytest.mark.parametrize("source_angle", [0.0, 0.05, 1.0])
def test_a_pixel_on_the_end_of_a_line_mass_does_not_spoil_the_image(source_angle):
    population = populations.get("common-test-i", ["field.n_pixels=31"])
    truth = draw(population, 0, [2])
    for offset in (0.0, 1e-6, 1e-4):
        # The far end lies `offset` arcsec beside the centre of pixel (20, 18).
        x, y, angle, length = 3 * 0.05 + offset, 5 * 0.05, 0.7, 1.3
        changes = {
            "line_x": x - length / 2 * np.cos(angle),
            "line_y": y - length / 2 * np.sin(angle),
            "line_angle": angle,
            "line_length": length,
            "source_angle": source_angle,
        }
        image = render(population, truth | {k: np.array([v]) for k, v in changes.items()})
        assert torch.isfinite(image).all() and image.min() >= 0
