"""Stratified bootstrap over test images, and over trainings where a system has several."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Int

from darklens import rng
from darklens.errors import InputError
from darklens.evaluation import metrics
from darklens.evaluation.metrics import ECE_BINS, Labels, Probabilities

RESAMPLES = 1000
COVERAGES = (0.5, 0.8, 0.9, 0.95)  # of the risks in eval.json
_CHUNK = 50  # resamples in memory at once

Resampled = dict[str, Float[np.ndarray, " r"]]
"""Each scalar metric in r resamples."""


def scalar_metrics(labels: Labels, probabilities: Probabilities) -> dict[str, float]:
    """Return all scalar metrics by name.

    The names are accuracy, nll, brier, ece, aurc, `risk_at_C` for each of `COVERAGES`, and auc, recall and
    average_precision: their means over classes, and auc_0, auc_1, ... of the classes.
    """
    ones = np.ones((1, len(labels)), dtype=np.int64)
    return {name: float(values[0]) for name, values in _weighted_metrics(labels, probabilities, ones).items()}


def bootstrap(labels: Labels, probabilities: Probabilities, *, seed: int = 0, resamples: int = RESAMPLES) -> Resampled:
    """Return all scalar metrics of resampled test sets.

    Images are drawn with replacement within each true class, so that no class is ever absent. The same seed draws the
    same images for any probabilities, so that two systems are paired.
    """
    chunks = [_weighted_metrics(labels, probabilities, w) for w in multiplicities(labels, seed, resamples)]
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def percentile_interval(values: Float[np.ndarray, " r"]) -> list[float]:
    """Return the 2.5th and 97.5th percentile."""
    low, high = np.percentile(values, [2.5, 97.5])
    return [float(low), float(high)]


@dataclass(frozen=True)
class BootstrapMetrics:
    """All scalar metrics of one training on the test images (`values`) and on resamples of them."""

    values: dict[str, float]
    resampled: Resampled

    @classmethod
    def of(
        cls, labels: Labels, probabilities: Probabilities, *, seed: int = 0, resamples: int = RESAMPLES
    ) -> "BootstrapMetrics":
        """Measure and resample; trainings of equal `seed` and labels are paired."""
        resampled = bootstrap(labels, probabilities, seed=seed, resamples=resamples)
        return cls(scalar_metrics(labels, probabilities), resampled)


def mean_of_trainings(trainings: Sequence[BootstrapMetrics], *, seed: int = 0) -> BootstrapMetrics:
    """Return the mean over trainings; each resample draws trainings as well as images."""
    return BootstrapMetrics(
        {name: float(np.mean([t.values[name] for t in trainings])) for name in trainings[0].values},
        _resample_trainings([t.resampled for t in trainings], seed),
    )


def difference(
    first: Sequence[BootstrapMetrics], second: Sequence[BootstrapMetrics], *, paired: bool, seed: int = 0
) -> dict[str, dict[str, float | list[float]]]:
    """Return first - second for each scalar metric, averaged over trainings.

    Images and trainings are resampled, so that the interval describes a new training evaluated on new images. Few seeds
    constrain the scatter of trainings poorly: with three seeds the interval is a lower limit.

    Args:
        first: Trainings of one system.
        second: Trainings of the other.
        paired: Whether training k of both has the same seed. Then a resample draws the same trainings of both,
            otherwise independent ones.
        seed: Of the draw of trainings.

    Returns:
        For each metric `value`, `ci95` and `p`, the two-sided bootstrap p-value of no difference, which is at least
        2 / (resamples + 1).

    Raises:
        InputError: If `paired` systems have different numbers of trainings, or one has none.
    """
    if not first or not second or (paired and len(first) != len(second)):
        raise InputError(f"{len(first)} trainings cannot be paired with {len(second)}; train both with the same seeds.")
    if paired:
        pairs = zip(first, second, strict=True)
        differences = [{name: a.resampled[name] - b.resampled[name] for name in a.resampled} for a, b in pairs]
        resampled = _resample_trainings(differences, seed)
    else:
        a = _resample_trainings([t.resampled for t in first], seed)
        b = _resample_trainings([t.resampled for t in second], seed + 1)
        resampled = {name: a[name] - b[name] for name in a}
    means = [{name: np.mean([t.values[name] for t in system]) for name in resampled} for system in (first, second)]
    return {name: _test_zero(float(means[0][name] - means[1][name]), values) for name, values in resampled.items()}


def _resample_trainings(trainings: Sequence[Resampled], seed: int) -> Resampled:
    """Return the mean over trainings, as many as there are, drawn with replacement in each resample."""
    resamples = len(next(iter(trainings[0].values())))
    chosen = rng.generator(seed, "bootstrap seeds").integers(0, len(trainings), (len(trainings), resamples))
    columns = np.arange(resamples)
    return {name: np.stack([t[name] for t in trainings])[chosen, columns].mean(0) for name in trainings[0]}


def _test_zero(value: float, resampled: Float[np.ndarray, " r"]) -> dict[str, float | list[float]]:
    tail = min((resampled <= 0).sum(), (resampled >= 0).sum())
    p = min(1.0, 2 * (float(tail) + 1) / (len(resampled) + 1))
    return {"value": value, "ci95": percentile_interval(resampled), "p": p}


def multiplicities(labels: Labels, seed: int, resamples: int) -> Iterator[Int[np.ndarray, "r n"]]:
    """Yield how often each image is drawn, for blocks of resamples."""
    g = rng.generator(seed, "bootstrap")
    classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    for start in range(0, resamples, _CHUNK):
        rows = min(_CHUNK, resamples - start)
        weights = np.zeros((rows, len(labels)), dtype=np.int64)
        for members in classes:
            weights[:, members] = g.multinomial(len(members), np.full(len(members), 1 / len(members)), size=rows)
        yield weights


def _weighted_metrics(labels: Labels, probabilities: Probabilities, weights: Int[np.ndarray, "r n"]) -> Resampled:
    n, n_classes = probabilities.shape
    correct, confidence = probabilities.argmax(1) == labels, probabilities.max(1)
    risk = metrics.weighted_risk_coverage(correct, confidence, weights, COVERAGES)
    result = {
        "accuracy": weights @ correct / n,
        "nll": weights @ metrics.log_losses(labels, probabilities) / n,
        "brier": weights @ metrics.squared_errors(labels, probabilities) / n,
        "ece": _weighted_ece(confidence, correct.astype(np.float64), weights),
        "aurc": risk.area,
    }
    result |= {f"risk_at_{c:g}": values for c, values in zip(COVERAGES, risk.risk_at, strict=True)}
    one_vs_rest = [(labels == i, probabilities[:, i]) for i in range(n_classes)]
    by_class = {
        "auc": [metrics.weighted_auc(member, score, weights) for member, score in one_vs_rest],
        "recall": [weights @ (member & correct) / (weights @ member) for member, _ in one_vs_rest],
        "average_precision": [
            metrics.weighted_average_precision(member, score, weights) for member, score in one_vs_rest
        ],
    }
    for name, values in by_class.items():
        result[name] = np.mean(values, axis=0)
        result |= {f"{name}_{i}": of_class for i, of_class in enumerate(values)}
    return result


def _weighted_ece(confidence: np.ndarray, correct: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the calibration error of each resample, with bins of equal numbers of its images."""
    order = np.argsort(confidence, kind="stable")
    n, w = len(order), weights[:, order]
    # In the sorted resample, image j has the positions from ends[j] - w[j] to ends[j]; a bin is a range of positions.
    ends = np.cumsum(w, axis=1)
    sizes = np.array([len(part) for part in np.array_split(np.arange(n), ECE_BINS)])
    edges = np.concatenate([[0], np.cumsum(sizes)])
    gap = confidence[order] - correct[order]
    total = np.zeros(len(w))
    for low, high in pairwise(edges):
        overlap = (np.minimum(ends, high) - np.maximum(ends - w, low)).clip(min=0)
        total += np.abs(overlap @ gap)
    return total / n
