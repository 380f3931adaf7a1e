"""Kill `darklens simulate` at random moments and give the command again: the store must be the same bytes each time.

`python benchmarks/kill_and_resume.py [rounds]`; the whole process group, one worker, or the parent.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

N_PER_CLASS, SHARD_SIZE = 100, 5
N_SHARDS = 3 * N_PER_CLASS // SHARD_SIZE


def main(rounds):
    from darklens.data.store import Store

    chance, same = random.Random(0), 0
    with tempfile.TemporaryDirectory() as work:
        subprocess.run(command(f"{work}/whole"), check=True)
        whole = Store(f"{work}/whole").sha256
        for i in range(rounds):
            out, target = Path(work) / str(i), ("group", "worker", "parent")[i % 3]
            finished, code, _ = killed(out, target, after=chance.randrange(1, N_SHARDS * 3 // 4))
            subprocess.run(command(out), check=True)
            store = Store(out)
            agrees = store.sha256 == whole and store.verify() == []
            same += agrees
            line = {"round": i, "killed": target, "shards_before": finished, "exit_code": code, "same_bytes": agrees}
            print(json.dumps(line), flush=True)
    print(json.dumps({"rounds": rounds, "same": same}))
    return 0 if same == rounds else 1


def command(out, n_per_class=N_PER_CLASS):
    size = ["field.n_pixels=16", "--n-per-class", str(n_per_class), "--shard-size", str(SHARD_SIZE)]
    where = ["--out", str(out), "--workers", "2"]
    return [sys.executable, "-m", "darklens.cli", "simulate", "common-test-i", *size, *where]


def killed(out, target, *, after):
    """Start a simulation and kill its whole process group, one worker, or the parent, a moment after `after` shards.

    Returns the number of finished shards, the exit code and what was printed to standard error.
    """
    run = subprocess.Popen(command(out), start_new_session=True, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: len(entries(out)) >= after)
    time.sleep(random.random() / 20)
    pool = workers(run.pid)
    if target == "group":
        os.killpg(run.pid, signal.SIGKILL)
    else:
        {"worker": pool[0], "parent": run}[target].kill()
    _, complaint = run.communicate(timeout=60)
    wait_until(lambda: not any(worker.is_running() for worker in pool))
    assert not (out / "store.json").exists(), "it was finished before it was killed"
    return len(entries(out)), run.returncode, complaint


def entries(out):
    return list((out / "unfinished").glob("0*.json"))


def workers(pid):
    """The processes of the pool; the other child is Python's tracker of resources."""
    return [child for child in psutil.Process(pid).children() if "spawn_main" in " ".join(child.cmdline())]


def wait_until(ready, seconds=60):
    give_up = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > give_up:
            raise TimeoutError(f"not ready after {seconds} s")
        time.sleep(0.002)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10))
