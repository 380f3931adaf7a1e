"""What the fits of lens_residual say of each class, what the compiled engine is worth, and what nuisances cost.

    python benchmarks/hypotheses.py stores/common-test-i/test

Reads a store of common-test-i that lens_residual has fitted (it fits what is missing) and times both engines, and fits
with an unknown PSF and of elliptical lenses that shine, on the same images and one thread, alternating. Writes
results/common-test-i/hypotheses/hypotheses.json.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from darklens import __version__, populations, provenance
from darklens.data.store import Store
from darklens.executors import usable_cores
from darklens.files import write_json
from darklens.fit.hypotheses import weigh_hypotheses
from darklens.fit.table import NUMBERS, fits_of

NAME, PERCENTILES = "common-test-i", [0, 1, 5, 50, 95, 99, 100]
# Population that is fitted, its overrides, engine, and whether lenses are held at the middle.
TIMED = {
    "eager": (NAME, [], "eager", False),
    "eager, place held": (NAME, [], "eager", True),
    "compiled": (NAME, [], "compiled", False),
    "compiled, place held": (NAME, [], "compiled", True),
    "eager, place held, width of the PSF unknown": (NAME, ["psf.known=false"], "eager", True),
    "eager, common-test-i-wide": ("common-test-i-wide", [], "eager", False),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--images", type=int, default=48, help="on which the engines are timed")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    store = Store(given.store)
    numbers = fits_of(store, populations.get(NAME), engine="compiled", centred=False, workers=usable_cores()).numbers
    value = dict(zip(NUMBERS, numbers.T, strict=True))
    best = (value["deviance"] - np.maximum(value["line_gain"], value["point_gain_3"])) / value["blocks"]
    labels = store.labels
    # Not the largest gain of all, which one smooth fit in another valley decides.
    noise = {name: np.percentile(value[name][labels == 0], 99.9) for name in ("line_gain", "point_gain_3")}
    silent = (value["line_gain"] <= noise["line_gain"]) & (value["point_gain_3"] <= noise["point_gain_3"])
    result = {
        "schema": 1,
        "images": len(store),
        "percentiles": PERCENTILES,
        "beside_line": {
            name: [float(v) for v in np.percentile(value["beside_line"][labels == i], PERCENTILES)]
            for i, name in enumerate(store.classes)
        },
        "largest_deviance_per_block_of_the_best_hypothesis": float(best.max()),
        "sphere_with_no_gain_above_those_of_999_of_1000_no": int((silent & (labels == 1)).sum()),
        "vort_with_more_than_100_left_beside_the_line": int((value["beside_line"][labels == 2] > 100).sum()),
        **engines(store, given.images, given.rounds),
        "provenance": {"version": __version__, "commit": provenance.commit(), "hardware": provenance.hardware()},
    }
    write_json(Path(__file__).parent.parent / "results" / NAME / "hypotheses" / "hypotheses.json", result)
    print(result)


def engines(store, n, rounds):
    """Return milliseconds an image of each kind of fit, medians of rounds on one thread."""
    torch.set_num_threads(1)
    images = torch.from_numpy(store.images(range(n)))[:, 0]
    chosen = {what: (populations.get(name, changes), *how) for what, (name, changes, *how) in TIMED.items()}
    found = {what: [] for what in chosen}
    for population, engine, centred in chosen.values():
        weigh_hypotheses(images, population, engine=engine, centred=centred)
    for _ in range(rounds):
        for what, (population, engine, centred) in chosen.items():
            began = time.perf_counter()
            weigh_hypotheses(images, population, engine=engine, centred=centred)
            found[what].append((time.perf_counter() - began) / n)
    return {"milliseconds_an_image": {what: 1e3 * float(np.median(s)) for what, s in found.items()}}


if __name__ == "__main__":
    main()
