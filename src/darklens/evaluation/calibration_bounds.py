"""The 95 % interval of the calibration error, which holds it where it is zero too.

The sum of gaps between confidence and accuracy is never negative, so scatter within bins adds to it: a perfect
classifier judged on 300 images shows 0.01 to 0.04 (results/coverage.json), and resampled images add the scatter again.
What can be simulated is how large an error would show for a given true one. The interval has all true errors with
which the one that was seen goes together, in the order of Feldman & Cousins (1998, arXiv:physics/9711021); the gaps of
the bins are taken as the most likely ones that make up that error (Chuang & Lai 2000, Statistica Sinica 10, 1).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from darklens import rng
from darklens.evaluation.metrics import ECE_BINS, Labels, Probabilities, reliability

_DRAWS = 1000
_HALVINGS = 12
_FURTHEST = 8.0  # standard errors beyond what was seen, where each interval has ended

Bins = Float[np.ndarray, " k"]
Shown = Float[np.ndarray, " d"]


def interval(labels: Labels, probabilities: Probabilities, bins: int = ECE_BINS, *, seed: int = 0) -> list[float]:
    """Return the 95 % interval of the calibration error in so many bins of equal numbers of images.

    The error that was seen is biased upwards, and may lie above its own interval where that is close to zero.

    Args:
        labels: True classes (n,).
        probabilities: (n, c).
        bins: Their number.
        seed: Of the simulated experiments.
    """
    seen = _Seen.of(labels, probabilities, bins)
    value = seen.error(seen.gap)
    at_zero = seen.simulated(0.0, seed)
    zero, its_scatter = at_zero.mean(), max(at_zero.std(), 1e-12)

    def distance(shown: Float[np.ndarray, " k"], simulated: Shown) -> Float[np.ndarray, " k"]:
        """Return -2 ln of the likelihood over that of the best error, which is not below zero."""
        best = np.minimum(shown - zero, 0.0) / its_scatter
        return np.asarray(((shown - simulated.mean()) / max(simulated.std(), 1e-12)) ** 2 - best**2)

    def goes_together(error: float) -> bool:
        simulated = seen.simulated(error, seed)
        own = distance(np.array([value]), simulated)[0]
        return bool(own <= np.quantile(distance(simulated, simulated), 0.95))

    middle = _end(0.0, value, lambda error: bool(seen.simulated(error, seed).mean() <= value))
    low = 0.0 if goes_together(0.0) else _end(middle, 0.0, goes_together)
    reach = _FURTHEST * float(its_scatter + np.sqrt(seen.weight**2 @ seen.variance))
    return [low, _end(middle, min(1.0, middle + reach), goes_together)]


@dataclass(frozen=True)
class _Seen:
    """Bins of equal numbers of images."""

    confidence: Bins
    accuracy: Bins
    count: Bins

    @classmethod
    def of(cls, labels: Labels, probabilities: Probabilities, bins: int) -> "_Seen":
        return cls(*reliability(labels, probabilities, bins).T)

    @property
    def weight(self) -> Bins:
        return np.asarray(self.count / self.count.sum())

    @property
    def gap(self) -> Bins:
        return np.asarray(self.confidence - self.accuracy)

    @property
    def variance(self) -> Bins:
        """Of the gaps; one image more, right as often as it is confident, leaves no bin without any."""
        rate = (self.accuracy * self.count + self.confidence) / (self.count + 1)
        return np.asarray(np.maximum(rate * (1 - rate), 1e-12) / self.count)

    def error(self, gaps: Bins) -> float:
        return float(np.abs(gaps) @ self.weight)

    def gaps_of(self, error: float) -> Bins:
        """Return the most likely gaps that make up an error: those seen, moved by the same in each bin's variance."""
        size, step = np.abs(self.gap), self.weight * self.variance
        largest = (size / step).max() if error == 0 else self._multiplier(error, size, step)
        return np.asarray(np.where(self.gap < 0, -1.0, 1.0) * np.maximum(size - largest * step, 0))

    def _multiplier(self, error: float, size: Bins, step: Bins) -> float:
        """Return the multiplier of Lagrange, from the bins that it leaves a gap: the error is linear between kinks."""
        kinks = np.sort(size / step)
        at_kinks = np.maximum(size - kinks[:, None] * step, 0) @ self.weight  # falls
        left = size / step > (kinks[at_kinks >= error].max() if (at_kinks >= error).any() else -np.inf)
        return float(((size @ (self.weight * left)) - error) / (step @ (self.weight * left)))

    def simulated(self, error: float, seed: int) -> Shown:
        """Return the errors that would show, were `error` the true one; a seed draws the same experiments.

        Images drawn anew are right or wrong by chance, and are of bins with larger or smaller gaps by chance.
        """
        g, gaps = rng.generator(seed, "calibration error"), self.gaps_of(error)
        count = self.count.astype(np.int64)
        right = g.binomial(count, np.clip(self.confidence - gaps, 0, 1), (_DRAWS, len(count)))
        of_bins = np.sqrt(self.weight @ (np.abs(gaps) - error) ** 2 / self.count.sum())
        return np.asarray(np.abs(self.confidence - right / count) @ self.weight + of_bins * g.normal(size=_DRAWS))


def _end(inside: float, outside: float, holds: Callable[[float], bool]) -> float:
    """Return where a condition that holds inside ends on the way outside."""
    for _ in range(_HALVINGS):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if holds(middle) else (inside, middle)
    return inside
