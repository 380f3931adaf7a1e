"""DeLong's test: whether one-vs-rest AUCs of two systems on the same images differ by more than chance.

DeLong, DeLong and Clarke-Pearson 1988, Biometrics 44, 837, by ranks as in Sun and Xu 2014, IEEE Signal Processing
Letters 21, 1389.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from darklens.evaluation.bounds import Z95
from darklens.evaluation.metrics import Labels, Probabilities, class_auc


def influence(positive: Bool[np.ndarray, " n"], scores: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Return what each image adds to the deviation of the AUC from its expectation.

    The sum over images of the product of two such arrays is DeLong's covariance of the two AUCs. It takes O(n log n).

    Args:
        positive: At least two images of each kind, or the result is NaN.
        scores: Any real numbers.
    """
    above, below = scores[positive], scores[~positive]
    # A positive's rank among all minus its rank among positives counts the negatives below it, ties by half.
    won = _share_below(below, above)
    lost = 1 - _share_below(above, below)
    found = np.empty(len(scores))
    for rows, part in ((positive, won), (~positive, lost)):
        n = len(part)
        found[rows] = (part - part.mean()) / math.sqrt(n * (n - 1)) if n > 1 else np.nan
    return found


def difference(labels: Labels, first: Sequence[Probabilities], second: Sequence[Probabilities]) -> list[dict[str, Any]]:
    """Test first - second in the AUC of each class, and last in their mean over classes.

    The variance of the mean follows from the same contributions, as each image is a positive of its own class and a
    negative of the others.

    Several trainings of a system count by their mean AUC. The test is of these trainings on other images: how
    trainings scatter is not in it.

    Args:
        labels: True classes (n,).
        first: Probabilities (n, c) of one system's trainings.
        second: Those of the other.

    Returns:
        `value`, `se`, `ci95` and two-sided `p` of each difference; all but `value` are None where a class has a
        single image, which says nothing of how images scatter.
    """
    (auc_a, influence_a), (auc_b, influence_b) = (_mean_over_trainings(labels, system) for system in (first, second))
    values, parts = auc_a - auc_b, influence_a - influence_b
    values, parts = np.append(values, values.mean()), np.vstack([parts, parts.mean(0)])
    return [_judged(float(value), float((part**2).sum())) for value, part in zip(values, parts, strict=True)]


def _mean_over_trainings(
    labels: Labels, trainings: Sequence[Probabilities]
) -> tuple[Float[np.ndarray, " c"], Float[np.ndarray, "c n"]]:
    auc = np.mean([class_auc(labels, p) for p in trainings], axis=0)
    return auc, np.mean([[influence(labels == i, p[:, i]) for i in range(p.shape[1])] for p in trainings], axis=0)


def _judged(value: float, variance: float) -> dict[str, Any]:
    if math.isnan(variance):
        return {"value": value, "se": None, "ci95": None, "p": None}
    se = math.sqrt(variance)
    if se < 1e-12:
        return {"value": value, "se": 0.0, "ci95": [value, value], "p": 1.0 if abs(value) < 1e-12 else 0.0}
    p = math.erfc(abs(value) / se / math.sqrt(2))
    return {"value": value, "se": se, "ci95": [value - Z95 * se, value + Z95 * se], "p": p}


def _share_below(reference: Float[np.ndarray, " m"], scores: Float[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
    """Return the fraction of `reference` below each score, ties counting half."""
    ordered = np.sort(reference)
    count = np.searchsorted(ordered, scores, side="left") + np.searchsorted(ordered, scores, side="right")
    return np.asarray(count / (2 * len(ordered)))
