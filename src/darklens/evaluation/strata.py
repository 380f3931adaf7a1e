"""Performance as a function of true parameters, and the detection limit in mass."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from darklens import rng
from darklens.evaluation import metrics
from darklens.evaluation.intervals import logit_interval, wilson_interval
from darklens.evaluation.metrics import Labels, Probabilities
from darklens.evaluation.paired_tests import auc_influence
from darklens.evaluation.parameters import Parameter

MAX_BINS, MIN_BIN_SIZE = 10, 20
LEVELS = (0.5, 0.9)
_RESAMPLES = 500


def stratify(
    labels: Labels,
    probabilities: Probabilities,
    classes: Sequence[str],
    parameters: Sequence[Parameter],
    *,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Return recall and AUC in bins of equal numbers of images of each parameter, ready for JSON.

    For a parameter of one class, such as a mass of substructure, `recall` is the rate at which images of that class
    are detected, with Wilson intervals, `auc` is against all images of the other classes, and `false_alarms` is the
    fraction of those that are assigned to the class. For other parameters each bin has the recall of each class and the
    macro AUC among its images. AUCs have DeLong's intervals in the logit.

    Parameters of fewer than twice `MIN_BIN_SIZE` images are left out.
    """
    strata = [_stratum(labels, probabilities, classes, parameter, seed) for parameter in parameters]
    return [stratum for stratum in strata if stratum is not None]


def equal_count_bins(values: Float[np.ndarray, " n"]) -> list[Int[np.ndarray, " k"]]:
    """Return the indices of each bin in the order of `values`, without NaN; equal values share a bin."""
    finite = np.flatnonzero(np.isfinite(values))
    count = min(MAX_BINS, len(finite) // MIN_BIN_SIZE)
    if count < 2:
        return []
    ordered = np.sort(values[finite])
    starts = np.unique([ordered[part[0]] for part in np.array_split(np.arange(len(finite)), count)])
    index = np.searchsorted(starts, values[finite], side="right") - 1
    return [finite[index == i] for i in range(len(starts))]


def detection_limit(
    mass: Float[np.ndarray, " b"], hits: Int[np.ndarray, " b"], n: Int[np.ndarray, " b"], level: float, *, seed: int = 0
) -> dict[str, Any]:
    """Return the mass at which the recall rises through `level`, with a 95 % interval.

    Isotonic regression makes the recall monotonic; it is interpolated in the logarithm of the mass between bins. The
    interval is from binomial resamples of each bin.

    Args:
        mass: Median of each bin, increasing.
        hits: Images of each bin that were detected.
        n: Images of each bin.
        level: Recall.
        seed: Of the resamples.

    Returns:
        `recall`, `value` and `ci95`; None for a value or an end of the interval outside the bins, with `reached`:
        "below the smallest", "inside" or "above the largest".
    """
    g = rng.generator(seed, "detection limit")
    resampled = g.binomial(n, hits / n, (_RESAMPLES, len(n)))
    value = _crossing(mass, hits, n, level)
    low, high = np.quantile([_crossing(mass, h, n, level) for h in resampled], [0.025, 0.975], method="nearest")
    reached = "inside" if np.isfinite(value) else "below the smallest" if value < 0 else "above the largest"
    ci95 = [_finite_or_none(low), _finite_or_none(high)]
    return {"recall": level, "value": _finite_or_none(value), "ci95": ci95, "reached": reached}


def _stratum(
    labels: Labels, probabilities: Probabilities, classes: Sequence[str], parameter: Parameter, seed: int
) -> dict[str, Any] | None:
    bins = equal_count_bins(parameter.values)
    if len(bins) < 2:
        return None
    target = None if parameter.of_class is None else list(classes).index(parameter.of_class)
    correct = probabilities.argmax(1) == labels
    rows = []
    for members in bins:
        inside, values = np.zeros(len(labels), dtype=bool), parameter.values[members]
        inside[members] = True
        recalled = range(len(classes)) if target is None else [target]
        rows.append(
            {
                "low": float(values.min()),
                "high": float(values.max()),
                "median": float(np.median(values)),
                "n": len(members),
                "recall": {classes[i]: _rate(correct[inside & (labels == i)]) for i in recalled},
                "auc": _auc(labels, probabilities, inside, target),
            }
        )
    stratum: dict[str, Any] = {
        "parameter": parameter.name,
        "unit": parameter.unit,
        "class": parameter.of_class,
        "bins": rows,
    }
    if target is not None:
        stratum["false_alarms"] = _rate((probabilities.argmax(1) == target)[labels != target])
    if parameter.is_mass and target is not None:
        mass, n = np.array([row["median"] for row in rows]), np.array([len(members) for members in bins])
        hits = np.array([int(correct[members].sum()) for members in bins])
        stratum["limits"] = [detection_limit(mass, hits, n, level, seed=seed) for level in LEVELS]
    return stratum


def _rate(hits: Bool[np.ndarray, " k"]) -> dict[str, Any] | None:
    if not len(hits):
        return None
    return {"value": float(hits.mean()), "ci95": wilson_interval(float(hits.mean()), len(hits))}


def _auc(
    labels: Labels, probabilities: Probabilities, inside: Bool[np.ndarray, " n"], target: int | None
) -> dict[str, Any] | None:
    """Return the AUC of the bin's images of class `target` against all others, or the macro AUC within the bin."""
    rows = inside if target is None else inside | (labels != target)
    y, p = labels[rows], probabilities[rows]
    members = range(probabilities.shape[1]) if target is None else [target]
    if any((y == i).all() or not (y == i).any() for i in members):
        return None
    value = np.mean([metrics.binary_auc(y == i, p[:, i]) for i in members])
    influence = np.mean([auc_influence(y == i, p[:, i]) for i in members], axis=0)
    se = float(np.sqrt((influence**2).sum()))
    return {"value": float(value), "ci95": logit_interval(float(value), se) if np.isfinite(se) else None}


def _crossing(
    mass: Float[np.ndarray, " b"], hits: Int[np.ndarray, " b"], n: Int[np.ndarray, " b"], level: float
) -> float:
    """Return the mass; -inf if the recall exceeds the level in the first bin, inf if it never reaches it."""
    from scipy.optimize import isotonic_regression

    rate = isotonic_regression(hits / n, weights=n).x
    if rate[0] >= level:
        return -np.inf
    if rate[-1] < level:
        return np.inf
    k = int((rate >= level).argmax())
    fraction = (level - rate[k - 1]) / (rate[k] - rate[k - 1])
    return float(np.exp(np.log(mass[k - 1]) + fraction * (np.log(mass[k]) - np.log(mass[k - 1]))))


def _finite_or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
