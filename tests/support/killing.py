"""Simulations that are killed while they run."""

import os
import random
import signal
import subprocess
import sys
import time

import psutil

N_PER_CLASS, SHARD_SIZE = 100, 5
WORKERS = ["--workers", "2"]


def command(out, n_per_class=N_PER_CLASS):
    size = ["field.n_pixels=16", "--n-per-class", str(n_per_class), "--shard-size", str(SHARD_SIZE)]
    return [sys.executable, "-m", "darklens.cli", "simulate", "common-test-i", *size, "--out", str(out), *WORKERS]


def killed(out, target, *, after):
    """Start a simulation on two workers and kill one of them, or the parent, a moment after `after` shards.

    Returns the number of finished shards, the exit code and the text on standard error.
    """
    run = subprocess.Popen(command(out), stderr=subprocess.PIPE, text=True)
    wait_until(lambda: len(entries(out)) >= after)
    time.sleep(random.random() / 20)
    pool = workers(run.pid)
    os.kill({"worker": pool[0].pid, "parent": run.pid}[target], signal.SIGKILL)
    _, complaint = run.communicate(timeout=60)
    wait_until(lambda: not any(worker.is_running() for worker in pool))
    assert not (out / "store.json").exists(), "it was finished before it was killed"
    return len(entries(out)), run.returncode, complaint


def entries(out):
    """Return the records of finished shards."""
    return list((out / "unfinished").glob("0*.json"))


def workers(pid):
    """Return the processes of the pool; the other child is Python's tracker of resources."""
    return [child for child in psutil.Process(pid).children() if "spawn_main" in " ".join(child.cmdline())]


def wait_until(ready, seconds=60):
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not ready after {seconds} s")
        time.sleep(0.002)
