"""Finite-sample guarantees from held-out images: conformal prediction sets, and selective classification.

Prediction sets (split conformal): each class has a score, high where it fits the image badly, and the set contains the
classes whose score is at most a threshold, a quantile of the scores of the true classes of n held-out images. For
images exchangeable with those the set contains the true class with a probability of at least `level` and, without ties,
at most level + 1/(n + 1) (Vovk et al. 2005; Lei et al. 2018, theorem 2).

Selective classification: only images above a confidence threshold are classified. Thresholds are tested from the
strictest to the loosest with the exact binomial test of "more than `risk` of the accepted images are wrong"; the last
one before the first that is not rejected is chosen. The order is fixed beforehand, so only the test of the first
threshold that is too loose can err, with a probability of at most 1 - certainty (fixed-sequence testing, Angelopoulos
et al. 2021, arXiv:2110.01052; risk and coverage as in Geifman & El-Yaniv 2017).
"""

import math
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from darklens import rng
from darklens.calibration import ConformalThresholds, SelectiveThreshold

LEVELS = (0.9, 0.95)
RISKS = (0.01, 0.05)
CERTAINTY = 0.95
_CANDIDATES = 50

Scores = Float[np.ndarray, "n c"]
Labels = Int[np.ndarray, " n"]
Sets = Bool[np.ndarray, "n c"]


def quantile(scores: Float[np.ndarray, " n"], level: float) -> float:
    """Return the ceil((n + 1) level)-th smallest score; infinity where n is too small for the level."""
    rank = math.ceil((len(scores) + 1) * level - 1e-9)  # 10 * 0.9 is 9, whatever its last bit
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else math.inf


def lac_scores(probabilities: Scores) -> Scores:
    """Return 1 - p of each class: the smallest sets on average, some of them empty (Sadinle et al. 2019, LAC)."""
    return np.asarray(1 - probabilities)


def aps_scores(probabilities: Scores, draws: Float[np.ndarray, " n"] | None = None) -> Scores:
    """Return the sum of all larger probabilities and a fraction of the class's (Romano et al. 2020, APS, eq. 5).

    Args:
        probabilities: Of each class.
        draws: The fraction of each image, uniform in [0, 1): the sets then have exactly the stated coverage. None takes
            the whole probability, which is deterministic and covers more.
    """
    order = np.argsort(-probabilities, axis=1, kind="stable")
    ordered = np.take_along_axis(probabilities, order, 1)
    fraction = np.ones(len(probabilities)) if draws is None else draws
    sums = np.cumsum(ordered, axis=1) - ordered * (1 - fraction[:, None])
    scores: np.ndarray = np.empty_like(sums)
    np.put_along_axis(scores, order, sums, 1)
    return scores


def _uniform(n: int, seed: int) -> Float[np.ndarray, " n"]:
    return rng.generator(seed, "randomised sets").random(n)


def fit_sets(probabilities: Scores, labels: Labels, level: float, *, seed: int = 0) -> ConformalThresholds:
    """Return the thresholds of all kinds of prediction sets at one level.

    All scores are at most 1, so with too few images for the level the threshold is 1 and the set has all classes.

    Args:
        probabilities: Of held-out images; there may be none.
        labels: Their true classes.
        level: Coverage.
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
        aps=threshold(aps_scores(probabilities, _uniform(len(labels), seed))),
        aps_whole=threshold(aps_scores(probabilities)),
    )


def lac_sets(probabilities: Scores, thresholds: ConformalThresholds) -> Sets:
    """Return whether each class is in the set of each image; predictions.csv adds the most probable class."""
    return np.asarray(lac_scores(probabilities) <= thresholds.lac)


def prediction_sets(probabilities: Scores, thresholds: ConformalThresholds, *, seed: int = 1) -> dict[str, Sets]:
    """Return the prediction sets of each kind.

    `lac_by_class` has the stated coverage within each class (Mondrian). `aps_whole` includes the class at which the sum
    passes the threshold, so that no set is empty (Angelopoulos & Bates 2021, arXiv:2107.07511, eq. 3).
    """
    lac = lac_scores(probabilities)
    draws = _uniform(len(probabilities), seed)
    return {
        "lac": lac_sets(probabilities, thresholds),
        "lac_by_class": lac <= np.array(thresholds.lac_by_class),
        "aps": aps_scores(probabilities, draws) <= thresholds.aps,
        "aps_whole": aps_scores(probabilities, np.zeros(len(probabilities))) < thresholds.aps_whole,
    }


def coverage(sets: Sets, labels: Labels) -> float:
    """Return the fraction of sets that contain the true class."""
    return float(sets[np.arange(len(labels)), labels].mean())


def summarise_sets(
    probabilities: Scores, labels: Labels, fitted: tuple[ConformalThresholds, ...]
) -> list[dict[str, Any]]:
    """Return coverage, in total and by class, and sizes of the sets of each level and kind, ready for JSON."""
    rows = []
    for thresholds in fitted:
        kinds = {
            kind: {
                "coverage": coverage(sets, labels),
                "coverage_by_class": [
                    coverage(sets[labels == i], labels[labels == i]) if (labels == i).any() else None
                    for i in range(probabilities.shape[1])
                ],
                "mean_size": float(sets.sum(1).mean()),
                "empty": float((~sets.any(1)).mean()),
            }
            for kind, sets in prediction_sets(probabilities, thresholds).items()
        }
        rows.append({"level": thresholds.level, **kinds})
    return rows


def min_images(risk: float, certainty: float) -> int:
    """Return the number of images, all classified correctly, that a guarantee needs."""
    return math.ceil(math.log(1 - certainty) / math.log(1 - risk))


def candidate_thresholds(
    confidence: Float[np.ndarray, " m"], n: int, *, risk: float, certainty: float
) -> Float[np.ndarray, " k"]:
    """Return thresholds to test, the strictest first, from images other than those of the test.

    The strictest is expected to accept 1.5 times as many images as a guarantee needs without an error.

    Args:
        confidence: Largest probabilities of the other images.
        n: Images of the test.
        risk: Of the guarantee.
        certainty: Of the guarantee.
    """
    strictest = 1.5 * min_images(risk, certainty) / n if n else 1.0
    if len(confidence) == 0 or strictest >= 1:
        return np.zeros(1)  # all images or none
    return np.unique(np.append(np.quantile(confidence, 1 - np.linspace(strictest, 1, _CANDIDATES)), 0.0))[::-1]


def fit_selective(
    confidence: Float[np.ndarray, " n"],
    correct: Bool[np.ndarray, " n"],
    candidates: Float[np.ndarray, " k"],
    *,
    risk: float,
    certainty: float = CERTAINTY,
) -> SelectiveThreshold:
    """Return the loosest threshold whose test guarantees the risk.

    Args:
        confidence: Largest probability of each held-out image.
        correct: Whether its class is the true one.
        candidates: Thresholds in the order of testing, chosen without these images.
        risk: Largest fraction of the accepted images that may be wrong.
        certainty: Probability that the guarantee holds.
    """
    from scipy.stats import binom

    chosen = None
    for threshold in candidates:
        accepted = confidence >= threshold
        wrong = int((accepted & ~correct).sum())
        if not binom.cdf(wrong, int(accepted.sum()), risk) <= 1 - certainty:
            break
        chosen = float(threshold)
    return SelectiveThreshold(risk=risk, certainty=certainty, confidence=chosen)


def summarise_selective(
    probabilities: Scores, labels: Labels, fitted: tuple[SelectiveThreshold, ...]
) -> list[dict[str, Any]]:
    """Return the fraction of images accepted and the error rate among them for each guarantee, ready for JSON."""
    confidence, wrong = probabilities.max(1), probabilities.argmax(1) != labels
    rows = []
    for threshold in fitted:
        accepted = confidence >= (np.inf if threshold.confidence is None else threshold.confidence)
        rows.append(
            {
                **threshold.model_dump(mode="json"),
                "accepted": float(accepted.mean()),
                "wrong_of_accepted": float(wrong[accepted].mean()) if accepted.any() else None,
            }
        )
    return rows
