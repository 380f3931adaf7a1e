"""What the fits of lens_residual say of each class, what the compiled backend is worth, and what nuisances cost.

    python benchmarks/hypotheses.py stores/common-test-i/test

Reads a store of common-test-i that lens_residual has fitted (it fits what is missing) and times both backends, and fits
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
from darklens.fit.cache import cached_fits
from darklens.fit.features import SUMMARY_NAMES
from darklens.fit.hypotheses import fit_hypotheses

NAME, PERCENTILES = "common-test-i", [0, 1, 5, 50, 95, 99, 100]
# Population that is fitted, its overrides, backend, and whether lenses are held at the middle.
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
    parser.add_argument("--images", type=int, default=48, help="on which the backends are timed")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    store = Store(given.store)
    fits = cached_fits(store, populations.get(NAME), backend="compiled", centred=False, workers=usable_cores())
    value = {name: fits.column(name) for name in SUMMARY_NAMES}
    line, points = value["delta_chi2_line"], value["delta_chi2_points_3"]
    given_line = value["delta_chi2_point_given_line"]
    best = (value["deviance"] - np.maximum(line, points)) / value["n_pixels_fitted"]
    labels = store.labels
    # Not the largest gain of all, which a single smooth fit in another local minimum decides.
    silent = np.logical_and(*(gain <= np.percentile(gain[labels == 0], 99.9) for gain in (line, points)))
    result = {
        "schema": 1,
        "images": len(store),
        "percentiles": PERCENTILES,
        "beside_line": {
            name: [float(v) for v in np.percentile(given_line[labels == i], PERCENTILES)]
            for i, name in enumerate(store.classes)
        },
        "largest_deviance_per_block_of_the_best_hypothesis": float(best.max()),
        "sphere_with_no_gain_above_those_of_999_of_1000_no": int((silent & (labels == 1)).sum()),
        "vort_with_more_than_100_left_beside_the_line": int((given_line[labels == 2] > 100).sum()),
        **backends(store, given.images, given.rounds),
        "provenance": {"version": __version__, "commit": provenance.commit(), "hardware": provenance.hardware()},
    }
    write_json(Path(__file__).parent.parent / "results" / NAME / "hypotheses" / "hypotheses.json", result)
    print(result)


def backends(store, n, rounds):
    """Return milliseconds an image of each kind of fit, medians of rounds on one thread."""
    torch.set_num_threads(1)
    images = torch.from_numpy(store.images(range(n)))[:, 0]
    chosen = {what: (populations.get(name, changes), *how) for what, (name, changes, *how) in TIMED.items()}
    found = {what: [] for what in chosen}
    for population, backend, centred in chosen.values():
        fit_hypotheses(images, population, backend=backend, centred=centred)
    for _ in range(rounds):
        for what, (population, backend, centred) in chosen.items():
            began = time.perf_counter()
            fit_hypotheses(images, population, backend=backend, centred=centred)
            found[what].append((time.perf_counter() - began) / n)
    return {"milliseconds_an_image": {what: 1e3 * float(np.median(s)) for what, s in found.items()}}


if __name__ == "__main__":
    main()
