"""How well lenses are found in a wider sky, and how well they must be: `python benchmarks/centring.py`.

Lenses of the model's population are set into a sky of 50 pixels more, moved by up to 20 pixels along each side, and
looked for. Others are moved by parts of a pixel before photons are counted, in an image of the model's size, and
classified, with lenses held at the middle beside. Writes results/centring.json.
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
from darklens.simulate.draw import draw, label_of
from darklens.simulate.render import render

ROOT = Path(__file__).resolve().parent.parent
SEED, MOST = 92, 20
MOVED = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0)  # pixels


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="lens_residual")
    parser.add_argument("--n", type=int, default=60, help="lenses to look for")
    parser.add_argument("--n-moved", type=int, default=300, help="lenses to classify, at each distance")
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
    """Return accuracy and AUC of lenses that are moved along x by parts of a pixel, their place fitted or held."""
    side, generator = bundle.contract.n_pixels, np.random.default_rng(SEED)
    population = populations.get(name, ["stored=counts", f"field.n_pixels={side + 20}"])
    truth = draw(population, SEED, range(n))
    labels = np.array([label_of(population, i) for i in range(n)])
    bright = render(population, truth).numpy().astype(float)
    rows = []
    for by in MOVED:
        plain, across = (interpolation(side + 20, side, 1.0, offset=d) for d in (0.0, by))
        counts = generator.poisson(np.maximum(plain @ bright @ across.T, 0) + population.noise.sky)
        images = counts[:, None].astype(np.float32)
        row = {"pixels": by, "n": n}
        for how, held in (("fitted", False), ("held", True)):
            own = placed(bundle, held)
            probabilities = np.concatenate([own.probabilities(images[i : i + 30]) for i in range(0, n, 30)])
            judged = {"accuracy": float(accuracy(labels, probabilities))}
            row[how] = judged | {"macro_auc": float(np.mean(class_auc(labels, probabilities)))}
        rows.append(row)
        print(row, flush=True)
    return rows


def placed(bundle, held):
    """Return the model with lenses held at the middle or not."""
    model = bundle.contract.model.model_copy(update={"centred": held})
    contract = bundle.contract.model_copy(update={"model": model})
    network = contract.build()
    network.load_state_dict(bundle.network.state_dict())
    return Bundle(contract, network)


if __name__ == "__main__":
    main()
