"""Our shards of .npy beside sharded Zarr v3: writing, reading in three orders, and bytes on disk.

`python benchmarks/store_format.py [--images 3000]`; needs the extra `bench`. Every figure is the median of 5, the
formats taking turns, and a ratio to the .npy shards of the same run. Files are in the page cache when they are read,
so reading measures the format, not the disk.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import zarr

from darklens.data.store import Store, StoreIndex, write_index, write_shard
from darklens.provenance import commit, hardware
from darklens.simulate import populations
from darklens.simulate.batch import simulate_batch

SHARD, BATCH, REPEATS, DISTINCT = 256, 64, 5, 512
ORDERS = ("whole shards", "block-shuffled", "shuffled")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=3000)
    n = parser.parse_args().images
    scaled, counts = pictures(n)
    formats = {
        "npy float32": (NpyFloat, scaled),
        "npy uint16 counts": (NpyCounts, counts),
        "zarr, a chunk an image": (ZarrPlain, scaled),
        "zarr, a chunk 16 images": (ZarrPlain16, scaled),
        "zarr, default codec (zstd)": (ZarrZstd, scaled),
        "zarr uint16 counts, default codec": (ZarrCounts, counts),
        "zarr, blosc zstd + shuffle": (ZarrBlosc, scaled),
    }
    orders = dict(zip(ORDERS, (np.arange(n), block_shuffled(n), np.random.default_rng(1).permutation(n)), strict=True))
    seconds = {name: {task: [] for task in ("write", *ORDERS)} for name in formats}
    size = {}
    with tempfile.TemporaryDirectory() as work:
        for _ in range(REPEATS):
            for name, (kind, images) in formats.items():
                folder = Path(work) / "s"
                seconds[name]["write"].append(timed(kind.write, folder, images))
                size[name] = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
                reader = kind(folder)
                for task, order in orders.items():
                    seconds[name][task].append(
                        timed(read_all, reader, order, SHARD if task == "whole shards" else BATCH)
                    )
                assert np.allclose(reader.read(np.arange(5)), scaled[:5], atol=1e-6)
                shutil.rmtree(folder)
    report(n, seconds, size)


def pictures(n):
    """Return min-max-scaled images and their counts; distinct images are repeated to make up the number."""
    population = populations.get("common-test-i", ["stored=counts"])
    few, _ = simulate_batch(population, 0, range(min(n, DISTINCT)))
    counts = np.resize(few.astype(np.uint16), (n, *few.shape[1:]))
    return scaled_from(counts), counts


def block_shuffled(n):
    """Shuffle whole shards, then the images in each: what training reads."""
    chance = np.random.default_rng(0)
    blocks = [np.arange(start, min(start + SHARD, n)) for start in range(0, n, SHARD)]
    return np.concatenate([chance.permutation(blocks[i]) for i in chance.permutation(len(blocks))])


def read_all(reader, order, batch):
    for start in range(0, len(order), batch):
        reader.read(order[start : start + batch])


def scaled_from(counts):
    images = counts.astype(np.float32)
    low, high = images.min(axis=(1, 2, 3), keepdims=True), images.max(axis=(1, 2, 3), keepdims=True)
    return (images - low) / (high - low)


def timed(function, *arguments):
    started = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started


class NpyFloat:
    """The store as it is, checksums included."""

    @staticmethod
    def write(folder, images):
        shards = [
            write_shard(folder, i, images[s : s + SHARD], {"label": np.zeros(len(images[s : s + SHARD]), np.int64)})
            for i, s in enumerate(range(0, len(images), SHARD))
        ]
        pixels = images.shape[-1]
        index = StoreIndex(classes=["a", "b"], n_pixels=pixels, pixel_scale=0.05, version="0", shards=shards)
        write_index(folder, index)

    def __init__(self, folder):
        self.read = Store(folder).images


class NpyCounts:
    """The same shards holding counts, scaled when they are read."""

    @staticmethod
    def write(folder, counts):
        folder.mkdir()
        for i, start in enumerate(range(0, len(counts), SHARD)):
            np.save(folder / f"{i:05d}.npy", counts[start : start + SHARD])

    def __init__(self, folder):
        self.files = sorted(folder.iterdir())

    def read(self, indices):
        shard_of = indices // SHARD
        out = None
        for shard in np.unique(shard_of):
            here = np.flatnonzero(shard_of == shard)
            mapped = np.load(self.files[shard], mmap_mode="r")
            out = np.empty((len(indices), *mapped.shape[1:]), np.uint16) if out is None else out
            out[here] = mapped[indices[here] - SHARD * shard]
        return scaled_from(out)


class ZarrPlain:
    """Sharded Zarr v3 without compression, one image a chunk."""

    codecs, chunk = None, 1

    @classmethod
    def write(cls, folder, images):
        array = zarr.create_array(
            store=str(folder),
            shape=images.shape,
            dtype=images.dtype,
            chunks=(cls.chunk, *images.shape[1:]),
            shards=(SHARD, *images.shape[1:]),
            compressors=cls.codecs,
        )
        for start in range(0, len(images), SHARD):
            array[start : start + SHARD] = images[start : start + SHARD]

    def __init__(self, folder):
        self.array = zarr.open_array(str(folder), mode="r")

    def read(self, indices):
        first, last = indices[0], indices[-1]
        if np.array_equal(indices, np.arange(first, last + 1)):
            return self.array[first : last + 1]
        return self.array.oindex[indices]


class ZarrPlain16(ZarrPlain):
    """As before, with 16 images a chunk."""

    chunk = 16


class ZarrZstd(ZarrPlain):
    """Zarr's default codec."""

    codecs = "auto"


class ZarrCounts(ZarrZstd):
    """Counts with the default codec, scaled when they are read."""

    def read(self, indices):
        return scaled_from(super().read(indices))


class ZarrBlosc(ZarrPlain):
    """Blosc's zstd with byte shuffle."""

    codecs = (zarr.codecs.BloscCodec(cname="zstd", clevel=5, shuffle="shuffle"),)


def report(n, seconds, size):
    print(f"{n} images of 150 x 150, {hardware()}, zarr {zarr.__version__}, commit {commit()}")
    print(f"load average {os.getloadavg()[0]:.1f}\n")
    tasks = {"write": "write", **{order: f"read {order}" for order in ORDERS}}
    print(f"| format | MB | size ratio | {' | '.join(f'{title}, s | ratio' for title in tasks.values())} |")
    print("| --- " * (3 + 2 * len(tasks)) + "|")
    base = {task: statistics.median(seconds["npy float32"][task]) for task in tasks}
    for name, times in seconds.items():
        cells = [f"{size[name] / 1e6:.0f}", f"{size[name] / size['npy float32']:.2f}"]
        for task in tasks:
            median = statistics.median(times[task])
            cells += [f"{median:.2f}", f"{median / base[task]:.2f}"]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
