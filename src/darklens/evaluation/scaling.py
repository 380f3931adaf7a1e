"""Fits of the probability calibration: temperature scaling, and isotonic regression by class."""

import numpy as np
from jaxtyping import Float, Int

from darklens.calibration import CalibrationCurve, softmax

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
MIN_TEMPERATURE_IMAGES = 30  # a temperature fitted to fewer is no better than 1
MIN_CURVE_IMAGES = 300  # of each class; curves fitted to fewer are dominated by noise
_DIGITS = 6


def fit_temperature(logits: Float[np.ndarray, "n c"], labels: Int[np.ndarray, " n"]) -> float:
    """Return the temperature, between 0.05 and 20, of the smallest log loss (Guo et al. 2017, arXiv:1706.04599).

    The loss is convex in 1 / temperature, so its slope is bisected. Labels are smoothed as in Platt (1999): 1 / (n + 1)
    of each is shared among all classes, otherwise a perfectly classified sample would give the lowest temperature.

    Args:
        logits: Of n >= 1 held-out images.
        labels: Their true classes.
    """
    n, c = logits.shape
    z = logits.astype(np.float64)
    target = np.full((n, c), 1 / (n + 1) / c)
    target[np.arange(n), labels] += n / (n + 1)

    def slope(inverse: float) -> float:
        return float(((softmax(z * inverse) - target) * z).sum())

    low, high = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE
    for _ in range(60):
        centre = (low * high) ** 0.5
        if slope(centre) > 0:
            high = centre
        else:
            low = centre
    return float(1 / (low * high) ** 0.5)


def fit_curves(probabilities: Float[np.ndarray, "n c"], labels: Int[np.ndarray, " n"]) -> tuple[CalibrationCurve, ...]:
    """Return the isotonic regression of each class's frequency on its predicted probability.

    It corrects a network whose confidence errs by class, which a temperature cannot (Zadrozny & Elkan 2002, KDD, 694).
    No curve reaches 0 or 1: it stays 1 / (n + 2) away, because n images cannot exclude a class.

    Args:
        probabilities: Of n held-out images.
        labels: Their true classes.
    """
    from scipy.optimize import isotonic_regression

    n, curves = len(labels), []
    for k, predicted in enumerate(probabilities.T):
        distinct, index, count = np.unique(predicted.round(_DIGITS), return_inverse=True, return_counts=True)
        frequency = np.bincount(index, weights=labels == k) / count
        level = isotonic_regression(frequency, weights=count).x.clip(1 / (n + 2), 1 - 1 / (n + 2))
        # The ends of the steps define the curve.
        step = np.diff(level) > 0
        ends = np.flatnonzero(np.concatenate([[True], step]) | np.concatenate([step, [True]]))
        curves.append(
            CalibrationCurve(
                predicted=tuple(distinct[ends].tolist()), calibrated=tuple(level[ends].round(_DIGITS + 2).tolist())
            )
        )
    return tuple(curves)
