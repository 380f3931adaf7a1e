"""Speed of the fits beside scipy and lenstronomy; precision beside the Cramer-Rao bound; convergence.

    python benchmarks/bench_fit.py [--rounds 3] [--json results/bench.json]

Both fit the same images of common-test-i at 150 x 150 pixels. scipy's least_squares fits one at a time with numerical
derivatives of the same model: from our starts, from lenses drawn from the population until its deviance is within 1 %
of ours (as one must without a bank of starts), and from our starts with lenstronomy's images in place of ours (as one
would without this package). All run on one thread and take turns; images per second are of two processes together.
Writes OUT/fit.json too.
"""

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import bench_simulate
import numpy as np
import torch
from record import record
from scipy.optimize import least_squares
from scipy.special import xlogy

from darklens import __version__, populations, provenance
from darklens.files import write_json
from darklens.fit.fitter import fitter_of
from darklens.fit.hypotheses import fit_hypotheses
from darklens.fit.macro import fit_macro, unit_range
from darklens.memory import keep_freed_memory
from darklens.simulate.batch import simulate_batch
from darklens.simulate.truth import draw

NAME, SEED = "common-test-i", 4242
MANY = 512  # images in a timing of ours, which takes about as long as one image of scipy
Images = Callable[[np.ndarray], np.ndarray]  # of a lens' parameters
MEDIAN_OF_NORMAL = 0.6745  # of |x|, in standard deviations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "results" / NAME / "fit")
    parser.add_argument("--images", type=int, default=900, help="for precision and convergence")
    parser.add_argument("--scipy-images", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    result: dict[str, Any] = {"schema": 1, "population": NAME}
    result |= speed(options.scipy_images, options.rounds)
    result |= throughput(options.rounds) | precision(options.images)
    result["provenance"] = {"version": __version__, "commit": provenance.commit(), "hardware": provenance.hardware()}
    write_json(options.out / "fit.json", result)
    print(result)
    if options.json:
        keys = ("vs_scipy", "vs_scipy_from_drawn_starts", "vs_scipy_with_lenstronomy", "images_per_s")
        record(options.json, "fit", {key: result[key] for key in (*keys, "hypotheses_images_per_s")})


def images_of(rows: range) -> tuple[torch.Tensor, dict[str, np.ndarray]]:
    images, truth = simulate_batch(populations.get(NAME), SEED, rows)
    return torch.from_numpy(images)[:, 0], truth


def fit_seconds(first: int, n: int, hypotheses: bool) -> float:
    """Return the seconds of fitting n images on one thread: all hypotheses, or the smooth lens."""
    torch.set_num_threads(1)
    keep_freed_memory()
    images, _ = images_of(range(first, first + n))
    fit = fit_hypotheses if hypotheses else fit_macro
    fit(images[:32], populations.get(NAME))
    started = time.perf_counter()
    fit(images, populations.get(NAME))
    return time.perf_counter() - started


def throughput(rounds: int) -> dict[str, float]:
    """Return images per second of two processes with one thread each."""
    figures = {}
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for key, n, choice in (("images_per_s", 192, False), ("hypotheses_images_per_s", 48, True)):
            rates = []
            for _ in range(rounds):
                both = [pool.submit(fit_seconds, 1000 * k, n, choice) for k in (1, 2)]
                rates.append(2 * n / max(seconds.result() for seconds in both))
            figures[key] = float(np.median(rates))
    return figures


def speed(n_scipy: int, rounds: int) -> dict[str, Any]:
    """Return ratios to scipy on one thread, alternating, and the deviances of all."""
    torch.set_num_threads(1)
    keep_freed_memory()  # as the fits of a store do; scipy has it too
    many, _ = images_of(range(0, 3 * MANY, 3))  # smooth lenses
    images = many[:n_scipy]
    first, sky = fit_macro(images, NAME), fitter_of(NAME).population.noise.sky
    counted = (images - first.offset[:, None, None]) / first.scale[:, None, None] + sky
    counts = [c.clamp_min(0).double().numpy() for c in counted]
    scaled, _, _ = unit_range(images)
    starts = [np.array([*row[:-2].double().numpy(), 0.0, 0.0]) for row in fitter_of(NAME).nearest(scaled)[0]]
    ratios, drawn_ratios, peer_ratios, deviances, tries = [], [], [], [], []
    our_images, peer = OurImages(), LenstronomyImages()
    for _ in range(rounds):
        started = time.perf_counter()
        ours = fit_macro(many, NAME)
        our_seconds = (time.perf_counter() - started) * n_scipy / len(many)
        started = time.perf_counter()
        theirs = [scipy_fit(c, s, sky, our_images) for c, s in zip(counts, starts, strict=True)]
        ratios.append((time.perf_counter() - started) / our_seconds)
        ours_counted = ((ours.model - ours.offset[:, None, None]) / ours.scale[:, None, None] + sky)[:n_scipy]
        our_deviances = [
            float((deviance_residual(c, m.double().numpy()) ** 2).sum() / (c.size - 9))
            for c, m in zip(counts, ours_counted, strict=True)
        ]
        started = time.perf_counter()
        peers = [scipy_fit(c, s, sky, peer) for c, s in zip(counts, starts, strict=True)]
        peer_ratios.append((time.perf_counter() - started) / our_seconds)
        deviances = list(zip(our_deviances, theirs, peers, strict=True))
        started = time.perf_counter()
        tries = [from_drawn_starts(c, target, sky, our_images) for c, target in zip(counts, our_deviances, strict=True)]
        drawn_ratios.append((time.perf_counter() - started) / our_seconds)
    return {
        "vs_scipy": float(np.median(ratios)),
        "vs_scipy_from_drawn_starts": float(np.median(drawn_ratios)),
        "vs_scipy_with_lenstronomy": float(np.median(peer_ratios)),
        "drawn_starts_needed": tries,
        "deviance_ours_scipy_and_with_lenstronomy": deviances,
    }


class OurImages:
    """Noise-free counts of a lens without sky, by the model of the fit."""

    def __init__(self) -> None:
        self._lens = fitter_of(NAME).lens

    def __call__(self, parameters: np.ndarray) -> np.ndarray:
        light = self._lens.images(self._lens.bounded(torch.from_numpy(parameters[None]).float()))
        return light[0].double().numpy()


class LenstronomyImages:
    """The same by lenstronomy: one ImageModel for all, which is the fastest way its interface offers."""

    def __init__(self) -> None:
        self._model = bench_simulate.lenstronomy_model(NAME, 0)
        smooth = fitter_of(NAME)
        self._names, scale = smooth.lens.names, smooth.population.field.pixel_scale
        drawn = draw(smooth.population, 0, [0])
        self._fixed = {"R_sersic": drawn["source_R_e"][0], "n_sersic": drawn["source_n"][0]}
        self._fixed["amp"] = drawn["source_amplitude"][0] / scale**2

    def __call__(self, parameters: np.ndarray) -> np.ndarray:
        p = dict(zip(self._names, parameters, strict=True))
        lens = [{"theta_E": max(p["theta_E"], 0.05)}, {"gamma1": p["gamma1"], "gamma2": p["gamma2"]}]
        centre = {"center_x": p["source_x"], "center_y": p["source_y"]}
        source = self._fixed | centre | {"e1": p["source_e1"], "e2": p["source_e2"]}
        return np.asarray(self._model.image(lens, kwargs_source=[source]))


def scipy_fit(counts: np.ndarray, start: np.ndarray, sky: float, images: Images) -> float:
    """Return the deviance per degree of freedom of scipy's fit of one image, on the same counts as ours."""

    def residual(unknown: np.ndarray) -> np.ndarray:
        return deviance_residual(counts, np.exp(unknown[-2]) * images(unknown[:-2]) + unknown[-1] + sky)

    fit = least_squares(residual, start, x_scale="jac", diff_step=1e-4, method="trf", max_nfev=60)
    return float(2 * fit.cost / (counts.size - len(start)))


def from_drawn_starts(counts: np.ndarray, target: float, sky: float, images: Images, limit: int = 30) -> int:
    """Return the number of starts drawn from the population until scipy's deviance is within 1 % of `target`."""
    smooth = fitter_of(NAME)
    drawn = smooth.lens.from_truth(draw(smooth.population, 7, range(limit))).double().numpy()
    for k, row in enumerate(drawn, start=1):
        if scipy_fit(counts, np.array([*row, 0.0, 0.0]), sky, images) < 1.01 * target:
            return k
    return limit


def deviance_residual(counts: np.ndarray, rate: np.ndarray) -> np.ndarray:
    rate = np.maximum(rate, 0.05)
    deviance = 2 * (rate - counts + xlogy(counts, counts / rate))
    return np.asarray(np.sign(counts - rate) * np.sqrt(np.maximum(deviance, 0))).ravel()


def precision(n: int) -> dict[str, Any]:
    """Return the error of theta_E in units of the Cramer-Rao bound, and the share of images that converge."""
    images, truth = images_of(range(n))
    fit = fit_macro(images, NAME)
    smooth = truth["label"] == 0
    i = fit.names.index("theta_E")
    error = (fit.parameters[smooth, i] - torch.from_numpy(truth["theta_E"][smooth])).abs()
    bound = fit.covariance[smooth, i, i].sqrt()
    return {
        "median_theta_E_error": float(error.median()),
        "median_over_cramer_rao": float((error / bound).median() / MEDIAN_OF_NORMAL),
        "converged": float(fit.converged.float().mean()),
        "images": n,
        "chi2_of_no": [float(v) for v in np.percentile(fit.reduced_chi2[smooth], [0, 5, 50, 95, 100])],
    }


if __name__ == "__main__":
    main()
