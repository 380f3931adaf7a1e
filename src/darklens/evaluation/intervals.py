"""95 % confidence intervals of single metrics, within the range of the metric.

Bootstrap percentiles undercover where a metric is close to its end: with 300 images they covered a class AUC of 0.998
in 84 to 86 % of experiments, the intervals here in 94 % (`python -m experiments coverage`, results/coverage.json). The
bootstrap therefore gives the standard error alone, and the interval is normal in the logit. Other metrics:

- fractions of images are binomial and have Wilson's interval;
- the log loss is skewed by a few large terms and has Hall's interval;
- the expected calibration error is biased and has the interval of `calibration_error_interval`.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from darklens import rng
from darklens.evaluation import metrics
from darklens.evaluation.bootstrap import COVERAGES, RESAMPLES, bootstrap, percentile_interval, scalar_metrics
from darklens.evaluation.metrics import ECE_BINS, Labels, Probabilities

Z95 = 1.959963984540054
_MAXIMUM = {"brier": 2.0, "nll": math.inf}  # 1 for all others
_FRACTION = re.compile(r"accuracy|recall_\d+|risk_at_(?P<coverage>[\d.]+)")
_EXPERIMENTS = 1000  # simulated for the interval of the calibration error
_BISECTIONS = 12
_MAX_SIGMA = 8.0  # where the search for the upper end of that interval starts, above the measured error


def metrics_with_intervals(
    labels: Labels, probabilities: Probabilities, classes: Sequence[str], *, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """Return the metrics of eval.json with their intervals.

    Raises:
        InputError: If a metric would be undefined; see `metrics.check`.
    """
    metrics.check(labels, probabilities)
    values = scalar_metrics(labels, probabilities)
    resampled = bootstrap(labels, probabilities, seed=seed, resamples=resamples)

    def metric(name: str) -> dict[str, Any]:
        return metric_with_interval(name, values[name], resampled[name], labels, probabilities)

    def by_class(name: str) -> dict[str, Any]:
        return {c: metric(f"{name}_{i}") for i, c in enumerate(classes)} | {"macro": metric(name)}

    legacy = metrics.legacy_auc(labels, probabilities)
    defined = [value for value in legacy if value is not None]
    return {
        "n": len(labels),
        "classes": list(classes),
        "accuracy": metric("accuracy"),
        "auc": by_class("auc"),
        "legacy_auc": dict(zip(classes, legacy, strict=True))
        | {"macro": float(np.mean(defined)) if len(defined) == len(legacy) else None},
        "recall": by_class("recall"),
        "average_precision": by_class("average_precision"),
        "ece": metric("ece"),
        "nll": metric("nll"),
        "brier": metric("brier"),
        "aurc": metric("aurc"),
        "risk_at_coverage": {f"{c:g}": metric(f"risk_at_{c:g}") for c in COVERAGES},
        "confusion": metrics.confusion(labels, probabilities).tolist(),
    }


def means_with_intervals(values: Mapping[str, Float[np.ndarray, " n"]], *, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Return the mean over images of each quantity, with its bootstrap percentile interval."""
    g = rng.generator(seed, "bootstrap")
    n = len(next(iter(values.values())))
    resampled = [g.integers(0, n, n) for _ in range(RESAMPLES)]
    return {
        name: {
            "value": float(of_image.mean()),
            "ci95": percentile_interval(np.array([of_image[rows].mean() for rows in resampled])),
        }
        for name, of_image in values.items()
    }


def metric_with_interval(
    name: str, value: float, resampled: Float[np.ndarray, " r"], labels: Labels, probabilities: Probabilities
) -> dict[str, Any]:
    """Return `value` and `ci95` of a metric of one training.

    Args:
        name: As in `bootstrap.scalar_metrics`; accuracy, the recall of a class and risks are fractions of images.
        value: On the test images.
        resampled: On resampled test images.
        labels: True classes (n,).
        probabilities: (n, c).
    """
    return {"value": value, "ci95": _interval(name, value, resampled, labels, probabilities)}


def _interval(
    name: str, value: float, resampled: Float[np.ndarray, " r"], labels: Labels, probabilities: Probabilities
) -> list[float]:
    if name == "ece":
        return calibration_error_interval(labels, probabilities)
    if name == "nll":
        return skewed_mean_interval(metrics.log_losses(labels, probabilities))
    fraction = _FRACTION.fullmatch(name)
    if fraction is None:
        return bootstrap_logit_interval(name, value, resampled, labels)
    if fraction["coverage"]:
        accepted = math.ceil(float(fraction["coverage"]) * len(labels))
        return wilson_interval(value, _effective_sample_size(value, resampled, accepted))
    n = int((labels == int(name.rpartition("_")[2])).sum()) if name.startswith("recall") else len(labels)
    return wilson_interval(value, n)


def _effective_sample_size(risk: float, resampled: Float[np.ndarray, " r"], n: int) -> int | float:
    """Return the number of independent images that would give the risk its bootstrap variance, at most n.

    The threshold of the confidence is a quantile of the same images, which adds to the binomial variance.
    """
    variance = float(np.var(resampled))
    return n if variance == 0 else min(n, risk * (1 - risk) / variance) or n


def bootstrap_logit_interval(
    name: str, value: float, resampled: Float[np.ndarray, " r"], labels: Labels
) -> list[float]:
    """Return the interval that is normal in ln(v / (maximum - v)), or in ln v for a metric without a maximum.

    The standard error is the bootstrap's, with Student's t for the size of the smallest class and the factor
    n / (n - 1) for the variance of a resample of n images. For a metric at the end of its range, or one that no
    resample changes, both limits equal the metric.
    """
    from scipy.stats import t

    smallest = int(np.unique(labels, return_counts=True)[1].min())
    factor = float(t.ppf(0.975, max(smallest - 1, 1))) * math.sqrt(smallest / max(smallest - 1, 1))
    return logit_interval(value, float(np.std(resampled)) * factor / Z95, maximum=_MAXIMUM.get(name, 1.0))


def logit_interval(value: float, se: float, *, maximum: float = 1.0) -> list[float]:
    """Return the interval of a value between 0 and `maximum` that is normal in its logit, by the delta method."""
    if se <= 1e-12 or not 0 < value < maximum:
        return [value, value]
    if math.isinf(maximum):
        half = Z95 * se / value
        return [value * math.exp(-half), value * math.exp(half)]
    share = value / maximum
    odds, half = share / (1 - share), Z95 * se / maximum / (share * (1 - share))
    return [maximum / (1 + 1 / (odds * math.exp(sign * min(half, 500.0)))) for sign in (-1, 1)]


def skewed_mean_interval(values: Float[np.ndarray, " n"]) -> list[float]:
    """Return the interval of the mean of non-negative values, corrected for their skewness.

    A cubic transform removes the skewness of the studentised mean and is inverted (Hall 1992, JRSS B 54, 221).
    """
    n, mean, scatter = len(values), float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0
    if scatter <= 1e-12:
        return [mean, mean]
    skewness = float(((values - mean) ** 3).mean()) / scatter**3 / math.sqrt(n)

    def studentised(normal: float) -> float:
        if abs(skewness) < 1e-6:
            return normal
        return 3 / skewness * (float(np.cbrt(1 + skewness * (normal - skewness / 6))) - 1)

    return [max(0.0, mean - studentised(z) * scatter / math.sqrt(n)) for z in (Z95, -Z95)]


def wilson_interval(fraction: float, n: int | float) -> list[float]:
    """Return the interval of a fraction of n images (Wilson 1927, JASA 22, 209)."""
    scale = 1 + Z95**2 / n
    centre = fraction + Z95**2 / (2 * n)
    half = Z95 * math.sqrt(fraction * (1 - fraction) / n + Z95**2 / (4 * n * n))
    return [float(max(0.0, (centre - half) / scale)), float(min(1.0, (centre + half) / scale))]


def calibration_error_interval(
    labels: Labels, probabilities: Probabilities, bins: int = ECE_BINS, *, seed: int = 0
) -> list[float]:
    """Return the interval of the expected calibration error, which covers an error of zero too.

    Scatter within the bins adds to the measured error, which is a sum of absolute gaps between confidence and
    accuracy: on 300 images a perfectly calibrated classifier measures 0.01 to 0.04 (results/coverage.json), and a
    bootstrap adds the scatter a second time. The interval therefore inverts simulated experiments: it contains each
    true error for which the measured one is acceptable at 95 %, in the order of Feldman & Cousins (1998,
    arXiv:physics/9711021). For each true error the gaps of the bins take their most likely values (Chuang & Lai 2000,
    Statistica Sinica 10, 1). The measured error is biased upwards and may lie above its interval.

    Args:
        labels: True classes (n,).
        probabilities: (n, c).
        bins: Number of bins, of equal numbers of images.
        seed: Of the simulated experiments.
    """
    measured = _ReliabilityBins.of(labels, probabilities, bins)
    value = measured.error(measured.gap)
    calibrated = measured.simulate(0.0, seed)
    bias, scatter = calibrated.mean(), max(calibrated.std(), 1e-12)

    def likelihood_ratio(errors: Float[np.ndarray, " k"], simulated: Float[np.ndarray, " d"]) -> np.ndarray:
        """Return -2 ln of the likelihood ratio to the best true error, which is not negative."""
        best = np.minimum(errors - bias, 0.0) / scatter
        return np.asarray(((errors - simulated.mean()) / max(simulated.std(), 1e-12)) ** 2 - best**2)

    def is_accepted(error: float) -> bool:
        simulated = measured.simulate(error, seed)
        ratio = likelihood_ratio(np.array([value]), simulated)[0]
        return bool(ratio <= np.quantile(likelihood_ratio(simulated, simulated), 0.95))

    best = _bisect(0.0, value, lambda error: bool(measured.simulate(error, seed).mean() <= value))
    low = 0.0 if is_accepted(0.0) else _bisect(best, 0.0, is_accepted)
    reach = _MAX_SIGMA * float(scatter + np.sqrt(measured.weight**2 @ measured.variance))
    return [low, _bisect(best, min(1.0, best + reach), is_accepted)]


Bins = Float[np.ndarray, " k"]


@dataclass(frozen=True)
class _ReliabilityBins:
    """Mean confidence, accuracy and number of images of k bins."""

    confidence: Bins
    accuracy: Bins
    count: Bins

    @classmethod
    def of(cls, labels: Labels, probabilities: Probabilities, bins: int) -> "_ReliabilityBins":
        return cls(*metrics.reliability(labels, probabilities, bins).T)

    @property
    def weight(self) -> Bins:
        return np.asarray(self.count / self.count.sum())

    @property
    def gap(self) -> Bins:
        return np.asarray(self.confidence - self.accuracy)

    @property
    def variance(self) -> Bins:
        """Of the gaps; one additional image, correct at the rate of the confidence, keeps it above zero."""
        rate = (self.accuracy * self.count + self.confidence) / (self.count + 1)
        return np.asarray(np.maximum(rate * (1 - rate), 1e-12) / self.count)

    def error(self, gaps: Bins) -> float:
        return float(np.abs(gaps) @ self.weight)

    def gaps_of(self, error: float) -> Bins:
        """Return the most likely gaps of a true error: each is the measured one, shrunk in units of its variance."""
        size, step = np.abs(self.gap), self.weight * self.variance
        multiplier = (size / step).max() if error == 0 else self._multiplier(error, size, step)
        return np.asarray(np.where(self.gap < 0, -1.0, 1.0) * np.maximum(size - multiplier * step, 0))

    def _multiplier(self, error: float, size: Bins, step: Bins) -> float:
        """Return the Lagrange multiplier: the error is linear in it between the kinks where a gap reaches zero."""
        kinks = np.sort(size / step)
        at_kinks = np.maximum(size - kinks[:, None] * step, 0) @ self.weight  # decreasing
        nonzero = size / step > (kinks[at_kinks >= error].max() if (at_kinks >= error).any() else -np.inf)
        return float(((size @ (self.weight * nonzero)) - error) / (step @ (self.weight * nonzero)))

    def simulate(self, error: float, seed: int) -> Float[np.ndarray, " d"]:
        """Return measured errors of experiments whose true error is `error`; a seed gives the same random numbers.

        In new images the labels scatter, and so does the number of images in bins of large and small gaps.
        """
        g, gaps = rng.generator(seed, "calibration error"), self.gaps_of(error)
        count = self.count.astype(np.int64)
        correct = g.binomial(count, np.clip(self.confidence - gaps, 0, 1), (_EXPERIMENTS, len(count)))
        of_bins = np.sqrt(self.weight @ (np.abs(gaps) - error) ** 2 / self.count.sum())
        return np.asarray(
            np.abs(self.confidence - correct / count) @ self.weight + of_bins * g.normal(size=_EXPERIMENTS)
        )


def _bisect(inside: float, outside: float, condition: Callable[[float], bool]) -> float:
    """Return the boundary between `inside`, where the condition is true, and `outside`."""
    for _ in range(_BISECTIONS):
        centre = (inside + outside) / 2
        inside, outside = (centre, outside) if condition(centre) else (inside, centre)
    return inside
