"""How far the numbers could be from the truth: a stratified bootstrap over images."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Int

from darklens import rng
from darklens.evaluation import metrics
from darklens.evaluation.metrics import ECE_BINS, SMALLEST_PROBABILITY, Labels, Probabilities

RESAMPLES = 1000
_CHUNK = 50

Scalars = dict[str, Float[np.ndarray, " r"]]


def scalars(labels: Labels, probabilities: Probabilities) -> dict[str, float]:
    """Return all scalar metrics: accuracy, nll, ece, auc (macro) and auc_0, auc_1, ... of the classes."""
    ones = np.ones((1, len(labels)), dtype=np.int64)
    return {name: float(values[0]) for name, values in _weighted(labels, probabilities, ones).items()}


def bootstrap(labels: Labels, probabilities: Probabilities, *, seed: int = 0, resamples: int = RESAMPLES) -> Scalars:
    """Return all scalar metrics of `resamples` resampled test sets.

    Images are drawn with replacement within each true class, so no class is ever absent. The same seed draws the
    same images for any probabilities, which makes two systems' results paired.
    """
    chunks = [_weighted(labels, probabilities, w) for w in _multiplicities(labels, seed, resamples)]
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def interval(values: Float[np.ndarray, " r"]) -> list[float]:
    """Return the 2.5th and 97.5th percentile."""
    low, high = np.percentile(values, [2.5, 97.5])
    return [float(low), float(high)]


def paired_difference(
    labels: Labels, first: Probabilities, second: Probabilities, *, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, dict[str, float | list[float]]]:
    """Return first - second for every scalar metric, on the same resampled images.

    Returns:
        For each metric `value`, `ci95`, and `p`: the two-sided bootstrap p-value of no difference, not below
        2 / (resamples + 1).
    """
    point_a, point_b = scalars(labels, first), scalars(labels, second)
    all_a = bootstrap(labels, first, seed=seed, resamples=resamples)
    all_b = bootstrap(labels, second, seed=seed, resamples=resamples)
    result: dict[str, dict[str, float | list[float]]] = {}
    for name in point_a:
        difference = all_a[name] - all_b[name]
        tail = min((difference <= 0).sum(), (difference >= 0).sum())
        p = min(1.0, 2 * (float(tail) + 1) / (resamples + 1))
        result[name] = {"value": point_a[name] - point_b[name], "ci95": interval(difference), "p": p}
    return result


def _multiplicities(labels: Labels, seed: int, resamples: int) -> Iterator[Int[np.ndarray, "r n"]]:
    """Yield how often each image is drawn, for blocks of resamples."""
    g = rng.generator(seed, "bootstrap")
    classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    for start in range(0, resamples, _CHUNK):
        rows = min(_CHUNK, resamples - start)
        weights = np.zeros((rows, len(labels)), dtype=np.int64)
        for members in classes:
            weights[:, members] = g.multinomial(len(members), np.full(len(members), 1 / len(members)), size=rows)
        yield weights


def _weighted(labels: Labels, probabilities: Probabilities, weights: Int[np.ndarray, "r n"]) -> Scalars:
    n, n_classes = probabilities.shape
    true = probabilities[np.arange(n), labels].clip(SMALLEST_PROBABILITY)
    right = (probabilities.argmax(1) == labels).astype(np.float64)
    aucs = np.stack([metrics.weighted_auc(labels == i, probabilities[:, i], weights) for i in range(n_classes)], axis=1)
    result = {
        "accuracy": weights @ right / n,
        "nll": weights @ -np.log(true) / n,
        "ece": _weighted_ece(probabilities.max(1), right, weights),
        "auc": aucs.mean(1),
    }
    return result | {f"auc_{i}": aucs[:, i] for i in range(n_classes)}


def _weighted_ece(confidence: np.ndarray, right: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the calibration error of each resample, in the bins that its own images would fall into."""
    order = np.argsort(confidence, kind="stable")
    n, w = len(order), weights[:, order]
    # Image j of the sorted list fills the places from ends[j] - w[j] to ends[j]; bins are blocks of places.
    ends = np.cumsum(w, axis=1)
    sizes = np.array([len(part) for part in np.array_split(np.arange(n), ECE_BINS)])
    edges = np.concatenate([[0], np.cumsum(sizes)])
    gap = confidence[order] - right[order]
    total = np.zeros(len(w))
    for low, high in pairwise(edges):
        share = (np.minimum(ends, high) - np.maximum(ends - w, low)).clip(min=0)
        total += np.abs(share @ gap)
    return total / n
