"""Sets of classes that hold the true one with a stated probability, for images like the held-out ones.

Every class gets a score, high where it fits the image ill; the set is the classes whose score is at most a threshold,
which is a quantile of the true classes' scores of n held-out images (split conformal). For images exchangeable with
those, the set holds the true class with a probability of at least `level` and, without ties, at most
level + 1/(n + 1) (Vovk et al. 2005; Lei et al. 2018, theorem 2).
"""

import math
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from darklens import rng
from darklens.calibration import ConformalThresholds

LEVELS = (0.9, 0.95)

Scores = Float[np.ndarray, "n c"]
Labels = Int[np.ndarray, " n"]
Sets = Bool[np.ndarray, "n c"]


def quantile(scores: Float[np.ndarray, " n"], level: float) -> float:
    """Return the ceil((n + 1) level)-th smallest score; infinity where n is too small for the level."""
    rank = math.ceil((len(scores) + 1) * level - 1e-9)  # 10 * 0.9 is 9, whatever its last bit
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else math.inf


def lac_scores(probabilities: Scores) -> Scores:
    """Return 1 - p of each class: the smallest sets on average, and empty ones (Sadinle et al. 2019, LAC)."""
    return np.asarray(1 - probabilities)


def aps_scores(probabilities: Scores, draws: Float[np.ndarray, " n"] | None = None) -> Scores:
    """Return for each class the sum of the larger probabilities and a part of its own (Romano et al. 2020, APS, eq. 5).

    Args:
        probabilities: Of each class.
        draws: The part for each image, uniform in [0, 1): then sets have the stated coverage and not more. None: all
            of it, which takes no chance and covers more than stated.
    """
    order = np.argsort(-probabilities, axis=1, kind="stable")
    sorted_ = np.take_along_axis(probabilities, order, 1)
    part = np.ones(len(probabilities)) if draws is None else draws
    sums = np.cumsum(sorted_, axis=1) - sorted_ * (1 - part[:, None])
    scores: np.ndarray = np.empty_like(sums)
    np.put_along_axis(scores, order, sums, 1)
    return scores


def draws_of(n: int, seed: int) -> Float[np.ndarray, " n"]:
    """Return the uniform numbers of the randomised sets of n images."""
    return rng.generator(seed, "randomised sets").random(n)


def fit(probabilities: Scores, labels: Labels, level: float, *, seed: int = 0) -> ConformalThresholds:
    """Return the thresholds of all kinds of sets at one level.

    All scores are at most 1, so where the images are too few for the level the threshold is 1: every class is in.

    Args:
        probabilities: Of held-out images; none is allowed.
        labels: Their true classes.
        level: Wanted coverage.
        seed: Of the randomised sets.
    """
    rows = np.arange(len(labels))

    def threshold(scores: Scores, members: np.ndarray = rows) -> float:
        return min(quantile(scores[members, labels[members]], level), 1.0)

    lac = lac_scores(probabilities)
    return ConformalThresholds(
        level=level,
        lac=threshold(lac),
        lac_by_class=tuple(threshold(lac, np.flatnonzero(labels == i)) for i in range(probabilities.shape[1])),
        aps=threshold(aps_scores(probabilities, draws_of(len(labels), seed))),
        aps_whole=threshold(aps_scores(probabilities)),
    )


def lac_sets(probabilities: Scores, thresholds: ConformalThresholds) -> Sets:
    """Return which classes are in the set of each image; predictions.csv adds the most probable one."""
    return np.asarray(lac_scores(probabilities) <= thresholds.lac)


def sets(probabilities: Scores, thresholds: ConformalThresholds, *, seed: int = 1) -> dict[str, Sets]:
    """Return the sets of each kind.

    `lac_by_class` holds its level within each class by itself (Mondrian). In `aps_whole` the class at which the sum
    passes the threshold is in, so that no set is empty (Angelopoulos & Bates 2021, arXiv:2107.07511, eq. 3).
    """
    lac = lac_scores(probabilities)
    draws = draws_of(len(probabilities), seed)
    return {
        "lac": lac_sets(probabilities, thresholds),
        "lac_by_class": lac <= np.array(thresholds.lac_by_class),
        "aps": aps_scores(probabilities, draws) <= thresholds.aps,
        "aps_whole": aps_scores(probabilities, np.zeros(len(probabilities))) < thresholds.aps_whole,
    }


def coverage(found: Sets, labels: Labels) -> float:
    """Return the fraction of sets that hold the true class."""
    return float(found[np.arange(len(labels)), labels].mean())


def summarise(probabilities: Scores, labels: Labels, fitted: tuple[ConformalThresholds, ...]) -> list[dict[str, Any]]:
    """Return coverage, over all and by class, and sizes of the sets of each kind and level, ready for JSON."""
    rows = []
    for thresholds in fitted:
        kinds = {
            kind: {
                "coverage": coverage(found, labels),
                "coverage_by_class": [
                    coverage(found[labels == i], labels[labels == i]) if (labels == i).any() else None
                    for i in range(probabilities.shape[1])
                ],
                "mean_size": float(found.sum(1).mean()),
                "empty": float((~found.any(1)).mean()),
            }
            for kind, found in sets(probabilities, thresholds).items()
        }
        rows.append({"level": thresholds.level, **kinds})
    return rows
