"""Tests of two systems on the same images: DeLong's of their AUCs, McNemar's of their accuracies."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from darklens.evaluation.intervals import Z95
from darklens.evaluation.metrics import Labels, Probabilities, class_auc

MIN_DISCORDANT = 25  # images for the chi2 form of McNemar's test; the exact test for fewer


def auc_influence(positive: Bool[np.ndarray, " n"], scores: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Return each image's contribution to the deviation of the AUC from its expectation.

    The sum over images of the product of two such arrays is the covariance of the two AUCs (DeLong, DeLong &
    Clarke-Pearson 1988, Biometrics 44, 837), here from ranks in O(n log n) (Sun & Xu 2014, IEEE Signal Processing
    Letters 21, 1389).

    Args:
        positive: Boolean; with fewer than two positives or negatives their contributions are NaN.
        scores: Any real numbers.
    """
    above, below = scores[positive], scores[~positive]
    negatives_below = _fraction_below(below, above)
    positives_above = 1 - _fraction_below(above, below)
    influence = np.empty(len(scores))
    for rows, part in ((positive, negatives_below), (~positive, positives_above)):
        n = len(part)
        influence[rows] = (part - part.mean()) / math.sqrt(n * (n - 1)) if n > 1 else np.nan
    return influence


def delong_test(
    labels: Labels, first: Sequence[Probabilities], second: Sequence[Probabilities]
) -> list[dict[str, Any]]:
    """Test first - second in the one-vs-rest AUC of each class, and last in their mean over classes.

    The variance of the mean follows from the same contributions, because an image is a positive of its class and a
    negative of the others. A system of several trainings has their mean AUC; the test describes these trainings on
    new images, without the scatter of trainings.

    Args:
        labels: True classes (n,).
        first: Probabilities (n, c) of one system's trainings.
        second: Those of the other.

    Returns:
        `value`, `se`, `ci95` and two-sided `p` of each difference; all but `value` are None where a class has a
        single image.
    """
    (auc_a, influence_a), (auc_b, influence_b) = (_mean_of_trainings(labels, system) for system in (first, second))
    values, parts = auc_a - auc_b, influence_a - influence_b
    values, parts = np.append(values, values.mean()), np.vstack([parts, parts.mean(0)])
    return [_normal_test(float(value), float((part**2).sum())) for value, part in zip(values, parts, strict=True)]


def mcnemar_test(labels: Labels, first: Probabilities, second: Probabilities) -> dict[str, Any]:
    """Test the difference in accuracy on the images that exactly one of two classifiers gets right.

    Source: McNemar 1947, Psychometrika 12, 153, with the continuity correction of Edwards 1948, Psychometrika 13, 185.

    Returns:
        `first_only` and `second_only`, the images that only one classifies correctly, the two-sided `p`, and `method`:
        "exact" (binomial) for fewer than 25 such images, else "chi2".
    """
    from scipy.stats import binomtest, chi2

    a, b = first.argmax(1) == labels, second.argmax(1) == labels
    first_only, second_only = int((a & ~b).sum()), int((b & ~a).sum())
    n = first_only + second_only
    if n < MIN_DISCORDANT:
        p = float(binomtest(first_only, n).pvalue) if n else 1.0
    else:
        p = float(chi2.sf(max(abs(first_only - second_only) - 1, 0) ** 2 / n, 1))
    method = "exact" if n < MIN_DISCORDANT else "chi2"
    return {"first_only": first_only, "second_only": second_only, "p": p, "method": method}


def _mean_of_trainings(
    labels: Labels, trainings: Sequence[Probabilities]
) -> tuple[Float[np.ndarray, " c"], Float[np.ndarray, "c n"]]:
    auc = np.mean([class_auc(labels, p) for p in trainings], axis=0)
    return auc, np.mean([[auc_influence(labels == i, p[:, i]) for i in range(p.shape[1])] for p in trainings], axis=0)


def _normal_test(value: float, variance: float) -> dict[str, Any]:
    if math.isnan(variance):
        return {"value": value, "se": None, "ci95": None, "p": None}
    se = math.sqrt(variance)
    if se < 1e-12:
        return {"value": value, "se": 0.0, "ci95": [value, value], "p": 1.0 if abs(value) < 1e-12 else 0.0}
    p = math.erfc(abs(value) / se / math.sqrt(2))
    return {"value": value, "se": se, "ci95": [value - Z95 * se, value + Z95 * se], "p": p}


def _fraction_below(reference: Float[np.ndarray, " m"], scores: Float[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
    """Return the fraction of `reference` below each score, ties counting half."""
    ordered = np.sort(reference)
    count = np.searchsorted(ordered, scores, side="left") + np.searchsorted(ordered, scores, side="right")
    return np.asarray(count / (2 * len(ordered)))
