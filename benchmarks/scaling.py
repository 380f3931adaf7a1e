"""What 8 and 64 workers would make of `simulate` and `predict`: a reckoning from measured parts, not a run.

`python benchmarks/scaling.py [--rounds 5] [--shard 256] [--block 64] [--model NAME] [--json results/scaling.json]`

Measured are a task's work, which any worker can do, and what the one coordinating process does beside it: listing or
planning, handing out a task and taking its result, its part of the merged index or table. All are processor seconds of
one process, which other work on the machine disturbs less than wall time; each is the median of the rounds.

With a task's work p, its coordination s and what is done once c, N tasks take T(w) = c + N (s + p / w) on w workers
(Amdahl 1967): coordination is taken never to overlap with work, though it does. Not in the reckoning: the shared disk,
the memory bandwidth of a node, that workers start (some seconds each, at the same time), and an uneven last round.
"""

import argparse
import json
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from record import record

from darklens import executors
from darklens.bundle import Bundle
from darklens.data.listing import find_images
from darklens.data.store import write_index
from darklens.predict import predict, to_csv
from darklens.simulate import generate, populations
from darklens.simulate.batch import simulate_batch

POPULATION, WORKERS = "common-test-i", (8, 64)
TASKS = 400  # that do nothing, to measure what handing out costs
IMAGES = {"simulate": 1_000_000, "predict": 100_000}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rounds", 5), ("shard", 256), ("block", 64)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--model", default="lens_residual")
    parser.add_argument("--json")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    handing = ways_of_handing_out(asked.rounds)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        parts = {
            "simulate": parts_of_simulate(work / "store", asked.rounds, asked.shard),
            "predict": parts_of_predict(work / "files", asked.rounds, asked.block, asked.model),
        }
    for name, part in parts.items():
        found = reckoned(part, IMAGES[name], handing)
        print(name, json.dumps(found, indent=2))
        record(asked.json, name, found)


def reckoned(part, images, handing):
    """Return the parts, and for each way of handing out the speed-up and where another worker stops helping."""
    n = images / part["images_in_a_task"]
    found = {"images": images, **part}
    for way, seconds in handing.items():
        s, p, once = seconds + part["merge_s_a_task"], part["work_s_a_task"], part["once_s_a_task"] * n
        alone = once + n * (s + p)
        times = {w: once + n * (s + p / w) for w in WORKERS}
        found[way] = {
            "hand_out_s_a_task": seconds,
            "serial_fraction": round((once + n * s) / alone, 6),
            "speed_up": {str(w): round(alone / t, 2) for w, t in times.items()},
            "efficiency": {str(w): round(alone / t / w, 3) for w, t in times.items()},
            "hours": {"1": round(alone / 3600, 2), **{str(w): round(t / 3600, 3) for w, t in times.items()}},
            "half_efficient_at_workers": round(p / (s + once / n)),
        }
    return found


def parts_of_simulate(out, rounds, size):
    """Return processor seconds of planning, of one shard, and of its line in the index."""
    population = populations.get(POPULATION)
    plan = generate.Plan(population=population, seed=1, n=3 * size, shard_size=size, engine="eager", version="0")
    store = generate.generate(population, out, n_per_class=size, seed=1, workers=1, shard_size=size)
    simulate_batch(population, 1, [0, 1, 2])  # warm
    shards = iter(range(10**6))

    def make():
        number = next(shards) % plan.n_shards
        images, truth = simulate_batch(plan.population, plan.seed, plan.rows(number))
        generate.write_shard(out.parent / "other", number, images, truth)

    def index(n):
        many = store.index.model_copy(update={"shards": store.index.shards[:1] * n})
        return lambda: write_index(out, many)

    few, many = (median(rounds, index(n)) for n in (100, 2100))
    return {
        "images_in_a_task": size,
        "work_s_a_task": median(rounds, make),
        "merge_s_a_task": (many - few) / 2000,
        "once_s_a_task": 0.0,
    }


def parts_of_predict(folder, rounds, block, model):
    """Return processor seconds of listing a file, of classifying a block, and of its rows in the table."""
    bundle = Bundle.load(model)
    folder.mkdir()
    images, _ = simulate_batch(populations.get(POPULATION), 2, range(block))
    for i, image in enumerate(images):
        np.save(folder / f"{i:05d}.npy", image[0])
    paths = find_images([folder])
    rows = predict(bundle, paths)
    return {
        "model": model,
        "images_in_a_task": block,
        "work_s_a_task": median(rounds, lambda: predict(bundle, paths)),
        "merge_s_a_task": median(rounds, lambda: to_csv(rows, bundle.contract.classes)),
        "once_s_a_task": median(rounds, lambda: find_images([folder])),
    }


def nothing(_store, number):
    return number, ("0" * 64, "0" * 64)


def handing_out(rounds, executor):
    """Return the coordinating process's seconds for handing out a task and taking its result."""

    def run():
        tasks = (("/some/folder/of/a/store", i) for i in range(TASKS))
        assert sum(1 for _ in executors.as_finished(executor, nothing, tasks)) == TASKS

    run()  # the workers start
    return median(rounds, run) / TASKS


def ways_of_handing_out(rounds):
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        found = {"pool": handing_out(rounds, executor)}
    try:
        from distributed import Client, LocalCluster
    except ImportError:
        return found
    # The scheduler runs in this process, so its time is in the figure; with `dask scheduler` it has a core of its own.
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        found["dask"] = handing_out(rounds, client.get_executor(pure=False))
    return found


def median(rounds, function):
    """Return the median processor seconds of a call."""
    return statistics.median(seconds(function) for _ in range(rounds))


def seconds(function):
    started = time.process_time()
    function()
    return time.process_time() - started


if __name__ == "__main__":
    main()
