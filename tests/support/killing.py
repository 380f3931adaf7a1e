"""Simulations that are killed while they run."""

import os
import random
import signal
import time

import psutil
from spawning import start_command

N_PER_CLASS, SHARD_SIZE = 100, 5
WORKERS = ["--workers", "2"]


def words(out, n_per_class=N_PER_CLASS):
    """Return the words of a simulation, without the number of workers."""
    size = ["field.n_pixels=16", "--n-per-class", str(n_per_class), "--shard-size", str(SHARD_SIZE)]
    return ["simulate", "common-test-i", *size, "--out", str(out)]


def killed(out, target, *, after):
    """Start a simulation on two workers and kill one of them, or the parent, a moment after `after` shards.

    Returns the number of finished shards, the exit code and the text on standard error.
    """
    errors = out.parent / "errors"
    run = start_command([*words(out), *WORKERS], errors)
    wait_until(lambda: len(entries(out)) >= after)
    time.sleep(random.random() / 20)
    pool = psutil.Process(run.pid).children()
    os.kill({"worker": pool[0].pid, "parent": run.pid}[target], signal.SIGKILL)
    run.join(60)
    wait_until(lambda: not any(map(_is_alive, pool)))
    assert not (out / "store.json").exists(), "it was finished before it was killed"
    return len(entries(out)), run.exitcode, errors.read_text()


def entries(out):
    """Return the records of finished shards."""
    return list((out / "unfinished").glob("0*.json"))


def _is_alive(process):
    try:
        return process.status() != psutil.STATUS_ZOMBIE  # an orphan that nothing has waited for
    except psutil.NoSuchProcess:
        return False


def wait_until(ready, seconds=60):
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not ready after {seconds} s")
        time.sleep(0.002)
