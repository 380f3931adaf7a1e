import fcntl
import multiprocessing
import time
from pathlib import Path

import pytest
from commandline import darklens

from darklens import files
from darklens.errors import InputError


def test_a_failed_write_leaves_the_old_file_and_no_temporary(tmp_path):
    target = tmp_path / "a.txt"
    files.write_text(target, "old")
    with pytest.raises(FileNotFoundError), files.atomic_path(target) as temporary:
        temporary.write_text((tmp_path / "absent").read_text())
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_json_refuses_nan_and_names_a_broken_file(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not list(tmp_path.iterdir())
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(InputError, match=r"b\.json is not valid JSON"):
        files.read_json(tmp_path / "b.json")


def test_a_forked_process_does_not_keep_the_lock(tmp_path):
    context = multiprocessing.get_context("fork")
    started = context.Event()

    def run():
        started.set()
        time.sleep(60)

    with files.locked(tmp_path):
        child = context.Process(target=run)
        child.start()
        assert started.wait(60)
        with pytest.raises(InputError, match="Another process"), files.locked(tmp_path):
            pass
    try:
        with files.locked(tmp_path):
            assert child.is_alive()
    finally:
        child.kill()
        child.join()


def test_the_lock_of_a_file_that_was_removed_protects_nothing(tmp_path, monkeypatch):
    path, flock = tmp_path / "lock", fcntl.flock

    def removed_before(*arguments):
        path.unlink()
        flock(*arguments)

    monkeypatch.setattr(fcntl, "flock", removed_before)
    with pytest.raises(InputError, match=r"writing to t\.csv"), files.locked(path, target=Path("t.csv")):
        pass


SIZES = {0: "0.0 kB", 400: "0.4 kB", 99_949: "99.9 kB", 2_500_000: "2.5 MB", 3 * 10**12: "3,000.0 GB"}


@pytest.mark.parametrize(("n_bytes", "words"), SIZES.items())
def test_sizes_in_words(n_bytes, words):
    assert files.size_in_words(n_bytes) == words


def test_control_characters_of_a_name_do_not_reach_the_terminal(tmp_path, capsys):
    names = ["a\x1b[31m", "b\nc", "\u202ed", "\x9be"]
    assert darklens("predict", *(tmp_path / name for name in names), tmp_path / "ok.npy", "--out", tmp_path / "t") == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert "a\\x1b[31m: no" in message and message.isprintable()
