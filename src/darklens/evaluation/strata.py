"""How well a system does as a function of a true parameter, and the mass from which on it sees substructure."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from darklens import rng
from darklens.evaluation import delong, metrics
from darklens.evaluation.bounds import of_standard_error, wilson
from darklens.evaluation.metrics import Labels, Probabilities
from darklens.evaluation.parameters import Parameter

MOST_BINS, FEWEST_IN_BIN = 10, 20
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

    A parameter that one class alone has is judged on images of that class: `recall` is the rate at which it is
    detected, with Wilson intervals, and `auc` is against all images of the other classes; `false_alarms` is the
    fraction of those that are called it, without which a recall says little. Of other parameters each bin
    has the recall of every class and the macro AUC among its images. AUCs have DeLong's intervals in the logit.

    Parameters of fewer than twice `FEWEST_IN_BIN` images are left out.
    """
    return [
        found
        for parameter in parameters
        if (found := _of_parameter(labels, probabilities, classes, parameter, seed)) is not None
    ]


def bins_of(values: Float[np.ndarray, " n"]) -> list[Int[np.ndarray, " k"]]:
    """Return the images of each bin in the order of `values`, without NaN; equal values stay together."""
    known = np.flatnonzero(np.isfinite(values))
    count = min(MOST_BINS, len(known) // FEWEST_IN_BIN)
    if count < 2:
        return []
    ordered = np.sort(values[known])
    starts = np.unique([ordered[part[0]] for part in np.array_split(np.arange(len(known)), count)])
    at = np.searchsorted(starts, values[known], side="right") - 1
    return [known[at == i] for i in range(len(starts))]


def detection_limit(
    at: Float[np.ndarray, " b"], hits: Int[np.ndarray, " b"], n: Int[np.ndarray, " b"], level: float, *, seed: int = 0
) -> dict[str, Any]:
    """Return the mass at which the recall rises through `level`, with a 95 % interval.

    The recall is made monotonic by isotonic regression and interpolated in the logarithm of the mass between bins.
    The interval is from binomial resamples of each bin.

    Args:
        at: Median mass of each bin, rising.
        hits: Images of each bin that were detected.
        n: Images of each bin.
        level: Recall.
        seed: Of the resamples.

    Returns:
        `recall`, `value` and `ci95`; None for a value or an end of the interval that the bins do not reach, with
        `reached`: "below the smallest", "inside" or "above the largest".
    """
    g = rng.generator(seed, "detection limit")
    drawn = g.binomial(n, hits / n, (_RESAMPLES, len(n)))
    value = _crossing(at, hits, n, level)
    low, high = np.quantile([_crossing(at, h, n, level) for h in drawn], [0.025, 0.975], method="nearest")
    reached = "inside" if np.isfinite(value) else "below the smallest" if value < 0 else "above the largest"
    return {"recall": level, "value": _known(value), "ci95": [_known(low), _known(high)], "reached": reached}


def _of_parameter(
    labels: Labels, probabilities: Probabilities, classes: Sequence[str], parameter: Parameter, seed: int
) -> dict[str, Any] | None:
    parts = bins_of(parameter.values)
    if len(parts) < 2:
        return None
    own = None if parameter.of_class is None else list(classes).index(parameter.of_class)
    right = probabilities.argmax(1) == labels
    rows = []
    for rows_of_bin in parts:
        inside, values = np.zeros(len(labels), dtype=bool), parameter.values[rows_of_bin]
        inside[rows_of_bin] = True
        shown = range(len(classes)) if own is None else [own]
        rows.append(
            {
                "low": float(values.min()),
                "high": float(values.max()),
                "median": float(np.median(values)),
                "n": len(rows_of_bin),
                "recall": {classes[i]: _rate(right[inside & (labels == i)]) for i in shown},
                "auc": _auc(labels, probabilities, inside, own),
            }
        )
    found: dict[str, Any] = {
        "parameter": parameter.name,
        "unit": parameter.unit,
        "class": parameter.of_class,
        "bins": rows,
    }
    if own is not None:
        found["false_alarms"] = _rate((probabilities.argmax(1) == own)[labels != own])
    if parameter.is_mass and own is not None:
        at, n = np.array([row["median"] for row in rows]), np.array([len(part) for part in parts])
        hits = np.array([int(right[part].sum()) for part in parts])
        found["limits"] = [detection_limit(at, hits, n, level, seed=seed) for level in LEVELS]
    return found


def _rate(right: Bool[np.ndarray, " k"]) -> dict[str, Any] | None:
    return {"value": float(right.mean()), "ci95": wilson(float(right.mean()), len(right))} if len(right) else None


def _auc(
    labels: Labels, probabilities: Probabilities, inside: Bool[np.ndarray, " n"], own: int | None
) -> dict[str, Any] | None:
    """Return the AUC of the bin's images of class `own` against all others, or the macro AUC among the bin's images."""
    kept = inside if own is None else inside | (labels != own)
    y, p = labels[kept], probabilities[kept]
    shown = range(probabilities.shape[1]) if own is None else [own]
    if any((y == i).all() or not (y == i).any() for i in shown):
        return None
    value = np.mean([metrics.binary_auc(y == i, p[:, i]) for i in shown])
    parts = np.mean([delong.influence(y == i, p[:, i]) for i in shown], axis=0)
    se = float(np.sqrt((parts**2).sum()))
    return {"value": float(value), "ci95": of_standard_error(float(value), se) if np.isfinite(se) else None}


def _crossing(
    at: Float[np.ndarray, " b"], hits: Int[np.ndarray, " b"], n: Int[np.ndarray, " b"], level: float
) -> float:
    """Return the mass, -inf if the recall is above the level from the first bin on, inf if it never gets there."""
    from scipy.optimize import isotonic_regression

    rate = isotonic_regression(hits / n, weights=n).x
    if rate[0] >= level:
        return -np.inf
    if rate[-1] < level:
        return np.inf
    k = int((rate >= level).argmax())
    share = (level - rate[k - 1]) / (rate[k] - rate[k - 1])
    return float(np.exp(np.log(at[k - 1]) + share * (np.log(at[k]) - np.log(at[k - 1]))))


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
