"""The same recipe and seed are the same bytes, however they are made; nothing is overwritten or half-written."""

import errno
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from darklens import populations
from darklens.data.store import Store
from darklens.errors import InputError
from darklens.files import locked
from darklens.simulate import generate as module
from darklens.simulate.batch import simulate_batch
from darklens.simulate.generate import generate
from darklens.simulate.render import render
from darklens.simulate.truth import draw

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


def test_an_image_does_not_depend_on_the_size_of_shards(tmp_path):
    six = generate(POPULATION, tmp_path / "six", n_per_class=5, seed=1)
    four = generate(POPULATION, tmp_path / "four", n_per_class=5, seed=1, shard_size=4)
    assert [s.n for s in six.index.shards] == [6, 6, 3] and [s.n for s in four.index.shards] == [4, 4, 4, 3]
    assert six.images(range(15)).tobytes() == four.images(range(15)).tobytes()
    for name in [*six.index.columns, "label"]:
        assert six.truth(name).tobytes() == four.truth(name).tobytes()


def test_a_shard_of_large_images_stays_small(monkeypatch):
    monkeypatch.setattr(module, "SHARD_SIZE", 256)
    sizes = {n: module._shard_size(populations.get("common-test-i", [f"field.n_pixels={n}"])) for n in (150, 512, 4096)}
    assert sizes == {150: 256, 512: 64, 4096: 1}


def test_any_executor_serves(tmp_path):
    alone = generate(POPULATION, tmp_path / "alone", n_per_class=5, seed=1)
    with ThreadPoolExecutor(3) as threads:
        generate(POPULATION, tmp_path / "threads", n_per_class=5, seed=1, executor=threads)
    assert alone.labels.tolist() == [0, 1, 2] * 5 and alone.verify() == []
    assert bytes_of(tmp_path / "alone") == bytes_of(tmp_path / "threads")


def test_a_longer_store_begins_with_the_shorter_one(tmp_path):
    short = generate(POPULATION, tmp_path / "a", n_per_class=2, seed=1)
    long = generate(POPULATION, tmp_path / "b", n_per_class=5, seed=1)
    np.testing.assert_array_equal(short.images(range(6)), long.images(range(6)))


def test_an_interrupted_simulation_goes_on_and_keeps_what_is_finished(tmp_path, monkeypatch):
    whole = generate(POPULATION, tmp_path / "whole", n_per_class=5, seed=1)
    original = module.simulate_batch

    def fail_in_the_second_shard(population, seed, indices, **options):
        if indices[0] >= 6:
            raise KeyboardInterrupt
        return original(population, seed, indices, **options)

    monkeypatch.setattr(module, "simulate_batch", fail_in_the_second_shard)
    with pytest.raises(KeyboardInterrupt):
        generate(POPULATION, tmp_path / "s", n_per_class=5, seed=1)
    with pytest.raises(InputError, match="interrupted"):
        Store(tmp_path / "s")
    kept = tmp_path / "s" / "shards" / "00000.images.npy"
    modified = kept.stat().st_mtime_ns
    (tmp_path / "s" / "shards" / ".00001.images.npy.ab3_x9qz.npy").write_bytes(b"left by a killed worker")
    monkeypatch.setattr(module, "simulate_batch", original)
    with pytest.raises(InputError, match="unfinished simulation of another"):
        generate(POPULATION, tmp_path / "s", n_per_class=5, seed=2)
    resumed = generate(POPULATION, tmp_path / "s", n_per_class=5, seed=1)
    assert kept.stat().st_mtime_ns == modified
    assert bytes_of(tmp_path / "s") == bytes_of(tmp_path / "whole") and resumed.sha256 == whole.sha256
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == ["shards", "store.json"]


def interrupted(out, monkeypatch):
    """Make the first two of three shards and stop as if killed."""
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_index", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            generate(POPULATION, out, n_per_class=5, seed=1)
    for name in ("shards/00002.images.npy", "shards/00002.truth.npz", "unfinished/00002.json"):
        (out / name).unlink()


@pytest.mark.parametrize(
    "damage",
    [
        lambda out: flip(out / "shards" / "00001.images.npy"),
        lambda out: flip(out / "shards" / "00001.truth.npz"),
        lambda out: truncate(out / "shards" / "00001.images.npy"),
        lambda out: truncate(out / "unfinished" / "00001.json"),
        lambda out: (out / "unfinished" / "00001.json").unlink(),
        lambda out: (out / "shards" / "00001.truth.npz").unlink(),
    ],
)
def test_a_torn_or_changed_shard_of_an_interrupted_run_is_made_again(tmp_path, monkeypatch, damage):
    generate(POPULATION, tmp_path / "whole", n_per_class=5, seed=1)
    interrupted(tmp_path / "s", monkeypatch)
    damage(tmp_path / "s")
    made = []
    original = module.write_shard
    monkeypatch.setattr(
        module, "write_shard", lambda out, number, *rest: made.append(number) or original(out, number, *rest)
    )
    generate(POPULATION, tmp_path / "s", n_per_class=5, seed=1)
    assert made == [1, 2]
    assert bytes_of(tmp_path / "s") == bytes_of(tmp_path / "whole")


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-20])


def test_a_full_disk_is_named_and_the_same_call_goes_on(tmp_path):
    """Nothing may grow beyond a limit, which makes the system end writes as on a full disk."""
    resource = pytest.importorskip("resource")
    whole = generate(POPULATION, tmp_path / "whole", n_per_class=20, seed=1, shard_size=50)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A shard of 50 images has 115 kB, the last one 23 kB.
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))
    try:
        with pytest.raises(InputError, match=r"00000\.images\.npy cannot be written \(the disk or the quota is full\)"):
            generate(POPULATION, tmp_path / "s", n_per_class=20, seed=1, shard_size=50)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [p.name for p in (tmp_path / "s" / "shards").iterdir()] == ["00000.truth.npz"]
    assert generate(POPULATION, tmp_path / "s", n_per_class=20, seed=1, shard_size=50).sha256 == whole.sha256


def test_the_disk_is_looked_at_before_anything_is_written(tmp_path, monkeypatch):
    needed = module.bytes_needed(POPULATION, 15)
    store = generate(POPULATION, tmp_path / "fits", n_per_class=5, seed=1)
    on_disk = sum(p.stat().st_size for p in (store.path / "shards").iterdir())
    assert 0.7 < needed / on_disk < 1
    interrupted(tmp_path / "begun", monkeypatch)
    monkeypatch.setattr("darklens.files.shutil.disk_usage", lambda _: SimpleNamespace(free=needed - 1))
    with pytest.raises(InputError, match=r"s needs [\d.]+ kB, but its disk has only [\d.]+ kB free"):
        generate(POPULATION, tmp_path / "below" / "s", n_per_class=5, seed=1)
    assert not (tmp_path / "below").exists()
    generate(POPULATION, tmp_path / "begun", n_per_class=5, seed=1)  # what is there needs no more space
    with pytest.raises(InputError, match="free; reduce the number"):
        generate(POPULATION, tmp_path / "t", n_per_class=10**18, seed=1)


def test_a_place_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"cannot be written: \S+/file is a file, not a folder"):
        generate(POPULATION, tmp_path / "file" / "s", n_per_class=5, seed=1)

    def read_only(**_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("darklens.files.tempfile.mkstemp", read_only)
    with pytest.raises(InputError, match="read-only file system"):
        generate(POPULATION, tmp_path / "s", n_per_class=5, seed=1)


def test_two_runs_never_write_one_folder_at_once(tmp_path, monkeypatch):
    pytest.importorskip("fcntl")
    interrupted(tmp_path / "s", monkeypatch)
    with (
        locked(tmp_path / "s" / "unfinished" / "lock"),
        pytest.raises(InputError, match="Another process is writing to"),
    ):
        generate(POPULATION, tmp_path / "s", n_per_class=5, seed=1)
    assert len(generate(POPULATION, tmp_path / "s", n_per_class=5, seed=1)) == 15


def test_a_worker_says_that_it_cannot_see_the_folder_or_has_another_version(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"cannot see .*absent: --out must be on a file system that all workers share"):
        module._make_shard(str(tmp_path / "absent"), 0)
    interrupted(tmp_path / "s", monkeypatch)
    monkeypatch.setattr("darklens.__version__", "9.9")
    with pytest.raises(InputError, match=r"has darklens 9\.9, not 0"):
        module._make_shard(str(tmp_path / "s"), 2)


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
