"""Above which confidence a classifier may be believed, so that few of what is believed is wrong.

Thresholds are tried from the strictest to the loosest. Each is tested on held-out images with the exact binomial test
of "more than `risk` of the accepted images are wrong"; the last before the first that is not rejected is taken. As the
order is fixed beforehand, the test of the first threshold that is too loose is the only one that can err, and it errs
with a probability of at most 1 - certainty (fixed-sequence testing, Angelopoulos et al. 2021, arXiv:2110.01052;
risk and coverage as in Geifman & El-Yaniv 2017).
"""

import math
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from darklens.calibration import SelectiveThreshold

RISKS = (0.01, 0.05)
CERTAINTY = 0.95
_CANDIDATES = 50


def fewest(risk: float, certainty: float) -> int:
    """Return how many images without a mistake it takes to promise a risk."""
    return math.ceil(math.log(1 - certainty) / math.log(1 - risk))


def candidates(
    confidence: Float[np.ndarray, " m"], n: int, *, risk: float, certainty: float
) -> Float[np.ndarray, " k"]:
    """Return thresholds to try, strictest first, from images other than those they are tested on.

    The strictest is expected to accept half as many again as a promise takes without a mistake.

    Args:
        confidence: Largest probabilities of the other images.
        n: Images that the thresholds will be tested on.
        risk: To be promised.
        certainty: Of the promise.
    """
    first = 1.5 * fewest(risk, certainty) / n if n else 1.0
    if len(confidence) == 0 or first >= 1:
        return np.zeros(1)  # all or nothing
    return np.unique(np.append(np.quantile(confidence, 1 - np.linspace(first, 1, _CANDIDATES)), 0.0))[::-1]


def fit(
    confidence: Float[np.ndarray, " n"],
    right: Bool[np.ndarray, " n"],
    tried: Float[np.ndarray, " k"],
    *,
    risk: float,
    certainty: float = CERTAINTY,
) -> SelectiveThreshold:
    """Return the loosest threshold that is tested to keep the risk.

    Args:
        confidence: Largest probability of each held-out image.
        right: Whether its class is the true one.
        tried: Thresholds in the order of testing, chosen without these images.
        risk: Largest fraction of the accepted images that may be wrong.
        certainty: Probability that the promise holds.
    """
    from scipy.stats import binom

    chosen = None
    for threshold in tried:
        accepted = confidence >= threshold
        wrong = int((accepted & ~right).sum())
        if not binom.cdf(wrong, int(accepted.sum()), risk) <= 1 - certainty:
            break
        chosen = float(threshold)
    return SelectiveThreshold(risk=risk, certainty=certainty, confidence=chosen)


def summarise(
    probabilities: Float[np.ndarray, "n c"], labels: Int[np.ndarray, " n"], fitted: tuple[SelectiveThreshold, ...]
) -> list[dict[str, Any]]:
    """Return for each promise how many images are accepted and how many of those are wrong, ready for JSON."""
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
