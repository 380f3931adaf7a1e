"""How far the numbers could be from the truth: a stratified bootstrap over images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Int

from darklens import rng
from darklens.errors import InputError
from darklens.evaluation import curves, metrics
from darklens.evaluation.metrics import ECE_BINS, Labels, Probabilities

RESAMPLES = 1000
COVERAGES = (0.5, 0.8, 0.9, 0.95)  # fractions of images that are answered, at which the risk is given
_CHUNK = 50

Scalars = dict[str, Float[np.ndarray, " r"]]


def scalars(labels: Labels, probabilities: Probabilities) -> dict[str, float]:
    """Return all scalar metrics.

    They are accuracy, nll, brier, ece, aurc, `risk_at_C` for each of `COVERAGES`, and auc, recall and
    average_precision: their means over classes, and auc_0, auc_1, ... of the classes.
    """
    ones = np.ones((1, len(labels)), dtype=np.int64)
    return {name: float(values[0]) for name, values in _weighted(labels, probabilities, ones).items()}


def bootstrap(labels: Labels, probabilities: Probabilities, *, seed: int = 0, resamples: int = RESAMPLES) -> Scalars:
    """Return all scalar metrics of `resamples` resampled test sets.

    Images are drawn with replacement within each true class, so no class is ever absent. The same seed draws the
    same images for any probabilities, which makes two systems' results paired.
    """
    chunks = [_weighted(labels, probabilities, w) for w in multiplicities(labels, seed, resamples)]
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def interval(values: Float[np.ndarray, " r"]) -> list[float]:
    """Return the 2.5th and 97.5th percentile."""
    low, high = np.percentile(values, [2.5, 97.5])
    return [float(low), float(high)]


@dataclass(frozen=True)
class Training:
    """All scalar metrics of one training, on the test images and on resampled ones."""

    point: dict[str, float]
    drawn: Scalars

    @classmethod
    def of(
        cls, labels: Labels, probabilities: Probabilities, *, seed: int = 0, resamples: int = RESAMPLES
    ) -> "Training":
        """Judge and resample; trainings of one `seed` and equal labels are paired."""
        return cls(scalars(labels, probabilities), bootstrap(labels, probabilities, seed=seed, resamples=resamples))


def over_seeds(trainings: Sequence[Training], *, seed: int = 0) -> Training:
    """Return the mean over trainings; where there are several, a resample draws trainings as well as images."""
    return Training(
        {name: float(np.mean([t.point[name] for t in trainings])) for name in trainings[0].point},
        _mean_of_drawn([t.drawn for t in trainings], seed),
    )


def difference(
    first: Sequence[Training], second: Sequence[Training], *, paired: bool, seed: int = 0
) -> dict[str, dict[str, float | list[float]]]:
    """Return first - second for every scalar metric, averaged over trainings.

    Args:
        first: One system's trainings.
        second: The other's.
        paired: Training k of both has the same seed, and the same trainings of both are drawn; else each draws its own.
        seed: Of the draw of trainings.

    Returns:
        For each metric `value`, `ci95`, and `p`: the two-sided bootstrap p-value of no difference, not below
        2 / (resamples + 1).

    Raises:
        InputError: If `paired` systems have different numbers of trainings, or one has none.
    """
    if not first or not second or (paired and len(first) != len(second)):
        raise InputError(f"{len(first)} trainings cannot be paired with {len(second)}; train both with the same seeds.")
    if paired:
        apart = [{name: a.drawn[name] - b.drawn[name] for name in a.drawn} for a, b in zip(first, second, strict=True)]
        drawn = _mean_of_drawn(apart, seed)
    else:
        a, b = _mean_of_drawn([t.drawn for t in first], seed), _mean_of_drawn([t.drawn for t in second], seed + 1)
        drawn = {name: a[name] - b[name] for name in a}
    return {
        name: _judged(float(np.mean([t.point[name] for t in first]) - np.mean([t.point[name] for t in second])), values)
        for name, values in drawn.items()
    }


def paired_difference(
    labels: Labels, first: Probabilities, second: Probabilities, *, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, dict[str, float | list[float]]]:
    """Return the `difference` of two trainings on the same resampled images."""
    return difference_over_seeds(labels, [first], [second], seed=seed, resamples=resamples)


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
        As `difference`.

    Raises:
        InputError: If the systems have different numbers of trainings, or none.
    """
    a, b = ([Training.of(labels, p, seed=seed, resamples=resamples) for p in system] for system in (first, second))
    return difference(a, b, paired=True, seed=seed)


def _mean_of_drawn(trainings: Sequence[Scalars], seed: int) -> Scalars:
    """Return in each resample the mean over as many trainings, drawn with replacement, as there are."""
    resamples = len(next(iter(trainings[0].values())))
    chosen = rng.generator(seed, "bootstrap seeds").integers(0, len(trainings), (len(trainings), resamples))
    columns = np.arange(resamples)
    return {name: np.stack([t[name] for t in trainings])[chosen, columns].mean(0) for name in trainings[0]}


def _judged(value: float, resampled: Float[np.ndarray, " r"]) -> dict[str, float | list[float]]:
    """Return a difference with its interval and two-sided p-value, not below 2 / (resamples + 1)."""
    tail = min((resampled <= 0).sum(), (resampled >= 0).sum())
    p = min(1.0, 2 * (float(tail) + 1) / (len(resampled) + 1))
    return {"value": value, "ci95": interval(resampled), "p": p}


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


def _weighted(labels: Labels, probabilities: Probabilities, weights: Int[np.ndarray, "r n"]) -> Scalars:
    n, n_classes = probabilities.shape
    right, confidence = probabilities.argmax(1) == labels, probabilities.max(1)
    selective = curves.weighted_selective(right, confidence, weights, COVERAGES)
    result = {
        "accuracy": weights @ right / n,
        "nll": weights @ metrics.log_losses(labels, probabilities) / n,
        "brier": weights @ metrics.squared_error(labels, probabilities) / n,
        "ece": _weighted_ece(confidence, right.astype(np.float64), weights),
        "aurc": selective.area,
    }
    result |= {f"risk_at_{c:g}": values for c, values in zip(COVERAGES, selective.risk_at, strict=True)}
    members = [(labels == i, probabilities[:, i]) for i in range(n_classes)]
    by_class = {
        "auc": [metrics.weighted_auc(own, score, weights) for own, score in members],
        "recall": [weights @ (own & right) / (weights @ own) for own, _ in members],
        "average_precision": [metrics.weighted_average_precision(own, score, weights) for own, score in members],
    }
    for name, values in by_class.items():
        result[name] = np.mean(values, axis=0)
        result |= {f"{name}_{i}": own for i, own in enumerate(values)}
    return result


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
