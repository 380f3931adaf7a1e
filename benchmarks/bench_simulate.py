"""Simulation speed beside lenstronomy and caustics on the same scenes, noise included, on all cores.

`python benchmarks/bench_simulate.py [--images 60] [--rounds 5] [--population common-test-i] [--json FILE]`

The packages take turns in one run; a ratio is the median over rounds. lenstronomy has no line mass: it
sums 100 point masses, as its users do. Each package runs in as many processes as there are cores, one thread each.
"""

import argparse
import json
import math
import os
import statistics
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from multiprocessing import get_context

import numpy as np
from record import record

from darklens import executors
from darklens.units import FWHM_PER_SIGMA

CLASSES = ("no", "sphere", "vort")
LINE_POINTS = 100
PSF_TAPS = 15


def rows_of(name, label, n):
    from darklens import populations
    from darklens.simulate.truth import draw

    population = populations.get(name)
    truth = draw(population, 1, [label + 3 * k for k in range(n)])
    return population, [{key: column[i] for key, column in truth.items()} for i in range(n)]


def points_of(row, label):
    """Return theta_E, x and y of the point masses by which lenstronomy and caustics represent a class."""
    if label == 0:
        return [np.zeros(0)] * 3
    if label == 1:
        return [row[f"point_{key}"] for key in ("theta_E", "x", "y")]
    along = np.linspace(-0.5, 0.5, LINE_POINTS) * row["line_length"]
    theta_E = np.full(LINE_POINTS, math.sqrt(row["line_mass"] / LINE_POINTS))
    angle = row["line_angle"]
    return [theta_E, row["line_x"] + along * math.cos(angle), row["line_y"] + along * math.sin(angle)]


def ours(name, label, n, backend):
    from darklens.simulate.batch import simulate_batch

    return simulate_batch(_population(name), 1, [label + 3 * k for k in range(n)], backend=backend)[0][:, 0]


@lru_cache
def _population(name):
    from darklens import populations
    from darklens.memory import keep_freed_memory

    keep_freed_memory()
    return populations.get(name)


def lenstronomy(name, label, n):
    """Render with one ImageModel for all images of a class, the fastest way that its interface offers."""
    population, rows = rows_of(name, label, n)
    model = lenstronomy_model(name, label)
    g, sky, scale, images = np.random.default_rng(0), population.noise.sky, population.field.pixel_scale, []
    for row in rows:
        theta_E, x, y = points_of(row, label)
        lens = [{"theta_E": row["theta_E"]}, {"gamma1": row["gamma1"], "gamma2": row["gamma2"]}]
        lens += [{"theta_E": t, "center_x": a, "center_y": b} for t, a, b in zip(theta_E, x, y, strict=True)]
        e = (1 - row["source_q"]) / (1 + row["source_q"])
        source = {
            "amp": row["source_amplitude"] / scale**2,
            "R_sersic": row["source_R_e"],
            "n_sersic": row["source_n"],
            "e1": e * math.cos(2 * row["source_angle"]),
            "e2": e * math.sin(2 * row["source_angle"]),
            "center_x": row["source_x"],
            "center_y": row["source_y"],
        }
        images.append(g.poisson(model.image(lens, kwargs_source=[source]) + sky))
    return np.stack(images)


@lru_cache
def lenstronomy_model(name, label):
    from lenstronomy.Data.imaging_data import ImageData
    from lenstronomy.Data.psf import PSF
    from lenstronomy.ImSim.image_model import ImageModel
    from lenstronomy.LensModel.lens_model import LensModel
    from lenstronomy.LightModel.light_model import LightModel

    population, (row,) = rows_of(name, label, 1)
    field = population.field
    corner = -(field.n_pixels - 1) / 2 * field.pixel_scale
    data = ImageData(
        image_data=np.zeros((field.n_pixels, field.n_pixels)),
        ra_at_xy_0=corner,
        dec_at_xy_0=corner,
        transform_pix2angle=np.eye(2) * field.pixel_scale,
    )
    psf = PSF(
        psf_type="GAUSSIAN",
        fwhm=population.psf.sigma * FWHM_PER_SIGMA,
        pixel_size=field.pixel_scale,
        truncation=population.psf.truncate,
    )
    lens = LensModel(["SIS", "SHEAR", *["POINT_MASS"] * len(points_of(row, label)[0])])
    numerics = {"supersampling_factor": 1, "supersampling_convolution": False}
    return ImageModel(
        data, psf, lens_model_class=lens, source_model_class=LightModel(["SERSIC_ELLIPSE"]), kwargs_numerics=numerics
    )


def caustics(name, label, n, batch=10):
    """Render batches by torch.vmap, as its documentation advises."""
    import torch

    population, rows = rows_of(name, label, n)
    simulator = _caustics_simulator(name, label)
    keys = ["source_x", "source_y", "source_q", "source_angle"]
    parameters = []
    for row in rows:
        points = np.stack([points_of(row, label)[i] for i in (1, 2, 0)], axis=1).ravel()
        major = row["source_R_e"] / math.sqrt(row["source_q"])  # its R_e is the major axis'
        values = [row["theta_E"], row["gamma1"], row["gamma2"], *points, *(row[key] for key in keys), major]
        parameters.append(torch.tensor(values, dtype=torch.float32))
    stacked = torch.stack(parameters)
    with torch.no_grad():
        counts = [
            torch.poisson(simulator(stacked[i : i + batch]).clamp_min(0) + population.noise.sky)
            for i in range(0, n, batch)
        ]
    return torch.cat(counts).numpy()


@lru_cache
def _caustics_simulator(name, label):
    import caustics as package
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    population, (row,) = rows_of(name, label, 1)
    cosmology = package.FlatLambdaCDM()
    cosmology.to_static()
    at = {"z_l": 0.5, "z_s": 1.0}
    lenses = [
        package.SIS(cosmology, name="sis", x0=0.0, y0=0.0, **at),
        package.ExternalShear(cosmology, name="shear", x0=0.0, y0=0.0, **at),
    ]
    lenses += [package.Point(cosmology, name=f"point{i}", **at) for i in range(len(points_of(row, label)[0]))]
    source = package.Sersic(
        name="source",
        n=float(row["source_n"]),
        Ie=float(row["source_amplitude"]),
        use_lenstronomy_k=True,
    )
    offset = torch.arange(PSF_TAPS, dtype=torch.float64) - PSF_TAPS // 2
    kernel = torch.exp(-0.5 * (offset * population.field.pixel_scale / population.psf.sigma) ** 2)
    psf = (kernel[:, None] * kernel / kernel.sum() ** 2).float()
    simulator = package.LensSource(
        package.SinglePlane(cosmology, lenses, name="lens", **at),
        source,
        pixelscale=population.field.pixel_scale,
        pixels_x=population.field.n_pixels,
        psf=psf,
        psf_shape=psf.shape,
    )
    return torch.vmap(simulator)


def run(task):
    kind, name, label, n = task
    if kind.startswith("darklens"):
        return ours(name, label, n, kind.split()[1])
    return {"lenstronomy": lenstronomy, "caustics": caustics}[kind](name, label, n)


def seconds(pool, workers, task):
    started = time.perf_counter()
    for _ in pool.map(_run_and_forget, [task] * workers):
        pass
    return time.perf_counter() - started


def _run_and_forget(task):
    run(task)


def check_same_scenes(name, label):
    """Check that the means of many noisy pixels agree: the packages draw the same scenes."""
    reference = run(("lenstronomy", name, label, 2)).astype(float)
    other = run(("caustics", name, label, 2)).astype(float)
    # Poisson noise of both: a few standard deviations in every block of 10 x 10 pixels.
    blocks = [image.reshape(2, 15, 10, 15, 10).mean((2, 4)) for image in (reference, other)]
    deviation = np.abs(blocks[0] - blocks[1]) / np.sqrt(2 * blocks[0] / 100)
    assert deviation.max() < 7, f"{CLASSES[label]}: scenes differ by {deviation.max():.1f} standard deviations"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--population", default="common-test-i")
    parser.add_argument("--json")
    options = parser.parse_args()
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"
    workers = executors.usable_cores()
    kinds = ["darklens eager", "darklens compiled", "lenstronomy", "caustics"]
    fewer = {"lenstronomy": 3, "caustics": 3}  # slower: fewer images give the same precision
    figures = {}
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for label, class_name in enumerate(CLASSES):
            check_same_scenes(options.population, label)
            n = {kind: options.images // fewer.get(kind, 1) for kind in kinds}
            for kind in kinds:
                seconds(pool, workers, (kind, options.population, label, n[kind]))
            times = {kind: [] for kind in kinds}
            for _ in range(options.rounds):
                for kind in kinds:
                    took = seconds(pool, workers, (kind, options.population, label, n[kind]))
                    times[kind].append(1e3 * took / (n[kind] * workers))
            ratio = {
                (engine, peer): statistics.median(
                    b / a for a, b in zip(times[f"darklens {engine}"], times[peer], strict=True)
                )
                for engine in ("eager", "compiled")
                for peer in ("lenstronomy", "caustics")
            }
            figures[class_name] = {
                "vs_lenstronomy": round(ratio["compiled", "lenstronomy"], 2),
                "vs_caustics": round(ratio["compiled", "caustics"], 2),
                "eager_vs_lenstronomy": round(ratio["eager", "lenstronomy"], 2),
                "eager_vs_caustics": round(ratio["eager", "caustics"], 2),
                "ms_per_image": {kind: round(statistics.median(t), 2) for kind, t in times.items()},
            }
            print(class_name, json.dumps(figures[class_name]), flush=True)
    record(options.json, "simulate", figures)


if __name__ == "__main__":
    main()
