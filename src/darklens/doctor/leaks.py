"""Trivial classifiers on numbers that know nothing of substructure: can a class be told by them?

Each statistic alone is a classifier by its value ("larger in sphere") and by its distance from the median ("more
extreme in sphere"); all together are one, a linear discriminant on values and their squares whose scores are for images
that it was not fitted to. Values are replaced by normal scores of their ranks, so neither units nor outliers matter.

How strong chance alone would be, in all of them at once, is found by permuting labels: the largest of all standardised
statistics is compared with its own permutations (Westfall & Young 1993, single step). That holds the probability of any
warning on a clean store at `ALPHA` whatever the statistics' distributions and correlations. Extremes, and statistics by
which simulators seldom leak, are divided by `DOUBT` first, so that looking at them costs the usual ones little power.
"""

from collections.abc import Collection
from dataclasses import dataclass
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
DOUBT = 1.15
FEWEST = 10  # images of a class
_FOLDS, _RIDGE = 5, 1.0  # one image's worth of doubt

Values = Float[np.ndarray, "n s"]
Labels = Int[np.ndarray, " n"]


@dataclass(frozen=True)
class Leak:
    """How well one trivial classifier tells one class from the rest.

    Attributes:
        statistic: Its name, or "all together".
        by: "value", "extremes" or "all".
        label: The class.
        sign: 1 if its values are larger (more extreme) in this class, -1 if smaller.
        auc: One-vs-rest, in the direction that favours it.
        ci95: Of the AUC (DeLong et al. 1988).
        p: Probability of one as strong in any classifier, were the labels arbitrary.
    """

    statistic: str
    by: str
    label: int
    sign: int
    auc: float
    ci95: tuple[float, float]
    p: float

    @property
    def found(self) -> bool:
        """Whether chance does not explain it."""
        return self.p <= ALPHA

    def tree(self, classes: list[str]) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "statistic": self.statistic,
            "by": self.by,
            "class": classes[self.label],
            "direction": {1: "larger", -1: "smaller"}[self.sign],
            "auc": {"value": self.auc, "ci95": list(self.ci95)},
            "p": self.p,
            "found": self.found,
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
    """Judge every statistic alone, by value and by extremes, and all together, for every class; strongest first.

    Args:
        values: Statistics of each image, finite.
        names: Of the columns.
        labels: Classes, 0 to c - 1.
        usual: Names of the statistics that are not doubted; none: all.
        seed: Of the permutations.
        permutations: How many; p is not below 1 / (permutations + 1).

    Raises:
        InputError: If fewer than two classes have `FEWEST` images each.
    """
    counts = np.bincount(labels)
    if (counts >= FEWEST).sum() < 2:
        raise InputError(
            f"Leaks show in at least two classes of at least {FEWEST} images each; the store has "
            f"{', '.join(str(n) for n in counts)} images of its classes."
        )
    varying = [i for i in range(values.shape[1]) if np.ptp(values[:, i]) > 0]
    classes = np.flatnonzero(counts >= FEWEST)
    if not varying:
        return []
    scores = normal_scores(values[:, varying])
    features = _standardised(np.concatenate([scores, scores**2], axis=1))
    folds = [np.arange(start, len(labels), _FOLDS) for start in range(_FOLDS)]
    discriminant = _Discriminant(features, folds)
    observed, fitted = discriminant.strengths(labels, classes)
    shuffled = rng.generator(seed, "permuted labels")
    null = [discriminant.strengths(shuffled.permutation(labels), classes)[0] for _ in range(permutations)]
    everything = np.concatenate([observed[None], np.stack(null)])
    spread = everything.std(0)
    standard = (everything - everything.mean(0)) / np.where(spread > 0, spread, 1.0)
    standard[:, :-1] = np.abs(standard[:, :-1])  # the last row of each class is all together, where only more counts
    doubted = [usual is not None and names[i] not in usual for i in varying] + [True] * len(varying) + [False]
    standard /= np.where(doubted, DOUBT, 1.0)[:, None]
    largest = standard.reshape(len(standard), -1).max(1)
    exceed = (largest[1:, None, None] >= standard[0][None]).sum(0)
    p = (1 + exceed) / (permutations + 1)
    found = []
    for k, label in enumerate(classes):
        own = labels == label
        for j, (column, by) in enumerate([(i, by) for by in ("value", "extremes") for i in varying]):
            sign = 1 if observed[j, k] >= 0 else -1
            auc, ci95 = auc_with_interval(own, sign * features[:, j])
            found.append(Leak(names[column], by, int(label), sign, auc, ci95, float(p[j, k])))
        auc, ci95 = auc_with_interval(own, fitted[:, k])
        found.append(Leak("all together", "all", int(label), 1, auc, ci95, float(p[-1, k])))
    return sorted(found, key=lambda leak: (leak.p, -leak.auc))


def normal_scores(values: Values) -> Values:
    """Return each column as quantiles of a standard normal distribution at its ranks; equal values share theirs."""
    from scipy.special import ndtri
    from scipy.stats import rankdata

    return np.asarray(ndtri(rankdata(values, axis=0) / (len(values) + 1)))


def auc_with_interval(own: np.ndarray, score: np.ndarray) -> tuple[float, tuple[float, float]]:
    """Return the AUC of `score` for the images in `own`, and its 95 % interval (`evaluation.paired_tests`)."""
    auc, parts = binary_auc(own, score), auc_influence(own, score)
    low, high = logit_interval(auc, float(np.sqrt((parts**2).sum())))
    return auc, (low, high)


class _Discriminant:
    """Strengths of all classifiers for given labels; what does not depend on labels is computed once.

    Args:
        features: Standardised, (n, f).
        folds: The rows of each part; each part's scores come from the other parts.
    """

    def __init__(self, features: np.ndarray, folds: list[np.ndarray]) -> None:
        self._parts = [features[rows] for rows in folds]
        self._rows = folds
        squares = [part.T @ part for part in self._parts]
        ridge = _RIDGE * np.eye(features.shape[1])
        self._inverse = [np.linalg.inv(sum(squares) - own + ridge) for own in squares]

    def strengths(self, labels: Labels, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return sqrt(n) times the correlation of each classifier's score with each class, and the scores of all.

        Returns:
            Strengths (f + 1, classes), the last row of all together, and that row's scores (n, classes).
        """
        n = len(labels)
        member = (labels[:, None] == classes).astype(np.float64)
        share = member.mean(0)
        member -= share
        products = [part.T @ member[rows] for part, rows in zip(self._parts, self._rows, strict=True)]
        total = np.sum(products, axis=0)
        single = total / np.sqrt(n * share * (1 - share))
        scores = np.empty_like(member)
        for part, rows, own, inverse in zip(self._parts, self._rows, products, self._inverse, strict=True):
            scores[rows] = part @ (inverse @ (total - own))
        centred = scores - scores.mean(0)
        spread = np.sqrt((centred**2).mean(0) * share * (1 - share) * n)
        together = (centred * member).sum(0) / np.where(spread > 0, spread, 1.0)
        return np.concatenate([single, together[None]]), scores


def _standardised(features: np.ndarray) -> np.ndarray:
    centred = features - features.mean(0)
    spread = centred.std(0)
    return np.asarray(centred / np.where(spread > 0, spread, 1.0))
