"""Inference: backends beside eager float32, images per second of lens_residual, and the first prediction of a process.

`python benchmarks/bench_infer.py [--rounds 5] [--images 64] [--json FILE]`

Networks are the shipped ones; resnet_18, which is not shipped, has random weights, so its classes are not compared.
`same_class` is the agreement with eager float32 on `--agreement` images.

Eager float32 is the network as the study runs it, in the order batch, channel, row, column: in batches of 64
(`vs_eager_fp32`) and image by image (`vs_eager_batch_1`). Each backend takes turns with it, with pre-processing and
the features for `ood` included in ours only; a ratio is the median over rounds. `bound` compares the operations of an
image with the rate of matrix products on this machine, which limits float32.

`archive` is `darklens predict` over a folder of FITS files and over one HDF5 file with the same images, with one
process for each core, and the same number of processes that classify the images from memory.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from record import record

from darklens import populations
from darklens.bundle import Bundle, classify
from darklens.bundle.contract import Contract
from darklens.compilation import compiler
from darklens.locate import DEFAULT_MODEL, shipped
from darklens.models.resnet_18 import ResNet18Config
from darklens.predict.backends import backend_of, write_model
from darklens.simulate.batch import simulate_batch

SYSTEMS = ("resnet_18", "resnet_simple", "sis_autoencoder2")
PIXELS, SCALE = 150, 0.05
BLOCK = 48  # images that a process classifies at a time, as `predict` does with fits
IN_MEMORY = {}  # of a process that classifies from memory
EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "common-test-i"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--systems", nargs="*", default=list(SYSTEMS), choices=list(SYSTEMS))
    parser.add_argument("--backends", nargs="*", default=["eager", "compiled", "onnx", "int8"])
    parser.add_argument("--skip", nargs="*", default=[], choices=["lens_residual", "cold", "archive"])
    parser.add_argument("--agreement", type=int, default=300)
    parser.add_argument("--archive", type=int, default=2000)
    parser.add_argument("--json")
    options = parser.parse_args()
    images = simulate_batch(populations.get("common-test-i"), 5, range(options.images))[0]
    for name in options.systems:
        figures = compare(name, images, options.rounds, options.backends, options.agreement)
        print(name, json.dumps(figures), flush=True)
        record(options.json, "infer", {name: figures})
    if "lens_residual" not in options.skip:
        figures = fits_per_second(images[:48], options.rounds)
        print("lens_residual", json.dumps(figures), flush=True)
        record(options.json, "infer", {"lens_residual": figures})
    if "archive" not in options.skip:
        figures = archive(options.archive)
        print("archive", json.dumps(figures), flush=True)
        record(options.json, "infer", {"archive": figures})
    if "cold" not in options.skip:
        figures = cold(options.rounds)
        print("cold", json.dumps(figures), flush=True)
        record(options.json, "infer", {"cold_predict": figures})


def bundle_of(name, images):
    """A shipped network without the fits that check its classes, or an untrained one normalised to the images."""
    if name in shipped():
        return Bundle.load(name).with_companions(fallback="", checked_by="")
    torch.manual_seed(0)
    contract = Contract.untrained(ResNet18Config(), n_pixels=PIXELS, pixel_scale=SCALE)
    network = contract.build()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        network.train()(contract.preprocess(torch.from_numpy(images[:16])))
    return Bundle(contract, network)


def compare(name, images, rounds, backends, agreement):
    bundle, is_trained = bundle_of(name, images), name in shipped()
    tests = simulate_batch(populations.get("common-test-i"), 6, range(agreement))[0] if is_trained else images
    inputs = bundle.contract.preprocess(torch.from_numpy(images)).contiguous()
    parts = {"eager_batch_64": inputs.split(64), "eager_batch_1": inputs[:16].split(1)}
    counts = {"eager_batch_64": len(inputs), "eager_batch_1": len(inputs[:16])}

    @torch.inference_mode()
    def study(name):
        for batch in parts[name]:
            bundle.network(batch)

    ways = {name: (lambda name=name: study(name)) for name in parts}
    exact, largest, prepared, agree = bundle.classify(tests).probabilities, {}, {}, {}
    with tempfile.TemporaryDirectory() as work:
        for name in backends:
            if name == "compiled" and compiler() is None:
                continue
            started, file = time.perf_counter(), Path(work) / f"{name}.onnx"
            write_model(name, bundle, file, images[:64])
            backend = backend_of(name, bundle, file)
            bundle.classify(images, backend)
            prepared[name] = round(time.perf_counter() - started, 1)
            probabilities = bundle.classify(tests, backend).probabilities
            largest[name] = float(f"{np.abs(probabilities - exact).max():.2g}")
            if is_trained:
                agree[name] = round(float((probabilities.argmax(1) == exact.argmax(1)).mean()), 4)
            ways[name] = lambda backend=backend: bundle.classify(images, backend)
            counts[name] = len(images)
        times = {name: [] for name in ways}
        for way in ways.values():
            way()
        matrix = []
        for _ in range(rounds):
            for name, way in ways.items():
                times[name].append(seconds(way) / counts[name])
            matrix.append(matrix_gflops())
    ours = {name: times[name] for name in times if not name.startswith("eager_batch")}
    best = min((name for name in ours if name != "int8"), key=lambda name: statistics.median(ours[name]))
    ratio = {
        against: {name: round(over(times[f"eager_{against}"], ours[name]), 2) for name in ours}
        for against in ("batch_64", "batch_1")
    }
    gflop, limit = operations(bundle.network, inputs[:1]) / 1e9, statistics.median(matrix)
    return {
        "vs_eager_fp32": ratio["batch_64"][best],
        "vs_eager_batch_1": ratio["batch_1"][best],
        "backend": best,
        "ratios": ratio,
        "images_per_s": {name: round(1 / statistics.median(value), 1) for name, value in times.items()},
        "prepare_s": prepared,
        "largest_difference": largest,
        "same_class": agree,
        "bound": {
            "gflop_per_image": round(gflop, 3),
            "matrix_gflop_per_s": round(limit, 1),
            "fp32_images_per_s": round(limit / gflop, 1),
            "vs_eager_fp32_at_most": round(limit / gflop * statistics.median(times["eager_batch_64"]), 2),
        },
        "threads": torch.get_num_threads(),
    }


def over(other, ours):
    return statistics.median(a / b for a, b in zip(other, ours, strict=True))


def seconds(do):
    started = time.perf_counter()
    do()
    return time.perf_counter() - started


def matrix_gflops(n=1536):
    a = torch.rand(n, n)
    return 2 * n**3 / min(seconds(lambda: a @ a) for _ in range(3)) / 1e9


def operations(network, inputs):
    """Multiplications and additions of an image's convolutions and matrix products, as they are defined."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(inputs)
    return counter.get_total_flops()


def fits_per_second(images, rounds):
    """Of the shipped model in this process, with its threads; more processes take more images in the same way."""
    bundle = Bundle.load(DEFAULT_MODEL)
    bundle.classify(images[:16])
    took = [seconds(lambda: bundle.classify(images)) for _ in range(rounds)]
    return {"images_per_s": round(len(images) / statistics.median(took), 2), "threads": torch.get_num_threads()}


def archive(n):
    """Images per second of the command over files and over a stack, and of processes that have the images in memory.

    `images_per_s` includes the start of the command. `after_start` does not: it follows from the difference in time to
    a tenth of the images, as larger archives see it.
    """
    cores, population, few = os.cpu_count(), populations.get("common-test-i"), n // 10
    with tempfile.TemporaryDirectory() as work:
        images = np.concatenate([simulate_batch(population, 7, range(k, min(k + 200, n)))[0] for k in range(0, n, 200)])
        np.save(f"{work}/images.npy", images)
        took = {}
        for kind, write in (("fits", write_folder), ("hdf5", write_stack)):
            for count in (few, n):
                target = write(Path(work) / f"{kind}{count}", images[:count, 0])
                command = [sys.executable, "-m", "darklens.cli", "predict", str(target), "--workers", str(cores)]
                command += ["--out", f"{work}/{kind}{count}.csv"]
                took[kind, count] = seconds(
                    lambda command=command: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                )
        context = multiprocessing.get_context("spawn")
        blocks = [range(k, min(k + BLOCK, n)) for k in range(0, n, BLOCK)]
        with ProcessPoolExecutor(cores, context, initializer=load_images, initargs=(f"{work}/images.npy",)) as pool:
            list(pool.map(classify_in_memory, blocks[:cores]))
            in_memory = n / seconds(lambda: list(pool.map(classify_in_memory, blocks)))
    rates = {kind: n / took[kind, n] for kind in ("fits", "hdf5")}
    after_start = {kind: (n - few) / (took[kind, n] - took[kind, few]) for kind in rates}
    return {
        "images": n,
        "processes": cores,
        "images_per_s": {kind: round(rate, 2) for kind, rate in {**rates, "memory": in_memory}.items()},
        "images_per_s_after_start": {kind: round(rate, 2) for kind, rate in after_start.items()},
        **{f"{kind}_over_memory": round(rate / in_memory, 3) for kind, rate in rates.items()},
        **{f"{kind}_over_memory_after_start": round(rate / in_memory, 3) for kind, rate in after_start.items()},
    }


def write_folder(path, images):
    """Write a folder of FITS files, and return its path."""
    from astropy.io import fits

    path.mkdir()
    for i, image in enumerate(images):
        fits.writeto(path / f"{i:06d}.fits", image, fits.Header({"PIXSCALE": SCALE}))
    return path


def write_stack(path, images):
    """Write an HDF5 file, and return its path."""
    import h5py

    with h5py.File(path.with_suffix(".h5"), "w") as file:
        file.create_dataset("images", data=images, chunks=(1, PIXELS, PIXELS))
        file.attrs["pixel_scale"] = SCALE
    return path.with_suffix(".h5")


def load_images(path):
    """Load the images and the model of a process that classifies from memory."""
    torch.set_num_threads(1)
    IN_MEMORY.update(images=np.load(path), bundle=Bundle.load(DEFAULT_MODEL))


def classify_in_memory(rows):
    return sum(len(part.indices) for part in classify(IN_MEMORY["bundle"], IN_MEMORY["images"][rows]))


def cold(rounds):
    """Wall and processor seconds from the command to the table, shipped model, one image, Python's caches warm."""
    import resource

    wall, cpu = [], []
    with tempfile.TemporaryDirectory() as work:
        (image,) = (EXAMPLE / "vort").glob("*.npy")
        command = [sys.executable, "-m", "darklens.cli", "predict", str(image), "--out", f"{work}/t.csv"]
        for _ in range(rounds + 1):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            wall.append(seconds(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)))
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    median = {"wall_s": statistics.median(wall[1:]), "processor_s": statistics.median(cpu[1:])}
    return {key: round(value, 2) for key, value in median.items()} | {"cores": os.cpu_count()}


if __name__ == "__main__":
    main()
