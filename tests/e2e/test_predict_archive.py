"""Prediction tables have the same bytes for any number of processes, on a cluster and after interruptions; errors."""

import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from archives import PIXELS, fill, small_bundle
from commandline import darklens, rows_of
from spawning import dask_cluster, prepared_pools, prepared_processes, start_command

from darklens import populations
from darklens.errors import StoppedError
from darklens.predict import find_images, predict_table, problems_in, table
from darklens.simulate.batch import simulate_batch

N, BAD = 500, {5, 400}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A model, an archive, and the table that one process makes of it."""
    work = tmp_path_factory.mktemp("archive")
    small_bundle().save(work / "model")
    fill(work / "files", N, bad=BAD)
    predict_table(work / "model", files_of(work), work / "whole.csv", workers=1)
    return work


def files_of(work, folder="files"):
    return [str(path) for path in find_images([work / folder])]


def whole(work):
    return (work / "whole.csv").read_bytes()


def stopped_after(blocks, monkeypatch, error):
    """Raise `error` after a number of blocks."""
    done = []

    def make_block(*task):
        if len(done) == blocks:
            raise error
        done.append(task)
        return make(*task)

    make = table.make_block
    monkeypatch.setattr(table, "make_block", make_block)


def test_rows_are_in_the_order_of_the_files_and_bad_ones_are_named(work, tmp_path, capsys):
    assert darklens("predict", work / "model", work / "files", "--out", tmp_path / "t.csv") == 3
    assert (tmp_path / "t.csv").read_bytes() == whole(work)
    rows = rows_of(tmp_path / "t.csv")
    assert [row["path"] for row in rows] == files_of(work)
    assert {i for i, row in enumerate(rows) if row["status"] == "error"} == BAD
    assert len({row["p_no"][:6] for row in rows}) == 21  # twenty different images, and none
    captured = capsys.readouterr()
    assert captured.err.count("is not an npy") == 2 and f"{N - 2} of {N} images classified" in captured.out
    assert list(problems_in(tmp_path / "t.csv")) == [row["message"] for row in rows if row["message"]]
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]


def test_more_bad_files_than_anyone_reads_are_counted(work, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("darklens.cli.inference._MAX_LISTED", 1)
    assert darklens("predict", work / "model", work / "files", "--out", tmp_path / "t.csv") == 3
    warning, *complaints = capsys.readouterr().err.splitlines()
    assert "no fit checks its classes" in warning
    assert len(complaints) == 2 and complaints[1].startswith("darklens: 1 more files cannot be used")


def test_two_processes_and_a_cluster_write_the_same_bytes(work, tmp_path, monkeypatch):
    monkeypatch.chdir(work)  # workers are elsewhere; relative paths begin here all the same
    expected = whole(work).replace(f"{work}/".encode(), b"")
    with prepared_pools():
        assert darklens("predict", "model", "files", "--out", tmp_path / "two.csv", "--workers", 2) == 3
    assert (tmp_path / "two.csv").read_bytes() == expected
    with dask_cluster(1) as cluster:
        words = ["predict", "model", "files", "--out", tmp_path / "c.csv", "--cluster", cluster.scheduler_address]
        assert darklens(*words) == 3
    assert (tmp_path / "c.csv").read_bytes() == expected


@pytest.mark.parametrize("kind", ["npz", "h5", "npy"])
def test_a_stack_has_a_row_for_each_of_its_images(work, tmp_path, monkeypatch, capsys, kind):
    """The same probabilities as those of the same images in files of their own, in one and in two processes."""
    files, stack = files_of(work)[:150], tmp_path / f"stack.{kind}"
    images = np.stack([np.full((PIXELS, PIXELS), np.nan) if i in BAD else np.load(f) for i, f in enumerate(files)])
    if kind == "npz":
        np.savez_compressed(stack, images=images, label=np.arange(150))
    elif kind == "npy":
        np.save(stack, images)
    else:
        with h5py.File(stack, "w") as file:
            file.create_dataset("images", data=images, chunks=(7, PIXELS, PIXELS), compression="gzip")
    assert darklens("predict", work / "model", stack, "--out", tmp_path / "t.csv", "--workers", 1) == 3
    assert "stack." in capsys.readouterr().err
    rows, expected = rows_of(tmp_path / "t.csv"), rows_of(work / "whole.csv")[:150]
    assert [row["path"] for row in rows] == [f"{stack}#{i}" for i in range(150)]
    for row, other in zip(rows, expected, strict=True):
        assert row["status"] == other["status"] and row["p_no"][:6] == other["p_no"][:6]
    with prepared_pools():
        assert darklens("predict", work / "model", stack, "--out", tmp_path / "two.csv", "--workers", 2) == 3
    assert (tmp_path / "two.csv").read_bytes() == (tmp_path / "t.csv").read_bytes()


def test_bands_are_not_taken_for_images_and_the_message_says_how_to_say_so(work, tmp_path, capsys):
    np.save(tmp_path / "bands.npy", np.stack([np.load(f) for f in files_of(work)[:3]]))
    bands = tmp_path / "bands.npy"
    assert darklens("predict", work / "model", bands, "--out", tmp_path / "t.csv") == 3
    assert f"If these are 3 images, give {bands}#0 to {bands}#2" in capsys.readouterr().err
    assert darklens("predict", work / "model", f"{bands}#2", "--out", tmp_path / "t.csv") == 0
    (row,) = rows_of(tmp_path / "t.csv")
    assert row["path"] == f"{bands}#2" and row["p_no"][:6] == rows_of(work / "whole.csv")[2]["p_no"][:6]
    assert darklens("predict", work / "model", f"{bands}#2", "--out", bands) == 2  # an input is never overwritten


def test_a_killed_run_resumes_to_the_same_bytes(work, tmp_path, capsys):
    out = tmp_path / "out" / "t.csv"
    out.parent.mkdir()
    run = start_command(
        ["predict", work / "model", work / "files", "--out", out, "--workers", "1"], tmp_path / "errors"
    )
    rows = out.parent / "t.csv.unfinished" / "rows"
    give_up = time.monotonic() + 100
    while not (rows.exists() and rows.stat().st_size):
        assert run.is_alive() and time.monotonic() < give_up
        time.sleep(0.001)
    run.kill()
    run.join()
    assert not out.exists(), "it was finished before it was killed"
    assert darklens("predict", work / "model", work / "files", "--out", out) == 3
    assert out.read_bytes() == whole(work)
    kept = int(capsys.readouterr().out.split()[0])
    assert 0 < kept < N and kept % 64 == 0
    assert [path.name for path in out.parent.iterdir()] == ["t.csv"]


def test_ctrl_c_prints_one_sentence_and_the_same_command_resumes(work, tmp_path, monkeypatch, capsys):
    words = ["predict", work / "model", work / "files", "--out", tmp_path / "t.csv", "--workers", 1]
    with monkeypatch.context() as patch:
        stopped_after(3, patch, KeyboardInterrupt())
        assert darklens(*words) == 130
    said = capsys.readouterr().err
    assert said.startswith("darklens: Interrupted") and said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv.unfinished"]
    assert darklens(*words) == 3
    assert "192 images were already classified" in capsys.readouterr().out
    assert (tmp_path / "t.csv").read_bytes() == whole(work)


def test_a_run_that_failed_before_its_first_block_leaves_nothing(work, tmp_path, monkeypatch):
    stopped_after(0, monkeypatch, StoppedError("a worker was killed"))
    with pytest.raises(StoppedError):
        predict_table(work / "model", files_of(work), tmp_path / "t.csv", workers=1)
    assert list(tmp_path.iterdir()) == []


def interrupted(work, files, out, monkeypatch, blocks=4):
    with monkeypatch.context() as patch:
        stopped_after(blocks, patch, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            predict_table(work / "model", files, out, workers=1)


@pytest.mark.parametrize("damage", [lambda b: b[:-7], lambda b: b[:-7] + b"9" + b[-6:], lambda b: b + b'{"block": 5,'])
def test_an_incomplete_block_is_classified_again(work, tmp_path, monkeypatch, damage):
    out, files = tmp_path / "t.csv", files_of(work)
    interrupted(work, files, out, monkeypatch)
    rows = tmp_path / "t.csv.unfinished" / "rows"
    rows.write_bytes(damage(rows.read_bytes()))
    interrupted(work, files, out, monkeypatch, blocks=2)  # then resume from the truncated file
    assert predict_table(work / "model", files, out, workers=1).resumed >= 5 * 64
    assert out.read_bytes() == whole(work)


def test_another_model_list_or_option_starts_again_with_a_warning(work, tmp_path, monkeypatch):
    out, files, warnings = tmp_path / "t.csv", files_of(work)[:160], []
    small_bundle(seed=1).save(tmp_path / "other")
    for change, reason in (
        ({"model": tmp_path / "other"}, "model"),
        ({"files": files[1:]}, "list of files"),
        ({"pixel_scale": 0.051}, "pixel scale"),
    ):
        interrupted(work, files, out, monkeypatch, blocks=2)
        arguments = {"model": work / "model", "files": files, "workers": 1} | change
        assert predict_table(out=out, warn=warnings.append, **arguments).resumed == 0
        again, unchecked = warnings[-2:]
        assert reason in again.split("differs in: ")[1] and "starting again" in again
        assert "no fit checks its classes" in unchecked
        resumed = out.read_bytes()
        predict_table(out=tmp_path / "again.csv", **arguments)
        assert resumed == (tmp_path / "again.csv").read_bytes()


def test_a_file_replaced_during_an_interruption_is_read_again(work, tmp_path, monkeypatch):
    fill(tmp_path / "files", 200, bad={3})
    out, files = tmp_path / "t.csv", [str(path) for path in find_images([tmp_path / "files"])]
    interrupted(work, files, out, monkeypatch, blocks=2)
    (tmp_path / "files" / "000003.npy").write_bytes((tmp_path / "files" / "000004.npy").read_bytes())
    summary = predict_table(work / "model", files, out, workers=1)
    assert summary.bad == 0 and summary.resumed == 64


def test_wrong_use_is_one_sentence_and_nothing_is_written(work, tmp_path, capsys, monkeypatch):
    good = sorted((work / "files").iterdir())[0]
    (tmp_path / "file").write_text("")
    words = ["predict", work / "model", good, "--out"]
    for more, said in (
        ([tmp_path / "t.csv", "--workers", 2, "--cluster", "tcp://127.0.0.1:1"], "give either --workers or"),
        ([tmp_path / "t.csv", "--maps", tmp_path / "m", "--workers", 2], "--maps needs one process"),
        ([tmp_path / "t.csv", "--maps", tmp_path / "m", "--backend", "onnx"], "--maps needs one process"),
        ([tmp_path / "t.csv", "--pixel-scale", 5], "too different to resample"),
        ([tmp_path / "t.csv", "--backend", "int8"], "needs two readable images"),
        ([tmp_path / "file" / "t.csv"], "cannot be written"),
    ):
        assert darklens(*words, *more) == 2
        captured = capsys.readouterr().err.strip().splitlines()
        assert len(captured) == 1 and said in captured[0], captured
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_two_commands_do_not_write_one_table(work, tmp_path):
    from darklens.errors import InputError
    from darklens.files import locked

    (tmp_path / "t.csv.unfinished").mkdir()
    with (
        locked(tmp_path / "t.csv.unfinished" / "lock"),
        pytest.raises(InputError, match="Another process is writing"),
    ):
        predict_table(work / "model", files_of(work), tmp_path / "t.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv.unfinished"]


def test_a_worker_with_another_model_or_version_raises(work):
    task = table.Task(model=str(work / "model"), bundle_sha256="0", backend="eager", folder=str(work))
    for change, said in (
        ({}, "differs"),
        ({"model": str(work / "none")}, "cannot see"),
        ({"version": "0"}, "has darklens"),
    ):
        with pytest.raises(table.InputError, match=said):
            table.make_block(task.model_copy(update=change).model_dump_json(), 0, ["files/000000.npy"])


def make_last_block(task, files, out):
    """Write the row of the last block, in a fresh process."""
    out.write_bytes(table.make_block(task, 1, table.Blocks(files, 16)[1])[1])


def test_fits_of_a_block_do_not_depend_on_the_blocks_before(tmp_path, monkeypatch):
    """A process that resumes a table may start with its last block."""
    files = [str(tmp_path / f"{i:02}.npy") for i in range(18)]
    for path, image in zip(files, simulate_batch(populations.get("common-test-i"), 3, range(18))[0], strict=True):
        np.save(path, image[0])
    tasks = []

    def record(work, task, *_):
        tasks.append(task)
        raise KeyboardInterrupt

    monkeypatch.setattr(table, "_make_blocks", record)
    with pytest.raises(KeyboardInterrupt):
        predict_table(Path("lens_residual"), files, tmp_path / "t.csv", workers=1)
    task, blocks = tasks[0].model_dump_json(), table.Blocks(files, 16)
    _, last = (table.make_block(task, n, blocks[n])[1].decode() for n in (0, 1))
    fresh = prepared_processes().Process(target=make_last_block, args=(task, files, tmp_path / "last"))
    fresh.start()
    fresh.join()
    assert (tmp_path / "last").read_text().split() == last.split()
    assert len(last.split()) >= 2
