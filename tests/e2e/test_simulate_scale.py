"""One store on any number of processes, on a Dask cluster or after being killed: the same bytes; and what can fail."""

import os
import signal
import socket
import sys
from pathlib import Path

import killing
import pytest
from commandline import darklens
from spawning import dask_cluster, prepared_pools, start_command

from darklens import executors, populations
from darklens.cli import main
from darklens.data.store import Store
from darklens.errors import ConfigError, StoppedError
from darklens.simulate.generate import generate

POPULATION = populations.get("common-test-i", ["field.n_pixels=16"])
SIZE = {"n_per_class": killing.N_PER_CLASS, "shard_size": killing.SHARD_SIZE, "seed": 0}
SMALL = ["field.n_pixels=16", "--n-per-class", "4"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A store made by one process."""
    return generate(POPULATION, tmp_path_factory.mktemp("whole") / "s", **SIZE)


def index_of(store):
    return (store.path / "store.json").read_text()


def test_a_store_does_not_depend_on_the_number_of_processes(whole, tmp_path):
    with prepared_pools():
        store = generate(POPULATION, tmp_path / "s", **SIZE, workers=2)
    assert index_of(store) == index_of(whole) and store.verify() == []


def test_a_cluster_makes_the_same_bytes_replaces_killed_workers_and_may_be_lost(whole, tmp_path):
    seen = []

    def kill_one(n):
        if not seen:
            os.kill(cluster.workers[0].pid, signal.SIGKILL)
        seen.append(n)

    def close(_):
        if cluster.status.name == "running":
            cluster.close()

    with dask_cluster(2) as cluster:
        words = killing.words(tmp_path / "s")
        assert darklens(*words, "--cluster", cluster.scheduler_address) == 0
        assert index_of(Store(tmp_path / "s")) == index_of(whole) and Store(tmp_path / "s").verify() == []
        with executors.cluster(cluster.scheduler_address) as executor:
            store = generate(POPULATION, tmp_path / "t", **SIZE, executor=executor, advance=kill_one)
            assert index_of(store) == index_of(whole) and sum(seen) == len(whole)
        with (
            pytest.raises(StoppedError, match="repeat the command to continue"),
            executors.cluster(cluster.scheduler_address) as executor,
        ):
            generate(POPULATION, tmp_path / "u", **SIZE, executor=executor, advance=close)


@pytest.mark.parametrize(("target", "code", "said"), [("parent", -signal.SIGKILL, ""), ("worker", 1, "was killed")])
def test_a_killed_run_goes_on_to_the_same_bytes(whole, tmp_path, target, code, said):
    finished, returned, complaint = killing.killed(tmp_path / "s", target, after=5)
    assert finished >= 5 and returned == code
    assert said in complaint and (code < 0 or len(complaint.splitlines()) == 1)
    with pytest.raises(SystemExit):
        main(["inspect", str(tmp_path / "s")])
    kept = min(killing.entries(tmp_path / "s"))
    image_file = tmp_path / "s" / "shards" / f"{kept.stem}.images.npy"
    modified = image_file.stat().st_mtime_ns
    store = generate(POPULATION, tmp_path / "s", **SIZE)
    assert index_of(store) == index_of(whole) and store.verify() == []
    assert image_file.stat().st_mtime_ns == modified
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == ["shards", "store.json"]


def test_ctrl_c_is_one_sentence_and_leaves_whole_shards_only(tmp_path):
    # So many that a busy machine cannot finish them before the signal arrives.
    words = [*killing.words(tmp_path / "s", n_per_class=20_000), *killing.WORKERS]
    run = start_command(words, tmp_path / "errors")
    try:
        killing.wait_until(lambda: killing.entries(tmp_path / "s"), 120)
        os.killpg(run.pid, signal.SIGINT)
        run.join(120)
    finally:
        if run.is_alive():
            os.killpg(run.pid, signal.SIGKILL)
    complaint = (tmp_path / "errors").read_text()
    assert run.exitcode == 130 and complaint.startswith("darklens: Interrupted") and complaint.count("\n") == 1
    shards = sorted(p.name for p in (tmp_path / "s" / "shards").iterdir())
    made = sorted(p.stem for p in killing.entries(tmp_path / "s"))
    assert shards == [f"{name}.{suffix}" for name in made for suffix in ("images.npy", "truth.npz")]


def silent_server():
    """A port where something listens that is no scheduler and never answers."""
    listener = socket.create_server(("127.0.0.1", 0))
    return listener, f"tcp://127.0.0.1:{listener.getsockname()[1]}"


def test_a_cluster_that_cannot_be_used_is_one_sentence_and_nothing_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(executors, "_CONNECT_TIMEOUT", 2.5)
    listener, address = silent_server()
    simulate = ["simulate", "common-test-i", *SMALL, "--out", tmp_path / "s", "--cluster"]
    with listener:
        for arguments, sentence in (
            (["tcp://127.0.0.1:1"], "No Dask scheduler responds at tcp://127.0.0.1:1"),
            ([address], f"No Dask scheduler responds at {address} (no response)"),
            (["somewhere"], "'somewhere' is not the address of a Dask scheduler"),
            (["tcp://127.0.0.1:1", "--workers", 2], "give either --workers or --cluster"),
        ):
            assert darklens(*simulate, *arguments) == 2
            captured = capsys.readouterr().err.strip().splitlines()
            assert len(captured) == 1 and sentence in captured[0], captured
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert darklens(*simulate, "tcp://127.0.0.1:1") == 2
    assert 'pip install "darklens[cluster]"' in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_cluster_without_workers_is_refused():
    with (
        dask_cluster(0) as empty,
        pytest.raises(ConfigError, match="has no workers"),
        executors.cluster(empty.scheduler_address),
    ):
        pass


def test_more_than_the_disk_holds_is_refused_before_anything_is_written(tmp_path, capsys):
    for form in ("store", "deeplense"):
        command = ["simulate", "common-test-i", "--out", tmp_path / "s", "--n-per-class", 10**15, "--format", form]
        assert darklens(*command) == 2
        assert "GB free; reduce the number" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["--backend", "--engine"])
def test_the_backend_has_an_older_name(tmp_path, option):
    assert darklens("simulate", "common-test-i", *SMALL, "--out", tmp_path / "s", option, "eager") == 0
    assert Store(tmp_path / "s").index.backend == "eager"


def test_inspect_names_the_shard_with_a_flipped_byte(tmp_path, capsys):
    generate(POPULATION, tmp_path / "s", n_per_class=4, seed=0, shard_size=5)
    for suffix in ("images.npy", "truth.npz"):
        path = tmp_path / "s" / "shards" / f"00001.{suffix}"
        content = path.read_bytes()
        path.write_bytes(content[:300] + bytes([content[300] ^ 1]) + content[301:])
    assert darklens("inspect", tmp_path / "s", "--verify") == 3
    complaints = capsys.readouterr().err.splitlines()
    assert [Path(line.split()[1]).name for line in complaints] == ["00001.images.npy", "00001.truth.npz"]


def test_an_interrupted_deeplense_folder_goes_on(tmp_path, monkeypatch):
    command = ["simulate", "common-test-i", *SMALL, "--format", "deeplense", "--out"]
    assert darklens(*command, tmp_path / "whole") == 0
    with monkeypatch.context() as patch:
        patch.setattr("darklens.data.deeplense.write_text", lambda *_: 1 / 0)
        assert darklens(*command, tmp_path / "d") == 1
    assert not (tmp_path / "d").exists()
    monkeypatch.setattr("darklens.simulate.generate.simulate_batch", lambda *_: 1 / 0)
    assert darklens(*command, tmp_path / "d") == 0
    files = {p.relative_to(tmp_path / "whole"): p.read_bytes() for p in (tmp_path / "whole").rglob("*.*")}
    assert {p.relative_to(tmp_path / "d"): p.read_bytes() for p in (tmp_path / "d").rglob("*.*")} == files
    assert len(files) == 13 and sorted(p.name for p in tmp_path.iterdir()) == ["d", "whole"]


def test_results_come_as_they_finish_with_few_tasks_in_flight():
    from concurrent.futures import ThreadPoolExecutor

    taken = []

    def tasks():
        for i in range(100):
            taken.append(i)
            yield (i,)

    with ThreadPoolExecutor(2) as pool:
        results = executors.as_finished(pool, str, tasks(), in_flight=5)
        first = next(results)
        assert len(taken) <= 6
        assert {first, *results} == {str(i) for i in range(100)}


def test_usable_cores_are_those_of_the_affinity(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 7}, raising=False)
    assert executors.usable_cores() == 3
