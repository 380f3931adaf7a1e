"""The smooth fit: speed beside scipy's least_squares, precision beside the Cramer-Rao bound, convergence.

    python benchmarks/fit.py --json results/bench.json

Both fit the same images of common-test-i at 150 x 150 pixels, scipy one at a time with numerical derivatives of the
same model: once from our starts, and once from lenses drawn from the population, one after the other until its deviance
is ours to 1 %, as one must who has no bank of starts. And once with lenstronomy's images in place of ours, from our
starts, which is what one has without this package. With --store, a store that lens_residual has fitted, it also says
how often the peak of the evidence map is at a true subhalo. Writes OUT/fit.json too.
"""

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import simulate
import torch
from record import record
from scipy.optimize import least_squares
from scipy.special import xlogy

from darklens import __version__, provenance
from darklens.data.store import Store
from darklens.files import write_json
from darklens.fit.fitter import fitter
from darklens.fit.macro import fit_macro, unit_range
from darklens.fit.table import CHANNELS, fits_of
from darklens.memory import keep_freed_memory
from darklens.simulate import populations
from darklens.simulate.batch import simulate_batch
from darklens.simulate.draw import draw

NAME, SEED = "common-test-i", 4242
MANY = 512  # images of which ours are timed, which takes about as long as one of the others'
Images = Callable[[np.ndarray], np.ndarray]  # of a lens' parameters
MEDIAN_OF_NORMAL = 0.6745  # of |x|, in standard deviations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "results" / NAME / "fit")
    parser.add_argument("--images", type=int, default=900, help="for precision and convergence")
    parser.add_argument("--scipy-images", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--store", type=Path, help="simulated lenses of common-test-i with fits")
    given = parser.parse_args()
    result: dict[str, Any] = {"schema": 1, "population": NAME}
    result |= speed(given.scipy_images, given.rounds) | precision(given.images)
    if given.store:
        result["localisation"] = localisation(Store(given.store))
    result["provenance"] = {"version": __version__, "commit": provenance.commit(), "hardware": provenance.hardware()}
    write_json(given.out / "fit.json", result)
    print(result)
    if given.json:
        kept = ("vs_scipy", "vs_scipy_from_drawn_starts", "vs_scipy_with_lenstronomy", "images_per_s")
        record(given.json, "fit", {key: result[key] for key in kept})


def images_of(rows: range) -> tuple[torch.Tensor, dict[str, np.ndarray]]:
    images, truth = simulate_batch(populations.get(NAME), SEED, rows)
    return torch.from_numpy(images)[:, 0], truth


def fit_rows(start: int, n: int) -> float:
    """Return the seconds of fitting n images on one thread."""
    torch.set_num_threads(1)
    keep_freed_memory()
    images, _ = images_of(range(start, start + n))
    fit_macro(images[:32], NAME, engine="compiled")
    began = time.perf_counter()
    fit_macro(images, NAME, engine="compiled")
    return time.perf_counter() - began


def speed(n_scipy: int, rounds: int) -> dict[str, Any]:
    """Return images a second of two processes, and the ratio to scipy on one thread, alternating."""
    torch.set_num_threads(1)
    keep_freed_memory()  # as the fits of a store do; scipy has it too
    many, _ = images_of(range(0, 3 * MANY, 3))  # smooth lenses
    images = many[:n_scipy]
    first, sky = fit_macro(images, NAME, engine="compiled"), fitter(NAME).population.noise.sky
    counted = (images - first.offset[:, None, None]) / first.scale[:, None, None] + sky
    counts = [c.clamp_min(0).double().numpy() for c in counted]
    scaled, _, _ = unit_range(images)
    starts = [np.array([*row[:-2].double().numpy(), 0.0, 0.0]) for row in fitter(NAME).nearest(scaled)[0]]
    ratios, drawn_ratios, peer_ratios, deviances, tries = [], [], [], [], []
    our_images, peer = OurImages(), LenstronomyImages()
    for _ in range(rounds):
        began = time.perf_counter()
        ours = fit_macro(many, NAME, engine="compiled")
        own_seconds = (time.perf_counter() - began) * n_scipy / len(many)
        began = time.perf_counter()
        theirs = [scipy_fit(c, s, sky, our_images) for c, s in zip(counts, starts, strict=True)]
        ratios.append((time.perf_counter() - began) / own_seconds)
        ours_counted = ((ours.model - ours.offset[:, None, None]) / ours.scale[:, None, None] + sky)[:n_scipy]
        own = [
            float((deviance_residual(c, m.double().numpy()) ** 2).sum() / (c.size - 9))
            for c, m in zip(counts, ours_counted, strict=True)
        ]
        began = time.perf_counter()
        peers = [scipy_fit(c, s, sky, peer) for c, s in zip(counts, starts, strict=True)]
        peer_ratios.append((time.perf_counter() - began) / own_seconds)
        deviances = list(zip(own, theirs, peers, strict=True))
        began = time.perf_counter()
        tries = [from_drawn_starts(c, target, sky, our_images) for c, target in zip(counts, own, strict=True)]
        drawn_ratios.append((time.perf_counter() - began) / own_seconds)
    per_second = []
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for _ in range(rounds):
            both = [pool.submit(fit_rows, 1000 * k, 192) for k in (1, 2)]
            per_second.append(2 * 192 / max(f.result() for f in both))
    return {
        "vs_scipy": float(np.median(ratios)),
        "vs_scipy_from_drawn_starts": float(np.median(drawn_ratios)),
        "vs_scipy_with_lenstronomy": float(np.median(peer_ratios)),
        "drawn_starts_needed": tries,
        "images_per_s": float(np.median(per_second)),
        "deviance_ours_scipy_and_with_lenstronomy": deviances,
    }


class OurImages:
    """Noise-free counts of a lens without sky, by the model that is fitted."""

    def __init__(self) -> None:
        self._lens = fitter(NAME).lens

    def __call__(self, parameters: np.ndarray) -> np.ndarray:
        light = self._lens.images(self._lens.bounded(torch.from_numpy(parameters[None]).float()))
        return light[0].double().numpy()


class LenstronomyImages:
    """The same by lenstronomy: one ImageModel for all, which is the fastest way its interface offers."""

    def __init__(self) -> None:
        self._model = simulate.lenstronomy_model(NAME, 0)
        own = fitter(NAME)
        self._names, scale = own.lens.names, own.population.field.pixel_scale
        drawn = draw(own.population, 0, [0])
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

    found = least_squares(residual, start, x_scale="jac", diff_step=1e-4, method="trf", max_nfev=60)
    return float(2 * found.cost / (counts.size - len(start)))


def from_drawn_starts(counts: np.ndarray, target: float, sky: float, images: Images, most: int = 30) -> int:
    """Return the number of starts drawn from the population until scipy's deviance is within 1 % of `target`."""
    own = fitter(NAME)
    drawn = own.lens.from_truth(draw(own.population, 7, range(most))).double().numpy()
    for k, row in enumerate(drawn, start=1):
        if scipy_fit(counts, np.array([*row, 0.0, 0.0]), sky, images) < 1.01 * target:
            return k
    return most


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
        "chi2_of_no": [float(v) for v in np.percentile(fit.chi2[smooth], [0, 5, 50, 95, 100])],
    }


def localisation(store: Store) -> dict[str, Any]:
    """Return how often the evidence's peak is near a true subhalo, where one above 5e9 M_sun lies on the ring."""
    fits = fits_of(store, populations.get(NAME), centred=False)
    squared, theta_E = store.truth("point_theta_E") ** 2, store.truth("theta_E")
    x, y = store.truth("point_x"), store.truth("point_y")
    heavy = squared / theta_E[:, None] ** 2 > 5e-3  # of a lens of 1e12 M_sun
    on_ring = np.abs(np.hypot(x, y) - theta_E[:, None]) < 0.3
    rows = np.flatnonzero((store.labels == 1) & (heavy & on_ring).any(1))
    maps = fits.seen(rows).maps[:, CHANNELS.index("evidence")]
    n = maps.shape[-1]
    place = maps.flatten(1).argmax(1).numpy()
    at_x, at_y = ((v - (n - 1) / 2) * 0.1 for v in (place % n, place // n))
    distance = np.hypot(x[rows] - at_x[:, None], y[rows] - at_y[:, None])
    chosen, any_true = (heavy & on_ring)[rows], squared[rows] / theta_E[rows, None] ** 2 > 1e-3
    nearest = {
        "such_one": np.where(chosen, distance, np.inf).min(1),
        "true_one": np.where(any_true, distance, np.inf).min(1),
    }
    widths = {"2_fwhm": 2 * 2.355 * 0.087, "2_sigma": 2 * 0.087}
    shares = {
        f"within_{width}_of_a_{what}": float((away < limit).mean())
        for what, away in nearest.items()
        for width, limit in widths.items()
    }
    return {"images": len(rows), "true_ones_are_above_solar_masses": 1e9, **shares}


if __name__ == "__main__":
    main()
