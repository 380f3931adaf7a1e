"""How well lenses are found in a wider sky, and how well they must be: `python benchmarks/centring.py`.

Lenses of the model's population are set into a sky of 50 pixels more, moved by up to 20 pixels along each side, and
looked for. Others are moved by parts of a pixel, in an image of the model's size, and classified. Writes
results/centring.json.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from darklens import __version__
from darklens.bundle import Bundle
from darklens.data.centre import find_lens
from darklens.data.prepare import interpolation
from darklens.evaluation.metrics import accuracy, class_auc
from darklens.files import write_json
from darklens.provenance import commit, hardware
from darklens.simulate import populations
from darklens.simulate.batch import simulate_batch

ROOT = Path(__file__).resolve().parent.parent
SEED, MOST = 92, 20
MOVED = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0)  # pixels


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="lens_residual")
    parser.add_argument("--n", type=int, default=60, help="lenses to look for")
    parser.add_argument("--n-moved", type=int, default=90, help="lenses to classify")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "centring.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    bundle = Bundle.load(given.model)
    population = bundle.contract.data["population"]
    result = {
        "schema": 1,
        "population": population,
        "found": found(population, given.n),
        "moved": moved(bundle, population, given.n_moved),
        "provenance": {"version": __version__, "commit": commit(), "hardware": hardware()},
    }
    write_json(given.out, result)
    print(result)


def found(name, n):
    """Return percentiles of the error in pixels, of all lenses and by class."""
    population = populations.get(name, ["stored=counts"])
    images, truth = simulate_batch(population, SEED, range(n))
    g, side, errors = np.random.default_rng(SEED), images.shape[-1], []
    started = time.process_time()
    for image in images[:, 0]:
        up, right = g.integers(-MOST, MOST + 1, 2)
        wide = g.poisson(population.noise.sky, (side + 50, side + 50)).astype(float)
        wide[25 + up : 25 + up + side, 25 + right : 25 + right + side] = image
        row, column = find_lens(wide, population.field.pixel_scale)
        errors.append(float(np.hypot(row - up, column - right)))
    seconds, labels = (time.process_time() - started) / n, truth["label"]
    groups = {"all": np.array(errors)}
    groups |= {c: np.array(errors)[labels == i] for i, c in enumerate(population.classes)}
    names = ("median", "p90", "most")
    parts = {c: dict(zip(names, np.percentile(e, [50, 90, 100]).tolist(), strict=True)) for c, e in groups.items()}
    return {"n": n, "cpu_seconds_each": seconds, "error_pixels": parts}


def moved(bundle, name, n):
    """Return accuracy and AUC of lenses that are moved along x by parts of a pixel."""
    side = bundle.contract.n_pixels
    population = populations.get(name, ["stored=counts", f"field.n_pixels={side + 20}"])
    images, truth = simulate_batch(population, SEED, range(n))
    rows = []
    for by in MOVED:
        plain, across = (interpolation(side + 20, side, 1.0, offset=d) for d in (0.0, by))
        probabilities = bundle.probabilities((plain @ images.astype(np.float64) @ across.T).astype(np.float32))
        judged = {"accuracy": float(accuracy(truth["label"], probabilities))}
        judged["macro_auc"] = float(np.mean(class_auc(truth["label"], probabilities)))
        rows.append({"pixels": by, "n": n, **judged})
        print(rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    main()
