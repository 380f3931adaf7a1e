"""Simulation, fits, training and inference on a GPU against the CPU of the same machine, in at most eight minutes.

`python benchmarks/bench_gpu.py [--device cuda] [--minutes 8] [--json FILE]`

Figures are images per second: medians over rounds that fill the time of each measurement, after a first round that is
not counted. The CPU uses all its threads, in simulations one. Memory layout and precision are those that a training on
the device chooses. A measurement that does not fit into the time has no figure. `--quick --device cpu` tries all of
them in a minute.
"""

import argparse
import json
import statistics
import time

import numpy as np
import torch
from record import record

from darklens import PSF, Detector, Observation, Scene, Sersic, Shear, populations
from darklens.devices import require_device
from darklens.fit.hypotheses import fit_hypotheses
from darklens.fit.macro import fit_macro
from darklens.fit.scene_fit import fit
from darklens.models.zoo import build
from darklens.provenance import hardware
from darklens.scene import SIE
from darklens.simulate.batch import simulate_batch
from darklens.training.precision import precision_of
from darklens.training.recipe import get

NETWORKS = ("resnet_simple", "sis_autoencoder2", "resnet_18")
POPULATION, PIXELS, SCALE = "common-test-i", 150, 0.05
# Images in a round on the GPU and on the CPU, and with --quick on either.
SIZES = {
    "simulate": (512, 64, 4),
    "fit_macro": (512, 32, 2),
    "fit_hypotheses": (256, 16, 1),
    "fit_scene": (1, 1, 1),
    "train": (256, 32, 2),
    "infer": (1024, 64, 2),
}


def simulate(device, n):
    population = populations.get(POPULATION)
    return lambda: simulate_batch(population, 1, range(n), device=device)


def lens_fit(function):
    def prepare(device, n):
        images, _ = simulate_batch(populations.get(POPULATION), 2, range(n))
        on_device = torch.from_numpy(images[:, 0]).to(device)
        return lambda: function(on_device, POPULATION, centred=False)

    return prepare


def scene_fit(device, n):
    scene = Scene([SIE(), Shear()], [Sersic()], [Sersic()])
    psf = PSF.gaussian(fwhm=0.1, pixel_scale=SCALE)
    values = dict(zip(scene.names, scene.start()[0].tolist(), strict=True))
    image = scene.image(values, dict.fromkeys(scene.amplitude_names, 5.0), Detector((100, 100), SCALE, psf))
    noise = np.random.default_rng(0).normal(0, 0.1, image.shape)
    observation = Observation.of(image + noise, noise_map=0.1, pixel_scale=SCALE, psf=psf)
    return lambda: fit(observation, scene, device=device)


def network_step(name, train):
    def prepare(device, n):
        network = build(get(name).model, n_pixels=PIXELS, pixel_scale=SCALE, n_classes=3).to(device)
        network = network.to(memory_format=torch.channels_last).train(train)
        images = torch.rand(n, 1, PIXELS, PIXELS, device=device).contiguous(memory_format=torch.channels_last)
        labels = torch.arange(n, device=device) % 3
        optimiser = torch.optim.AdamW(network.parameters(), fused=True)
        half = torch.autocast(device.type, torch.bfloat16, enabled=precision_of("auto", device) == "bf16-mixed")

        def step():
            with half:
                logits = network(images)
            torch.nn.functional.cross_entropy(logits.float(), labels).backward()
            optimiser.step()
            optimiser.zero_grad()

        @torch.inference_mode()
        def infer():
            with half:
                network(images)

        return step if train else infer

    return prepare


TASKS = {
    "simulate": simulate,
    "fit_macro": lens_fit(fit_macro),
    "fit_hypotheses": lens_fit(fit_hypotheses),
    "fit_scene": scene_fit,
    **{f"train {name}": network_step(name, train=True) for name in NETWORKS},
    **{f"infer {name}": network_step(name, train=False) for name in NETWORKS},
}


def rate(work, n, device, seconds):
    """Return images per second of `work` on n images."""

    def round_time():
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    round_time()
    times, end = [], time.perf_counter() + seconds
    while len(times) < 2 or time.perf_counter() < end:
        times.append(round_time())
    return n / statistics.median(times)


def difference(device):
    """Return the largest difference between Einstein radii fitted on the device and on the CPU, arcsec."""
    fits = [lens_fit(fit_macro)(on, 16)() for on in (device, torch.device("cpu"))]
    theta_E = [result.parameters[:, result.names.index("theta_E")].cpu() for result in fits]
    return float((theta_E[0] - theta_E[1]).abs().max())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json")
    options = parser.parse_args()
    device, cpu = require_device(options.device), torch.device("cpu")
    end = time.perf_counter() + 60 * options.minutes
    figures = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else options.device,
        "cpu": f"{hardware()}, {torch.get_num_threads()} threads",
        "precision": [precision_of("auto", on) for on in (device, cpu)],
        "theta_E_difference_arcsec": difference(device),
    }
    print(json.dumps(figures), flush=True)
    jobs = [(task, on) for task in TASKS for on in (device, cpu)]
    for i, (task, on) in enumerate(jobs):
        # Half of what is left, since preparation and the first round take time too.
        share = (end - time.perf_counter()) / (len(jobs) - i)
        if share < (0 if options.quick else 2):
            continue
        side = "per_s" if i % 2 == 0 else "cpu_per_s"
        n = SIZES[task.split()[0]][2 if options.quick else i % 2]
        measured = rate(TASKS[task](on, n), n, on, 0 if options.quick else min(15.0, share / 2))
        figures.setdefault(task, {})[side] = float(f"{measured:.4g}")
        print(task, side, figures[task][side], flush=True)
    for values in figures.values():
        if isinstance(values, dict) and len(values) == 2:
            values["vs_cpu"] = round(values["per_s"] / values["cpu_per_s"], 2)
    if device.type == "cuda":
        figures["memory_gib"] = round(torch.cuda.max_memory_allocated(device) / 2**30, 2)
    record(options.json, "gpu", figures)


if __name__ == "__main__":
    main()
