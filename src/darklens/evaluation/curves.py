"""Curves of a classifier against its threshold, and what they enclose."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from darklens.evaluation import metrics
from darklens.evaluation.metrics import Labels, Probabilities

Curve = tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]
POINTS = 200


def roc(positive: np.ndarray, scores: np.ndarray) -> Curve:
    """Return false- and true-positive rates at every distinct threshold, from (0, 0) to (1, 1)."""
    up, down = _accepted(positive, scores)
    return np.concatenate([[0.0], down / down[-1]]), np.concatenate([[0.0], up / up[-1]])


def precision_recall(positive: np.ndarray, scores: np.ndarray) -> Curve:
    """Return recall and precision at every distinct threshold, from the highest down, after the point (0, 1)."""
    up, down = _accepted(positive, scores)
    return np.concatenate([[0.0], up / up[-1]]), np.concatenate([[1.0], up / (up + down)])


def risk_coverage(right: Bool[np.ndarray, " n"], confidence: Float[np.ndarray, " n"]) -> Curve:
    """Return the fraction of images that are answered, and of wrong answers among them, at every distinct threshold.

    Images of one confidence are answered together, so the curve does not depend on their order.
    """
    up, down = _accepted(right, confidence)
    return (up + down) / len(right), down / (up + down)


class Selective(NamedTuple):
    """What answering only the confident images is worth, for r sets of weights."""

    area: Float[np.ndarray, " r"]
    risk_at: Float[np.ndarray, "coverages r"]


def weighted_selective(
    right: Bool[np.ndarray, " n"],
    confidence: Float[np.ndarray, " n"],
    weights: np.ndarray,
    coverages: Sequence[float],
) -> Selective:
    """Return the area under the risk-coverage curve and points on it, for many sets of weights.

    The area is the mean over images of the risk when just those as confident or more are answered (Geifman and
    El-Yaniv 2017, arXiv:1705.08500). The risk at a coverage is that of the fewest images that reach it.

    Args:
        right: Whether each image (n,) is classified correctly.
        confidence: Probability of the predicted class (n,).
        weights: Multiplicities (r, n).
        coverages: Fractions of images that are answered.
    """
    order = np.argsort(-confidence, kind="stable")
    last = np.flatnonzero(np.diff(confidence[order], append=-1.0))
    w = weights[:, order].astype(np.float64)
    answered = np.cumsum(w, axis=1)[:, last]
    wrong = np.cumsum(w * ~right[order], axis=1)[:, last]
    risk = wrong / np.maximum(answered, 1)
    share = answered / answered[:, -1:]
    rows = np.arange(len(w))
    return Selective(
        area=(np.diff(share, axis=1, prepend=0) * risk).sum(1),
        risk_at=np.array([risk[rows, (share >= level - 1e-12).argmax(1)] for level in coverages]),
    )


def thinned(curve: Curve, points: int = POINTS) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Return at most `points` points of a curve, its ends among them, evenly spaced along its length."""
    x, y = curve
    if len(x) <= points:
        return curve
    along = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
    kept = np.searchsorted(along, np.linspace(0, along[-1], points))
    kept = np.unique(np.concatenate([[0], kept[1:-1], [len(x) - 1]]))
    return x[kept], y[kept]


def of_evaluation(labels: Labels, probabilities: Probabilities, classes: Sequence[str]) -> dict[str, Any]:
    """Return all curves, thinned and ready for JSON: lists by name, and by class where there is one for each."""
    right, confidence = probabilities.argmax(1) == labels, probabilities.max(1)
    scores = [(name, labels == i, probabilities[:, i]) for i, name in enumerate(classes)]
    bins = metrics.reliability(labels, probabilities)
    return {
        "schema": 1,
        "roc": {
            name: _listed(("false_positive_rate", "true_positive_rate"), roc(positive, score))
            for name, positive, score in scores
        },
        "precision_recall": {
            name: _listed(("recall", "precision"), precision_recall(positive, score))
            for name, positive, score in scores
        },
        "risk_coverage": _listed(("coverage", "risk"), risk_coverage(right, confidence)),
        "reliability": dict(zip(("confidence", "accuracy", "n"), bins.T.tolist(), strict=True)),
    }


def _listed(names: tuple[str, str], curve: Curve) -> dict[str, list[float]]:
    return dict(zip(names, (values.tolist() for values in thinned(curve)), strict=True))


def _accepted(positive: np.ndarray, scores: np.ndarray) -> Curve:
    """Return how many positives and negatives score at least as high as each distinct score, from the highest down."""
    values, group = np.unique(-scores, return_inverse=True)
    up = np.bincount(group, weights=positive, minlength=len(values))
    down = np.bincount(group, weights=~positive, minlength=len(values))
    return np.cumsum(up), np.cumsum(down)
