"""Speed of the loader beside that of training, and its memory for small and large stores.

`python benchmarks/bench_loader.py [--few 1000] [--many 100000] [--rounds 5] [--json results/bench.json]`

A process reads shuffled batches of 64 images of 150 x 150 pixels from a store of few and from one of many noise images,
in a temporary folder (9 GB for 100,000). Memory is that of its private (anonymous) pages; the resident set, which
includes pages of the store that the system may drop at any time, is recorded too. `memory.train_100k_over_1k` is the
memory of loading alone. `vs_fastest_training` is images per second of loading over those of training steps of the
fastest network, resnet_simple, in turns in the same process.
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
import torch
from record import record

from darklens.data.loaders import BatchOrder, loader
from darklens.data.store import Store, StoreIndex, write_index, write_shard

BATCH, PIXELS, PER_SHARD = 64, 150, 256


def write_noise(path, n):
    """Write a store of n images; each shard is one block of noise plus an offset."""
    block = np.random.default_rng(0).random((PER_SHARD, 1, PIXELS, PIXELS), dtype=np.float32)
    shards = []
    for shard, start in enumerate(range(0, n, PER_SHARD)):
        size = min(PER_SHARD, n - start)
        labels = np.arange(start, start + size) % 3
        shards.append(write_shard(path, shard, block[:size] + np.float32(shard), {"label": labels}))
    classes = ["no", "sphere", "vort"]
    write_index(path, StoreIndex(classes=classes, n_pixels=PIXELS, pixel_scale=0.05, version="0", shards=shards))


def batches_of(store):
    epoch, order = 0, BatchOrder(np.arange(len(store)), BATCH, shuffle=True)
    images = loader(lambda indices: torch.from_numpy(store.images(indices)), store.labels, order)
    while True:
        order.set_epoch(epoch)
        yield from images
        epoch += 1


def read(path, n):
    """Read n images and print the memory (MB) and the images per second of this process."""
    import psutil

    store, n_read, started = Store(path), 0, time.perf_counter()
    private, resident = [], []
    for images, labels in batches_of(store):
        assert len(images) == len(labels) == BATCH
        n_read += BATCH
        if n_read % (16 * BATCH) == 0:
            memory = psutil.Process().memory_info()
            private.append(memory.rss - memory.shared), resident.append(memory.rss)
        if n_read >= n:
            break
    per_second = n_read / (time.perf_counter() - started)
    print(json.dumps({"private_mb": max(private) / 1e6, "rss_mb": max(resident) / 1e6, "images_per_s": per_second}))


def read_elsewhere(path, n):
    command = [sys.executable, __file__, "--read", str(path), "--n", str(n)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def load_and_train(path, rounds):
    """Return seconds an image of a training step and of loading, in turns."""
    import torch

    from darklens.memory import keep_freed_memory
    from darklens.models.zoo import build
    from darklens.training.recipe import get

    keep_freed_memory()
    torch.set_num_threads(os.cpu_count() or 1)
    network = build(get("resnet_simple").model, n_pixels=PIXELS, pixel_scale=0.05, n_classes=3)
    network = network.to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(network.parameters(), fused=True)

    def train(images, labels):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(network(images), labels).backward()
        optimiser.step()

    batches = batches_of(Store(path))
    figures = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        for _ in range(20):
            images, labels = next(batches)
        loaded = time.perf_counter()
        images = images.contiguous(memory_format=torch.channels_last)
        for _ in range(2):
            train(images, labels)
        figures.append(((time.perf_counter() - loaded) / (2 * BATCH), (loaded - started) / (20 * BATCH)))
    return figures[1:]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("few", 1_000), ("many", 100_000), ("rounds", 5), ("n", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--json")
    options = parser.parse_args()
    if options.read:
        read(options.read, options.n)
        return
    with tempfile.TemporaryDirectory() as work:
        few, many = Path(work) / "few", Path(work) / "many"
        write_noise(few, options.few)
        write_noise(many, options.many)
        memory = {"few": read_elsewhere(few, options.many), "many": read_elsewhere(many, options.many)}
        rounds_s = load_and_train(many, options.rounds)
    figures = {
        "vs_fastest_training": round(statistics.median(step / load for step, load in rounds_s), 1),
        "images_per_s": round(1 / statistics.median(load for _, load in rounds_s)),
        "training_images_per_s": round(1 / statistics.median(step for step, _ in rounds_s), 1),
        "images": {"few": options.few, "many": options.many},
        "memory_mb": {size: {k: round(v, 1) for k, v in entry.items()} for size, entry in memory.items()},
    }
    print(json.dumps(figures, indent=2))
    record(options.json, "loader", figures)
    ratio = memory["many"]["private_mb"] / memory["few"]["private_mb"]
    resident = memory["many"]["rss_mb"] / memory["few"]["rss_mb"]
    flat = {"train_100k_over_1k": round(ratio, 3), "train_rss_100k_over_1k": round(resident, 3)}
    record(options.json, "memory", flat | {"train_peak_rss_mb": round(memory["many"]["rss_mb"], 1)})


if __name__ == "__main__":
    main()
