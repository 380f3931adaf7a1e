"""95 % intervals of single metrics, which stay inside the range that the metric has.

Percentiles of a bootstrap hold too rarely where a metric is close to its end: with 300 images, they held a class' AUC
of 0.998 in 84 to 86 % of experiments, these intervals in 94 % (benchmarks/interval_coverage.py,
results/coverage.json). So the bootstrap only gives the standard error, and the interval is normal in the logit.
Fractions of images, which are binomial, have Wilson's interval; the log loss, whose few large terms make it skew, has
Hall's; the calibration error, which is biased, has that of `calibration_bounds`.
"""

import math
import re
from typing import Any

import numpy as np
from jaxtyping import Float

from darklens.evaluation import calibration_bounds, metrics
from darklens.evaluation.metrics import Labels, Probabilities

Z95 = 1.959963984540054
_LARGEST = {"brier": 2.0, "nll": math.inf}  # all others end at 1
_FRACTION = re.compile(r"accuracy|recall_\d+|risk_at_(?P<coverage>[\d.]+)")


def with_interval(
    name: str, value: float, drawn: Float[np.ndarray, " r"], labels: Labels, probabilities: Probabilities
) -> dict[str, Any]:
    """Return `value` and `ci95` of one training's metric.

    Args:
        name: As `intervals.scalars` names it; accuracy, the recall of a class and risks are fractions of images.
        value: On the test images.
        drawn: On resampled ones.
        labels: True classes (n,).
        probabilities: (n, c).
    """
    return {"value": value, "ci95": _interval(name, value, drawn, labels, probabilities)}


def _interval(
    name: str, value: float, drawn: Float[np.ndarray, " r"], labels: Labels, probabilities: Probabilities
) -> list[float]:
    if name == "ece":
        return calibration_bounds.interval(labels, probabilities)
    if name == "nll":
        return of_skew_mean(metrics.log_losses(labels, probabilities))
    fraction = _FRACTION.fullmatch(name)
    if fraction is None:
        return logit_normal(name, value, drawn, labels)
    if fraction["coverage"]:
        return wilson(value, _as_telling_as(value, drawn, math.ceil(float(fraction["coverage"]) * len(labels))))
    n = int((labels == int(name.rpartition("_")[2])).sum()) if name.startswith("recall") else len(labels)
    return wilson(value, n)


def _as_telling_as(risk: float, drawn: Float[np.ndarray, " r"], n: int) -> int | float:
    """Return how many images, of those answered at a fixed confidence, tell a risk as well as n above a quantile."""
    variance = float(np.var(drawn))
    return n if variance == 0 else min(n, risk * (1 - risk) / variance) or n


def logit_normal(name: str, value: float, drawn: Float[np.ndarray, " r"], labels: Labels) -> list[float]:
    """Return the interval that is normal in ln(v / (largest - v)), or in ln v where the metric has no largest value.

    The standard error is the bootstrap's, with Student's factor for the fewest images of a class, as resampling n
    images shows n - 1 of them. A metric at an end of its range, or one that no resample changes, is its own interval.
    """
    from scipy.stats import t

    fewest = int(np.unique(labels, return_counts=True)[1].min())
    factor = float(t.ppf(0.975, max(fewest - 1, 1))) * math.sqrt(fewest / max(fewest - 1, 1))
    return of_standard_error(value, float(np.std(drawn)) * factor / Z95, largest=_LARGEST.get(name, 1.0))


def of_standard_error(value: float, se: float, *, largest: float = 1.0) -> list[float]:
    """Return the interval of a value between 0 and `largest` that is normal in its logit, by the delta method."""
    if se <= 1e-12 or not 0 < value < largest:
        return [value, value]
    if math.isinf(largest):
        half = Z95 * se / value
        return [value * math.exp(-half), value * math.exp(half)]
    share = value / largest
    odds, half = share / (1 - share), Z95 * se / largest / (share * (1 - share))
    return [largest / (1 + 1 / (odds * math.exp(sign * min(half, 500.0)))) for sign in (-1, 1)]


def of_skew_mean(values: Float[np.ndarray, " n"]) -> list[float]:
    """Return the interval of the mean of values that are not negative, corrected for their skewness.

    A cubic takes the skewness of the studentised mean away, and brings it back (Hall 1992, JRSS B 54, 221).
    """
    n, mean, scatter = len(values), float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0
    if scatter <= 1e-12:
        return [mean, mean]
    lean = float(((values - mean) ** 3).mean()) / scatter**3 / math.sqrt(n)

    def back(normal: float) -> float:
        if abs(lean) < 1e-6:
            return normal
        return 3 / lean * (float(np.cbrt(1 + lean * (normal - lean / 6))) - 1)

    return [max(0.0, mean - back(z) * scatter / math.sqrt(n)) for z in (Z95, -Z95)]


def wilson(fraction: float, n: int | float) -> list[float]:
    """Return the interval of a fraction of n images (Wilson 1927, JASA 22, 209)."""
    scale = 1 + Z95**2 / n
    centre = fraction + Z95**2 / (2 * n)
    half = Z95 * math.sqrt(fraction * (1 - fraction) / n + Z95**2 / (4 * n * n))
    return [float(max(0.0, (centre - half) / scale)), float(min(1.0, (centre + half) / scale))]
