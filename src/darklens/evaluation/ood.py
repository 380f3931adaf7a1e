"""Out-of-distribution score: the Mahalanobis distance of an image's features to the nearest class (Lee et al. 2018).

Features are standardised, so that shrinkage treats all units alike. The classes share one covariance about their means,
shrunk towards a multiple of the identity (Ledoit & Wolf 2004). The score is the distance divided by the square root of
the number of features: about 1 for images of the training distribution.
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from darklens.calibration import MahalanobisStats, OODThresholds


def fit(features: Float[np.ndarray, "n f"], labels: Int[np.ndarray, " n"], n_classes: int) -> MahalanobisStats:
    """Return the class means and the covariance of the features of training images.

    Args:
        features: Of n > 1 images.
        labels: Their classes; a class without images gets the mean of all.
        n_classes: Number of classes.
    """
    values = features.astype(np.float64)
    centre, scale = values.mean(0), values.std(0)
    # A feature that is constant in training has no scale; its absolute value serves instead.
    scale = np.where(scale > 1e-6 * np.abs(centre).clip(1e-6), scale, np.abs(centre).clip(1e-3))
    z = (values - centre) / scale
    members = [np.flatnonzero(labels == i) for i in range(n_classes)]
    means = np.stack([z[rows].mean(0) if len(rows) else np.zeros(z.shape[1]) for rows in members])
    covariance = ledoit_wolf(z - means[labels])
    return MahalanobisStats(centre, scale, means, np.linalg.inv(np.linalg.cholesky(covariance)))


def ledoit_wolf(residuals: Float[np.ndarray, "n f"]) -> Float[np.ndarray, "f f"]:
    """Return the covariance of residuals about zero, shrunk towards a multiple of the identity.

    Ledoit & Wolf 2004 (J. Multivariate Anal. 88, 365), eqs. 9 to 14; always positive definite.
    """
    n, f = residuals.shape
    sample = residuals.T @ residuals / n
    mean = np.trace(sample) / f
    dispersion = float(((sample - mean * np.eye(f)) ** 2).sum())
    # sum over images of |x x' - S|^2, without n matrices: |x|^4 - 2 x'S x + |S|^2.
    error = float(((residuals**2).sum(1) ** 2).sum() - n * (sample**2).sum()) / n**2
    weight = 1.0 if dispersion <= 0 else min(error / dispersion, 1.0)
    floor = 1e-6 * max(mean, 1e-6)  # equal images have no scatter at all
    return np.asarray((1 - weight) * sample + (weight * mean + floor) * np.eye(f))


def thresholds(held_out: Float[np.ndarray, " n"]) -> OODThresholds:
    """Return the conformal 95 % and 99 % quantiles of the scores of held-out images, at most their largest."""
    ordered = np.sort(held_out)

    def rank(level: float) -> int:
        return min(int(np.ceil((len(ordered) + 1) * level)), len(ordered)) - 1

    return OODThresholds(p95=float(ordered[rank(0.95)]), p99=float(ordered[rank(0.99)]))


def summarise(of_images: Float[np.ndarray, " n"], limits: OODThresholds) -> dict[str, Any]:
    """Return the median score and the fraction of images above each threshold, ready for JSON."""
    return {
        "median_score": float(np.median(of_images)),
        "beyond_p95": float((of_images > limits.p95).mean()),
        "beyond_p99": float((of_images > limits.p99).mean()),
    }
