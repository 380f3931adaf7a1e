"""Label leaks: can simple image statistics, which do not measure substructure, predict the class?

Each statistic alone is a classifier by its value ("larger in sphere") and by its distance from the median ("more
extreme in sphere"). All statistics together form a linear discriminant on values and their squares, scored by
cross-validation. Values are replaced by the normal scores of their ranks, so that units and outliers do not matter.

Significance comes from permutations of the labels: the largest of all standardised statistics is compared with its
distribution under permutation (Westfall & Young 1993, single step). This keeps the probability of any warning on a
clean store at `ALPHA`, whatever the distributions and correlations of the statistics. Extremes, and statistics through
which simulators rarely leak, are first divided by `PENALTY`, so that they cost the common ones little power.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from darklens import rng
from darklens.errors import InputError
from darklens.evaluation.intervals import logit_interval
from darklens.evaluation.metrics import binary_auc
from darklens.evaluation.paired_tests import auc_influence

ALPHA = 0.01
PERMUTATIONS = 999
PENALTY = 1.15
MIN_IMAGES = 10  # of a class
_FOLDS = 5
_RIDGE = 1.0  # of the discriminant; the weight of one image

Values = Float[np.ndarray, "n s"]
Labels = Int[np.ndarray, " n"]


@dataclass(frozen=True)
class Leak:
    """How well a statistic separates one class from the others.

    Attributes:
        statistic: Its name, or "all together".
        by: "value", "extremes" or "all".
        label: The class.
        sign: 1 if its values are larger (more extreme) in this class, -1 if smaller.
        auc: One-vs-rest, in the direction of `sign`.
        ci95: Of the AUC (DeLong et al. 1988).
        p: Probability of a leak as strong in any classifier under random labels.
    """

    statistic: str
    by: str
    label: int
    sign: int
    auc: float
    ci95: tuple[float, float]
    p: float

    @property
    def is_significant(self) -> bool:
        """Whether p is at most `ALPHA`."""
        return self.p <= ALPHA

    def as_dict(self, classes: list[str]) -> dict[str, Any]:
        """Return the entry of the report."""
        return {
            "statistic": self.statistic,
            "by": self.by,
            "class": classes[self.label],
            "direction": {1: "larger", -1: "smaller"}[self.sign],
            "auc": {"value": self.auc, "ci95": list(self.ci95)},
            "p": self.p,
            "found": self.is_significant,
        }


def leaks(
    values: Values,
    names: list[str],
    labels: Labels,
    *,
    usual: Collection[str] | None = None,
    seed: int = 0,
    permutations: int = PERMUTATIONS,
) -> list[Leak]:
    """Test each statistic, by value and by extremes, and all together, for each class; the strongest leak first.

    Args:
        values: Statistics of each image, finite.
        names: Of the columns.
        labels: Classes, 0 to c - 1.
        usual: Names of the statistics without `PENALTY`; None for all.
        seed: Of the permutations.
        permutations: Their number; p is at least 1 / (permutations + 1).

    Raises:
        InputError: If fewer than two classes have `MIN_IMAGES` images each.
    """
    counts = np.bincount(labels)
    if (counts >= MIN_IMAGES).sum() < 2:
        raise InputError(
            f"A search for leaks needs at least two classes of at least {MIN_IMAGES} images each; the store has "
            f"{', '.join(str(n) for n in counts)} images in its classes."
        )
    varying = [i for i in range(values.shape[1]) if np.ptp(values[:, i]) > 0]
    classes = np.flatnonzero(counts >= MIN_IMAGES)
    if not varying:
        return []
    scores = normal_scores(values[:, varying])
    features = _standardised(np.concatenate([scores, scores**2], axis=1))
    folds = [np.arange(start, len(labels), _FOLDS) for start in range(_FOLDS)]
    discriminant = _Discriminant(features, folds)
    observed, combined = discriminant.strengths(labels, classes)
    shuffled = rng.generator(seed, "permuted labels")
    null = [discriminant.strengths(shuffled.permutation(labels), classes)[0] for _ in range(permutations)]
    strengths = np.concatenate([observed[None], np.stack(null)])
    scatter = strengths.std(0)
    standard = (strengths - strengths.mean(0)) / np.where(scatter > 0, scatter, 1.0)
    standard[:, :-1] = np.abs(standard[:, :-1])  # two-sided, but for the last row, the discriminant
    penalised = [usual is not None and names[i] not in usual for i in varying] + [True] * len(varying) + [False]
    standard /= np.where(penalised, PENALTY, 1.0)[:, None]
    largest = standard.reshape(len(standard), -1).max(1)
    exceed = (largest[1:, None, None] >= standard[0][None]).sum(0)
    p = (1 + exceed) / (permutations + 1)
    results = []
    for k, label in enumerate(classes):
        member = labels == label
        for j, (column, by) in enumerate([(i, by) for by in ("value", "extremes") for i in varying]):
            sign = 1 if observed[j, k] >= 0 else -1
            auc, ci95 = auc_with_interval(member, sign * features[:, j])
            results.append(Leak(names[column], by, int(label), sign, auc, ci95, float(p[j, k])))
        auc, ci95 = auc_with_interval(member, combined[:, k])
        results.append(Leak("all together", "all", int(label), 1, auc, ci95, float(p[-1, k])))
    return sorted(results, key=lambda leak: (leak.p, -leak.auc))


def detectable_auc(labels: Labels, n_statistics: int) -> float:
    """Return the AUC that a leak of one class must exceed for `leaks` to find it in half of all stores of this size.

    It follows from the standard error of an AUC without a leak (Hanley & McNeil 1982) and a Bonferroni threshold, close
    to that of the permutations.

    Args:
        labels: Classes.
        n_statistics: Number of statistics.
    """
    counts = np.bincount(labels)
    counts = counts[counts >= MIN_IMAGES]
    threshold = NormalDist().inv_cdf(1 - ALPHA / (2 * 2 * n_statistics * len(counts)))
    smallest, n = int(counts.min()), len(labels)
    return min(1.0, 0.5 + threshold * math.sqrt((n + 1) / (12 * smallest * (n - smallest))))


def normal_scores(values: Values) -> Values:
    """Return the quantiles of the standard normal distribution at the ranks of each column; ties share a rank."""
    from scipy.special import ndtri
    from scipy.stats import rankdata

    return np.asarray(ndtri(rankdata(values, axis=0) / (len(values) + 1)))


def auc_with_interval(member: np.ndarray, score: np.ndarray) -> tuple[float, tuple[float, float]]:
    """Return the AUC of `score` for the images of a class, and its 95 % interval (DeLong, normal in the logit)."""
    auc, influence = binary_auc(member, score), auc_influence(member, score)
    low, high = logit_interval(auc, float(np.sqrt((influence**2).sum())))
    return auc, (low, high)


class _Discriminant:
    """Strengths of all classifiers for any labels; what does not depend on the labels is computed once.

    Args:
        features: Standardised, (n, f).
        folds: The rows of each fold; its scores come from a fit to the other folds.
    """

    def __init__(self, features: np.ndarray, folds: list[np.ndarray]) -> None:
        self._parts = [features[rows] for rows in folds]
        self._rows = folds
        squares = [part.T @ part for part in self._parts]
        ridge = _RIDGE * np.eye(features.shape[1])
        self._inverse = [np.linalg.inv(sum(squares) - square + ridge) for square in squares]

    def strengths(self, labels: Labels, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return sqrt(n) times the correlation of each classifier's score with membership of each class.

        Returns:
            Strengths (f + 1, classes), the last row of the discriminant, and its scores (n, classes).
        """
        n = len(labels)
        member = (labels[:, None] == classes).astype(np.float64)
        share = member.mean(0)
        member -= share
        products = [part.T @ member[rows] for part, rows in zip(self._parts, self._rows, strict=True)]
        total = np.sum(products, axis=0)
        single = total / np.sqrt(n * share * (1 - share))
        scores = np.empty_like(member)
        for part, rows, product, inverse in zip(self._parts, self._rows, products, self._inverse, strict=True):
            scores[rows] = part @ (inverse @ (total - product))
        centred = scores - scores.mean(0)
        scatter = np.sqrt((centred**2).mean(0) * share * (1 - share) * n)
        combined = (centred * member).sum(0) / np.where(scatter > 0, scatter, 1.0)
        return np.concatenate([single, combined[None]]), scores


def _standardised(features: np.ndarray) -> np.ndarray:
    centred = features - features.mean(0)
    spread = centred.std(0)
    return np.asarray(centred / np.where(spread > 0, spread, 1.0))
