"""Distributions of a number, each by its quantile function. In YAML a bare number is a constant."""

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from jaxtyping import Float
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from darklens.config import Frozen

Numbers = Float[np.ndarray, "*shape"]
_LARGEST = 1e30  # absolute value of a number; images are computed in float32
Number = Annotated[float, Field(ge=-_LARGEST, le=_LARGEST)]
P = TypeVar("P", bound=Frozen)


class Constant(Frozen):
    """Always `value`."""

    kind: Literal["constant"] = "constant"
    value: Number

    def quantile(self, u: Numbers) -> Numbers:
        """Return the value, in the shape of `u`."""
        return np.full(np.shape(u), self.value)

    def bounds(self) -> tuple[float, float]:
        """Return the smallest and largest value that can occur."""
        return self.value, self.value

    def scaled(self, factor: float) -> "Constant":
        """Return the distribution of `factor` times the number."""
        return _times(self, factor, "value")


class _Interval(Frozen):
    low: Number
    high: Number

    @model_validator(mode="after")
    def _ordered(self) -> "_Interval":
        if self.low > self.high:
            raise ValueError(f"low ({self.low}) must not exceed high ({self.high})")
        return self

    def bounds(self) -> tuple[float, float]:
        """Return the smallest and largest value that can occur."""
        return self.low, self.high

    def scaled(self, factor: float) -> "_Interval":
        """Return the distribution of `factor` times the number."""
        return _times(self, factor, "low", "high")


class Uniform(_Interval):
    """Uniform between `low` and `high`."""

    kind: Literal["uniform"] = "uniform"

    def quantile(self, u: Numbers) -> Numbers:
        """Return the value at cumulative probability `u`."""
        return self.low + (self.high - self.low) * u


class PowerLaw(_Interval):
    """dN/dx proportional to x^slope between `low` and `high`, both positive; slope -1 is log-uniform."""

    kind: Literal["power_law"] = "power_law"
    slope: Number
    low: float = Field(gt=0, le=_LARGEST)

    @model_validator(mode="after")
    def _can_be_computed(self) -> "PowerLaw":
        try:
            with np.errstate(all="ignore"):
                is_finite = bool(np.isfinite(self.quantile(np.array([0.0, 0.5, 1.0]))).all())
        except OverflowError:
            is_finite = False
        if not is_finite:
            raise ValueError(f"a slope of {self.slope:g} between {self.low:g} and {self.high:g} cannot be computed")
        return self

    def quantile(self, u: Numbers) -> Numbers:
        """Return the value at cumulative probability `u`."""
        power = self.slope + 1
        if power == 0:
            return np.asarray(self.low * (self.high / self.low) ** u)
        return np.asarray((self.low**power + (self.high**power - self.low**power) * u) ** (1 / power))


class Normal(Frozen):
    """Gaussian with mean `mean` and standard deviation `sigma`, truncated at `low` and `high`."""

    kind: Literal["normal"] = "normal"
    mean: Number
    sigma: float = Field(ge=0, le=_LARGEST)
    low: Number | None = None
    high: Number | None = None

    @model_validator(mode="after")
    def _mean_within_cuts(self) -> "Normal":
        low, high = self._cuts()
        if not low <= self.mean <= high:
            raise ValueError(f"the mean ({self.mean}) must lie between low ({low}) and high ({high})")
        return self

    def _cuts(self) -> tuple[float, float]:
        return -math.inf if self.low is None else self.low, math.inf if self.high is None else self.high

    def quantile(self, u: Numbers) -> Numbers:
        """Return the value at cumulative probability `u`."""
        from scipy.special import ndtr, ndtri

        if self.sigma == 0:
            return np.full(np.shape(u), self.mean)
        below, above = (ndtr((cut - self.mean) / self.sigma) for cut in self._cuts())
        return np.asarray(np.clip(self.mean + self.sigma * ndtri(below + (above - below) * u), *self._cuts()))

    def bounds(self) -> tuple[float, float]:
        """Return the smallest and largest value that can occur."""
        return self._cuts() if self.sigma else (self.mean, self.mean)

    def scaled(self, factor: float) -> "Normal":
        """Return the distribution of `factor` times the number."""
        return _times(self, factor, "mean", "sigma", "low", "high")


class LogNormal(Frozen):
    """Gaussian in log10 x about log10 `median` with a scatter of `dex`, truncated at `low` and `high`."""

    kind: Literal["log_normal"] = "log_normal"
    median: float = Field(gt=0, le=_LARGEST)
    dex: float = Field(ge=0, le=10)
    low: float | None = Field(default=None, gt=0, le=_LARGEST)
    high: float | None = Field(default=None, gt=0, le=_LARGEST)

    @model_validator(mode="after")
    def _median_within_cuts(self) -> "LogNormal":
        self._log10()
        return self

    def _log10(self) -> Normal:
        low, high = (None if cut is None else math.log10(cut) for cut in (self.low, self.high))
        return Normal(mean=math.log10(self.median), sigma=self.dex, low=low, high=high)

    def quantile(self, u: Numbers) -> Numbers:
        """Return the value at cumulative probability `u`."""
        return np.asarray(10.0 ** self._log10().quantile(u))

    def bounds(self) -> tuple[float, float]:
        """Return the smallest and largest value that can occur."""
        low, high = self._log10().bounds()
        return (0.0 if low == -math.inf else 10**low), (math.inf if high == math.inf else 10**high)

    def scaled(self, factor: float) -> "LogNormal":
        """Return the distribution of `factor` times the number."""
        return _times(self, factor, "median", "low", "high")


def _times(prior: P, factor: float, *names: str) -> P:
    """Return a copy of a distribution with these of its parameters multiplied by a positive factor."""
    values = {name: getattr(prior, name) for name in names}
    return prior.model_copy(update={name: value * factor for name, value in values.items() if value is not None})


def _bare_number(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {"kind": "constant", "value": value}
    return value


Prior = Annotated[
    Annotated[Constant | Uniform | PowerLaw | Normal | LogNormal, Field(discriminator="kind")],
    BeforeValidator(_bare_number),
]


def unless(is_wrong: Callable[[float, float], bool], message: str) -> AfterValidator:
    """Return the annotation of a prior that is refused with a message if its bounds (low, high) are wrong."""

    def check(prior: Any) -> Any:
        if is_wrong(*prior.bounds()):
            raise ValueError(message)
        return prior

    return AfterValidator(check)


PositivePrior = Annotated[Prior, unless(lambda low, _: low <= 0, "must be positive")]
