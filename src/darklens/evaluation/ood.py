"""How unlike the familiar images an image is: the distance of its features from the nearest class (Lee et al. 2018).

Features are standardised, so that shrinkage treats arcsec and activations alike; the covariance about the class means
is shared by the classes and shrunk towards the unit matrix by as much as its own scatter asks (Ledoit & Wolf 2004).
The score is the Mahalanobis distance over the root of the number of features: familiar images have about one.
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from darklens.calibration import Familiar, FamiliarThresholds

LARGEST = 1e6  # of a score: features that overflow are as unfamiliar as can be


def fit(features: Float[np.ndarray, "n f"], labels: Int[np.ndarray, " n"], n_classes: int) -> Familiar:
    """Return what familiar features look like, from images that were trained on.

    Args:
        features: Of n > 1 images.
        labels: Their classes; a class without images gets the mean of all.
        n_classes: Number of classes.
    """
    values = features.astype(np.float64)
    centre, scale = values.mean(0), values.std(0)
    # A feature that never changed in training has no unit; where it changes later, it counts in units of its own size.
    scale = np.where(scale > 1e-6 * np.abs(centre).clip(1e-6), scale, np.abs(centre).clip(1e-3))
    z = (values - centre) / scale
    present = [np.flatnonzero(labels == i) for i in range(n_classes)]
    means = np.stack([z[rows].mean(0) if len(rows) else np.zeros(z.shape[1]) for rows in present])
    covariance = ledoit_wolf(z - means[labels])
    return Familiar(centre, scale, means, np.linalg.inv(np.linalg.cholesky(covariance)))


def ledoit_wolf(residuals: Float[np.ndarray, "n f"]) -> Float[np.ndarray, "f f"]:
    """Return the covariance of residuals about zero, shrunk towards a multiple of the unit matrix.

    Ledoit & Wolf 2004 (J. Multivariate Anal. 88, 365), eqs. 9 to 14; always positive definite.
    """
    n, f = residuals.shape
    sample = residuals.T @ residuals / n
    mean = np.trace(sample) / f
    spread = float(((sample - mean * np.eye(f)) ** 2).sum())
    # sum over images of |x x' - S|^2, without n matrices: |x|^4 - 2 x'S x + |S|^2.
    own = float(((residuals**2).sum(1) ** 2).sum() - n * (sample**2).sum()) / n**2
    weight = 1.0 if spread <= 0 else min(own / spread, 1.0)
    floor = 1e-6 * max(mean, 1e-6)  # equal images have no scatter at all
    return np.asarray((1 - weight) * sample + (weight * mean + floor) * np.eye(f))


def scores(familiar: Familiar, features: Float[np.ndarray, "n f"]) -> Float[np.ndarray, " n"]:
    """Return how unfamiliar images are; about one for images like the familiar ones."""
    with np.errstate(over="ignore", invalid="ignore"):
        z = (features.astype(np.float64) - familiar.centre) / familiar.scale
        white = (z[:, None] - familiar.means) @ familiar.whiten.T
        distance = np.sqrt((white**2).mean(2).min(1))
    return np.asarray(np.nan_to_num(distance, nan=LARGEST, posinf=LARGEST).clip(max=LARGEST))


def thresholds(held_out: Float[np.ndarray, " n"]) -> FamiliarThresholds:
    """Return the scores that 95 % and 99 % of images are below: conformal quantiles, or the largest of few images."""
    ordered = np.sort(held_out)

    def rank(level: float) -> int:
        return min(int(np.ceil((len(ordered) + 1) * level)), len(ordered)) - 1

    return FamiliarThresholds(p95=float(ordered[rank(0.95)]), p99=float(ordered[rank(0.99)]))


def summarise(found: Float[np.ndarray, " n"], limits: FamiliarThresholds) -> dict[str, Any]:
    """Return how many images lie beyond each threshold, ready for JSON."""
    return {
        "median_score": float(np.median(found)),
        "beyond_p95": float((found > limits.p95).mean()),
        "beyond_p99": float((found > limits.p99).mean()),
    }
