"""Curves that make probabilities honest where one temperature does not (Zadrozny & Elkan 2002, KDD, 694).

A network that is surest of its vort images where it is most often wrong cannot be mended by a factor. For each class,
a rising curve says how often images that were given a probability are of that class.
"""

import numpy as np
from jaxtyping import Float, Int

from darklens.calibration import Curve

FEWEST = 300  # images a class; of fewer, the curves are mostly noise
_DIGITS = 6


def fit_curves(probabilities: Float[np.ndarray, "n c"], labels: Int[np.ndarray, " n"]) -> tuple[Curve, ...]:
    """Return for each class the rising curve that is nearest to how often it is true, by its probability.

    No curve reaches 0 or 1: it stays one part in n + 2 away, as n images cannot say that something never happens.

    Args:
        probabilities: Of n held-out images.
        labels: Their true classes.
    """
    from scipy.optimize import isotonic_regression

    n, curves = len(labels), []
    for k, given in enumerate(probabilities.T):
        at, place, times = np.unique(given.round(_DIGITS), return_inverse=True, return_counts=True)
        share = np.bincount(place, weights=labels == k) / times
        level = isotonic_regression(share, weights=times).x.clip(1 / (n + 2), 1 - 1 / (n + 2))
        # Ends of the steps alone: what is between is the same.
        step = np.diff(level) > 0
        kept = np.flatnonzero(np.concatenate([[True], step]) | np.concatenate([step, [True]]))
        curves.append(Curve(given=tuple(at[kept].tolist()), meant=tuple(level[kept].round(_DIGITS + 2).tolist())))
    return tuple(curves)
