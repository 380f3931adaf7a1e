"""Inference: backends beside eager float32, images per second of lens_residual, and the first prediction of a process.

`python benchmarks/bench_infer.py [--rounds 5] [--images 64] [--json FILE]`

Eager float32 is the network as the study runs it, in the order batch, channel, row, column: in batches of 64
(`vs_eager_fp32`) and image by image (`vs_eager_batch_1`). Each backend takes turns with it, with pre-processing and
the features for `ood` included in ours only; a ratio is the median over rounds. `bound` compares the operations of an
image with the rate of matrix products on this machine, which limits float32.
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

from darklens import populations
from darklens.bundle import Bundle
from darklens.bundle.contract import Contract
from darklens.compilation import compiler
from darklens.locate import DEFAULT_MODEL
from darklens.models.informed import SISAutoencoder2Config
from darklens.models.resnet_18 import ResNet18Config
from darklens.models.resnet_simple import ResNetSimpleConfig
from darklens.predict.backends import backend_of, write_model
from darklens.simulate.batch import simulate_batch

SYSTEMS = {"resnet_18": ResNet18Config(), "resnet_simple": ResNetSimpleConfig()}
SYSTEMS["sis_autoencoder2"] = SISAutoencoder2Config()
PIXELS = 150
EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "common-test-i"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--systems", nargs="*", default=list(SYSTEMS), choices=list(SYSTEMS))
    parser.add_argument("--backends", nargs="*", default=["eager", "compiled", "onnx", "int8"])
    parser.add_argument("--skip", nargs="*", default=[], choices=["lens_residual", "cold"])
    parser.add_argument("--json")
    options = parser.parse_args()
    images = simulate_batch(populations.get("common-test-i"), 5, range(options.images))[0]
    for name in options.systems:
        figures = compare(SYSTEMS[name], images, options.rounds, options.backends)
        print(name, json.dumps(figures), flush=True)
        record(options.json, "infer", {name: figures})
    if "lens_residual" not in options.skip:
        figures = fits_per_second(images[:48], options.rounds)
        print("lens_residual", json.dumps(figures), flush=True)
        record(options.json, "infer", {"lens_residual": figures})
    if "cold" not in options.skip:
        figures = cold(options.rounds)
        print("cold", json.dumps(figures), flush=True)
        record(options.json, "infer", {"cold_predict": figures})


def bundle_of(config, images):
    """An untrained network, whose normalisation statistics are those of the images."""
    torch.manual_seed(0)
    contract = Contract.untrained(config, n_pixels=PIXELS, pixel_scale=0.05)
    network = contract.build()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        network.train()(contract.preprocess(torch.from_numpy(images[:16])))
    return Bundle(contract, network)


def compare(config, images, rounds, backends):
    bundle = bundle_of(config, images)
    inputs = bundle.contract.preprocess(torch.from_numpy(images)).contiguous()
    parts = {"eager_batch_64": inputs.split(64), "eager_batch_1": inputs[:16].split(1)}
    counts = {"eager_batch_64": len(inputs), "eager_batch_1": len(inputs[:16])}

    @torch.inference_mode()
    def study(name):
        for batch in parts[name]:
            bundle.network(batch)

    ways = {name: (lambda name=name: study(name)) for name in parts}
    exact, largest, prepared, agree = bundle.classify(images).probabilities, {}, {}, {}
    with tempfile.TemporaryDirectory() as work:
        for name in backends:
            if name == "compiled" and compiler() is None:
                continue
            started, file = time.perf_counter(), Path(work) / f"{name}.onnx"
            write_model(name, bundle, file, images[:64])
            backend = backend_of(name, bundle, file)
            probabilities = bundle.classify(images, backend).probabilities
            prepared[name] = round(time.perf_counter() - started, 1)
            largest[name] = float(f"{np.abs(probabilities - exact).max():.2g}")
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
