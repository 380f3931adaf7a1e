"""How a trained classifier of fits fares on lenses and images that it was not made for: `python tools/shifts.py MODEL`.

Each row is a small test set that differs from the population in one thing. Some are other lenses (simulated anew), some
are the same images stored otherwise. Writes shifts.json and shifts.md.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from commands import ROOT

from darklens import __version__, populations, provenance
from darklens.bundle import Bundle
from darklens.evaluation.compare import format_metric
from darklens.evaluation.intervals import metrics_with_intervals
from darklens.files import write_json, write_text
from darklens.fit.features import FitFeatures, extract_features, to_tensors
from darklens.fit.hypotheses import fit_hypotheses
from darklens.models.lens_residual import LensResidualConfig
from darklens.populations.population import PoissonNoise, Population
from darklens.simulate.backend import Backend
from darklens.simulate.batch import simulate_batch
from darklens.simulate.render import render
from darklens.simulate.truth import draw, label_of

SEED = 900
Images = tuple[np.ndarray, FitFeatures]  # labels, and fits
# Name: the population's overrides. The classifier goes on to assume the population as it was.
LENSES: dict[str, list[str]] = {
    "as trained": [],
    "substructure's mass taken from the lens (conserve_mass)": ["conserve_mass=true"],
    "PSF 10 % wider than assumed": ["psf.sigma=0.0957"],
    "PSF 10 % narrower than assumed": ["psf.sigma=0.0783"],
    "sky 20 % brighter than assumed": ["noise.sky=12"],
    "sky 20 % darker than assumed": ["noise.sky=8"],
    "elliptical lenses (e1, e2 of 0.05)": [
        "lens.e1={kind: normal, mean: 0, sigma: 0.05, low: -0.2, high: 0.2}",
        "lens.e2={kind: normal, mean: 0, sigma: 0.05, low: -0.2, high: 0.2}",
    ],
    "lenses that shine (20 counts a pixel at 0.5 arcsec)": [
        "lens_light={kind: sersic, amplitude: 20, R_e: 0.5, n: 3, q: 0.8, angle: 0, "
        "position: {kind: cartesian, x: 0, y: 0}}"
    ],
}


def main() -> None:
    given = arguments()
    bundle = Bundle.load(given.model)
    if not isinstance(bundle.contract.model, LensResidualConfig):
        raise SystemExit(f"{bundle.contract.recipe} fits no lenses; give a lens_residual.")
    name, n, population = given.population, 3 * given.n_per_class, bundle.contract.model.population
    other = "common-test-i" if name.endswith("isotropic") else "common-test-i-isotropic"

    def lenses(population_name: str, overrides: list[str]) -> Images:
        images, labels = simulated(population_name, overrides, n)
        return labels, extract_features(images, population, backend=given.backend)

    def stored(store: Callable[[torch.Tensor], torch.Tensor]) -> Images:
        images, labels = simulated(name, [], n)
        return labels, extract_features(store(images), population, backend=given.backend)

    making: dict[str, Callable[[], Images]] = {what: partial(lenses, name, own) for what, own in LENSES.items()}
    making[f"lenses of {other}"] = partial(lenses, other, [])
    making |= {what: partial(stored, store) for what, store in STORED.items()}
    making["fluxes of an uneven exposure, with its map"] = partial(in_flux_units, population, n, given.backend)
    rows = []
    for what, make in making.items():
        if given.only and not any(part in what for part in given.only):
            continue
        rows.append(judged(what, bundle, *make()))
        print(f"{what}: macro AUC {rows[-1]['auc']['macro']['value']:.5f}", flush=True)
    result = {
        "schema": 1,
        "population": name,
        "model": {"recipe": bundle.contract.recipe, "data": bundle.contract.data},
        "n": n,
        "rows": rows,
        "provenance": {"version": __version__, "commit": provenance.commit(), "hardware": provenance.hardware()},
    }
    out = given.out or ROOT / "results" / name / "shifts"
    write_json(out / "shifts.json", result)
    write_text(out / "shifts.md", table(result))
    print(table(result))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a run, a bundle, or the name of a shipped model")
    parser.add_argument("--population", default="common-test-i", help="that it was trained on")
    parser.add_argument("--n-per-class", type=int, default=200)
    parser.add_argument("--backend", default="compiled", choices=["eager", "compiled"], help="that fits")
    parser.add_argument("--only", action="append", help="rows with this in their name; may be given again")
    parser.add_argument("--out", type=Path, help="by default results/POPULATION/shifts")
    return parser.parse_args()


def simulated(name: str, overrides: list[str], n: int) -> tuple[torch.Tensor, np.ndarray]:
    images, truth = simulate_batch(populations.get(name, overrides), SEED, range(n))
    return torch.from_numpy(images)[:, 0], truth["label"].astype(np.int64)


def rubbed_out(images: torch.Tensor) -> torch.Tensor:
    """Return images with noise of a fifth of a count, in which no step of one count can be found."""
    return images + torch.randn(images.shape, generator=torch.Generator().manual_seed(1)) * 0.2 / 800


# Ways to store the same images.
STORED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "the same images in 8 bits": lambda images: (images * 255).round() / 255,
    "the same images, levels of counts rubbed out": rubbed_out,
    "the same images as float32 fluxes": lambda images: 3.7e-19 * images + 2e-20,
}


def in_flux_units(population: Population, n: int, backend: Backend) -> Images:
    """Return the fits of counts of an exposure that falls by 30 % across the image, divided by it, with the map."""
    truth = draw(population, SEED, range(n))
    size = population.field.n_pixels
    exposure = torch.linspace(1.15, 0.85, size).expand(n, size, size).contiguous()
    assert isinstance(population.noise, PoissonNoise)
    rate = (render(population, truth) + population.noise.sky) * exposure
    flux = 3e-19 * torch.poisson(rate, generator=torch.Generator().manual_seed(2)) / exposure
    fits = fit_hypotheses(flux, population, exposure=exposure, backend=backend)
    labels = np.array([label_of(population, i) for i in range(n)])
    return labels, to_tensors(fits)


def judged(name: str, bundle: Bundle, labels: np.ndarray, features: FitFeatures) -> dict[str, Any]:
    with torch.inference_mode():
        probabilities = bundle.calibrated(bundle.output(features).logits)
    metrics = metrics_with_intervals(labels, probabilities, bundle.contract.classes)
    return {"name": name, **{key: metrics[key] for key in ("n", "auc", "accuracy", "ece", "nll", "confusion")}}


def table(result: dict[str, Any]) -> str:
    p, data = result["provenance"], result["model"]["data"]
    lines = [
        "# What it was not made for",
        "",
        f"{result['model']['recipe']} trained on `{data['population']}`, {result['n']} images a row; "
        f"commit {p['commit']}, {p['hardware']}. The fits assume the population as trained in every row. "
        "Brackets: 95 % bootstrap.",
        "",
        "| test images | macro AUC | no | sphere | vort | accuracy | ECE | log-loss |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in result["rows"]:
        classes = [f"{r['auc'][c]['value']:.4f}" for c in ("no", "sphere", "vort")]
        macro, accuracy = (format_metric(v) for v in (r["auc"]["macro"], r["accuracy"]))
        cells = [r["name"], macro, *classes, accuracy, f"{r['ece']['value']:.3f}", f"{r['nll']['value']:.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
