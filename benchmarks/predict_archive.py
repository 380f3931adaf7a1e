"""`darklens predict` on few and on very many files: peak memory with all processes, and images per second.

`python benchmarks/predict_archive.py [--few 1000] [--many 100000] [--pixels 48] [--workers 2] [--json FILE]`

The files are links to some simulated images, the classifier is small and untrained, so that reading, batching and
writing are what is measured.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from record import record
from simulate_memory import rss

DIFFERENT, IN_A_FOLDER = 60, 1000


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("few", 1_000), ("many", 100_000), ("pixels", 48), ("workers", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json")
    asked = parser.parse_args()
    found = {"pixels": asked.pixels, "workers": asked.workers}
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        model(work / "model", asked.pixels)
        for name, n in (("few", asked.few), ("many", asked.many)):
            archive(work, work / name, n, asked.pixels)
            found[name] = run(work, work / name, n, asked.workers)
            print(name, json.dumps(found[name]), flush=True)
    found["many_over_few"] = round(found["many"]["peak_rss_mb"] / found["few"]["peak_rss_mb"], 3)
    print(json.dumps(found, indent=2))
    record(asked.json, "memory", {"predict_100k_over_1k": found["many_over_few"], "predict": found})


def model(path, pixels):
    import torch

    from darklens.bundle import Bundle
    from darklens.contract import Contract
    from darklens.models.resnet_simple import ResNetSimpleConfig

    torch.manual_seed(0)
    contract = Contract.untrained(ResNetSimpleConfig(), n_pixels=pixels, pixel_scale=0.05)
    Bundle(contract, contract.build()).save(path)


def archive(work, folder, n, pixels):
    from darklens.simulate import populations
    from darklens.simulate.batch import simulate_batch

    originals = work / "originals"
    if not originals.exists():
        originals.mkdir()
        population = populations.get("common-test-i", [f"field.n_pixels={pixels}"])
        for i, image in enumerate(simulate_batch(population, 1, range(DIFFERENT))[0]):
            np.save(originals / f"{i}.npy", image[0])
    for i in range(n):
        inside = folder / f"{i // IN_A_FOLDER:04d}"
        if i % IN_A_FOLDER == 0:
            inside.mkdir(parents=True)
        os.link(originals / f"{i % DIFFERENT}.npy", inside / f"{i:07d}.npy")


def run(work, folder, n, workers):
    out = work / f"{folder.name}.csv"
    command = [sys.executable, "-m", "darklens.cli", "predict", work / "model", folder, "--out", out]
    command += ["--workers", workers, "--engine", "eager"]
    started, samples = time.perf_counter(), []
    process = psutil.Popen([str(word) for word in command], stdout=subprocess.DEVNULL)
    while process.poll() is None:
        try:
            samples.append(rss(process))
        except psutil.NoSuchProcess:
            break
        time.sleep(0.1)
    if process.wait():
        raise SystemExit(f"{command} failed")
    took = time.perf_counter() - started
    with out.open() as table:
        rows = sum(1 for _ in table) - 1
    assert rows == n, f"{rows} rows of {n}"
    quarter = len(samples) // 4
    early, late = (statistics.median(samples[i * quarter : (i + 1) * quarter]) for i in (1, 3))
    return {
        "images": n,
        "seconds": round(took, 1),
        "images_per_s": round(n / took, 1),
        "peak_rss_mb": round(max(samples) / 1e6, 1),
        "last_over_second_quarter": round(late / early, 3),
        "table_mb": round(out.stat().st_size / 1e6, 2),
    }


if __name__ == "__main__":
    main()
