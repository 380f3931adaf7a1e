"""Which sampling and PSF do the real Common Test I images prefer?

`PYTHONPATH=tests/realdata python benchmarks/fit_real_images.py`; needs ../shared/realdata. Fits four exact images by
least squares, starting from the parameters in tests/realdata/test_common_test_i.py, for each number of sub-pixels and
PSF width, and prints chi2.
"""

import math
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import least_squares
from test_common_test_i import FITTED, SKY, counts_of, truth_of

from darklens.provenance import commit, hardware
from darklens.simulate import populations
from darklens.simulate.render import render

ROOT = Path(__file__).resolve().parent.parent
STEP = 1e-5
CASES = [(1, 1.68), (1, 1.71), (1, 1.74), (1, 1.77), (1, 1.80), (2, 1.71), (2, 1.74), (4, 1.71), (4, 1.74)]


def fit(population, counts, start):
    """Return chi2 of the best fit near `start`, with derivatives from central differences."""

    def residuals(values):
        model = render(population, truth_of(values), dtype=torch.float64)[0].numpy() + SKY
        return ((counts - model) / np.sqrt(model)).ravel()

    def jacobian(values):
        steps = STEP * np.eye(len(values))
        return np.stack([(residuals(values + s) - residuals(values - s)) / (2 * STEP) for s in steps], axis=1)

    return 2 * least_squares(residuals, start, jacobian, x_scale="jac", max_nfev=8).cost


def main():
    print(f"{hardware()}, commit {commit()}\n")
    print("| sub-pixels | PSF sigma (pixels) |" + "".join(f" {name} |" for name in FITTED) + " sum |")
    print("|" + " --- |" * (3 + len(FITTED)))
    for supersample, sigma in CASES:
        changes = [f"field.supersample={supersample}", f"psf.sigma={sigma * 0.05}"]
        population = populations.get("common-test-i", changes)
        found = [
            fit(population, counts_of(ROOT.parent / "shared/realdata/common-test-i" / f"{name}.npy"), start)
            for name, start in FITTED.items()
        ]
        cells = "".join(f" {chi2:.1f} |" for chi2 in [*found, math.fsum(found)])
        print(f"| {supersample} x {supersample} | {sigma:.2f} |{cells}", flush=True)


if __name__ == "__main__":
    main()
