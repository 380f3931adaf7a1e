"""Peak memory of `darklens simulate` and `darklens predict` for few and for many images.

    python benchmarks/bench_memory.py [--few 1000] [--many 100000] [--skip fits] [--json results/bench.json]

Memory is the largest sum of the resident sets of the command and its children, in which pages that processes share,
such as torch's code, count in each. `predict` classifies links to 60 simulated images with a small untrained network,
so that reading, batching and writing are measured. `fits` classifies links to images of 150 x 150 pixels with the
shipped model, its fits and its fallback: 200 and 2,000. Memory of training is measured by bench_loader.py.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import torch
from record import record

from darklens import populations
from darklens.bundle import Bundle
from darklens.bundle.contract import Contract
from darklens.locate import DEFAULT_MODEL
from darklens.models.resnet_simple import ResNetSimpleConfig
from darklens.simulate.batch import simulate_batch

POPULATION, DIFFERENT, FILES_PER_FOLDER = "common-test-i", 60, 1000
RATIO = {"simulate": "100k_over_1k", "predict": "100k_over_1k", "fits": "2000_over_200"}
FITTED = (200, 2000)  # images that the shipped model classifies


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("few", 1_000), ("many", 100_000), ("pixels", 48), ("workers", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--skip", nargs="*", default=[], choices=["simulate", "predict", "fits"])
    parser.add_argument("--json")
    options = parser.parse_args()
    for task, measure in (("simulate", simulate), ("predict", predict), ("fits", fits)):
        if task in options.skip:
            continue
        pixels, sizes = (150, FITTED) if task == "fits" else (options.pixels, (options.few, options.many))
        figures = {"pixels": pixels, "workers": options.workers}
        for name, n in zip(("few", "many"), sizes, strict=True):
            with tempfile.TemporaryDirectory() as folder:
                figures[name] = measure(Path(folder), n, pixels, options.workers)
        ratio = round(figures["many"]["peak_rss_mb"] / figures["few"]["peak_rss_mb"], 3)
        figures["many_over_few"] = ratio
        print(task, json.dumps(figures, indent=2), flush=True)
        record(options.json, "memory", {f"{task}_{RATIO[task]}": ratio, task: figures})


def simulate(folder, n, pixels, workers):
    size = [f"field.n_pixels={pixels}", "--n-per-class", n // 3]
    figures = run(["simulate", POPULATION, "--out", folder / "store", *size], workers)
    return {"images": n // 3 * 3, **figures}


def predict(folder, n, pixels, workers):
    torch.manual_seed(0)
    contract = Contract.untrained(ResNetSimpleConfig(), n_pixels=pixels, pixel_scale=0.05)
    Bundle(contract, contract.build()).save(folder / "model")
    return classify(folder / "model", folder, n, pixels, workers)


def fits(folder, n, pixels, workers):
    return classify(DEFAULT_MODEL, folder, n, pixels, workers)


def classify(model, folder, n, pixels, workers):
    images, _ = simulate_batch(populations.get(POPULATION, [f"field.n_pixels={pixels}"]), 1, range(DIFFERENT))
    for i, image in enumerate(images):
        np.save(folder / f"{i}.npy", image[0])
    for i in range(n):
        inside = folder / "files" / f"{i // FILES_PER_FOLDER:04d}"
        inside.mkdir(parents=True, exist_ok=True)
        os.link(folder / f"{i % DIFFERENT}.npy", inside / f"{i:07d}.npy")
    table = folder / "table.csv"
    figures = run(["predict", model, folder / "files", "--out", table, "--backend", "eager"], workers)
    n_rows = sum(1 for _ in table.open()) - 1
    assert n_rows == n, f"{n_rows} rows of {n}"
    return {"images": n, "images_per_s": round(n / figures["seconds"], 1), **figures}


def run(words, workers):
    """Return the peak memory of a command and its children, and the seconds it took."""
    command = [str(word) for word in (sys.executable, "-m", "darklens.cli", *words, "--workers", workers)]
    started, peak = time.perf_counter(), 0
    process = psutil.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        peak = max(peak, resident(process))
        time.sleep(0.05)
    if process.wait():
        raise SystemExit(f"{' '.join(command)} failed")
    return {"peak_rss_mb": round(peak / 1e6, 1), "seconds": round(time.perf_counter() - started, 1)}


def resident(process):
    total = 0
    try:
        processes = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:  # it ended in between
        return 0
    for each in processes:
        try:
            total += each.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


if __name__ == "__main__":
    main()
