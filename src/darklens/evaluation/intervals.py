"""How far the numbers could be from the truth: a stratified bootstrap over images."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Int

from darklens import rng
from darklens.errors import InputError
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
    return {name: _judged(point_a[name] - point_b[name], all_a[name] - all_b[name]) for name in point_a}


def difference_over_seeds(
    labels: Labels,
    first: Sequence[Probabilities],
    second: Sequence[Probabilities],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, dict[str, float | list[float]]]:
    """Return first - second for every scalar metric, averaged over trainings with different seeds.

    Images and seeds are both resampled, the same ones for the two systems, so the interval holds for another training
    judged on other images. Few seeds show little of how trainings scatter: with three, take it as a lower limit.

    Args:
        labels: True classes (n,).
        first: Probabilities (n, c) of one system's trainings; training k of both has the same seed.
        second: As `first`, of the other system.
        seed: Of the bootstrap.
        resamples: Number of resampled experiments.

    Returns:
        As `paired_difference`.

    Raises:
        InputError: If the systems have different numbers of trainings, or none.
    """
    if len(first) != len(second) or not first:
        raise InputError(f"{len(first)} trainings cannot be paired with {len(second)}; train both with the same seeds.")
    pairs = list(zip(first, second, strict=True))
    points = [(scalars(labels, a), scalars(labels, b)) for a, b in pairs]
    drawn = [
        (bootstrap(labels, a, seed=seed, resamples=resamples), bootstrap(labels, b, seed=seed, resamples=resamples))
        for a, b in pairs
    ]
    g = rng.generator(seed, "bootstrap seeds")
    chosen = g.integers(0, len(pairs), (len(pairs), resamples))
    columns = np.arange(resamples)
    result: dict[str, dict[str, float | list[float]]] = {}
    for name in points[0][0]:
        by_training = np.stack([a[name] - b[name] for a, b in drawn])
        value = float(np.mean([a[name] - b[name] for a, b in points]))
        result[name] = _judged(value, by_training[chosen, columns].mean(0))
    return result


def _judged(value: float, resampled: Float[np.ndarray, " r"]) -> dict[str, float | list[float]]:
    """Return a difference with its interval and two-sided p-value, not below 2 / (resamples + 1)."""
    tail = min((resampled <= 0).sum(), (resampled >= 0).sum())
    p = min(1.0, 2 * (float(tail) + 1) / (len(resampled) + 1))
    return {"value": value, "ci95": interval(resampled), "p": p}


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
