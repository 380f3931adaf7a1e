"""Distributions of one number. In YAML a bare number is a constant, anything else names its `kind`."""

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field, model_validator

from darklens.config import Frozen


class Constant(Frozen):
    """Always `value`."""

    kind: Literal["constant"] = "constant"
    value: float

    def sample(self, rng: np.random.Generator, size: int) -> np.ndarray:
        """Return `size` copies."""
        return np.full(size, self.value)

    def bounds(self) -> tuple[float, float]:
        """Return the smallest and largest value that can occur."""
        return self.value, self.value


class _Interval(Frozen):
    low: float
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> "_Interval":
        if self.low > self.high:
            raise ValueError(f"low ({self.low}) must not exceed high ({self.high})")
        return self

    def bounds(self) -> tuple[float, float]:
        """Return the smallest and largest value that can occur."""
        return self.low, self.high


class Uniform(_Interval):
    """Uniform between `low` and `high`."""

    kind: Literal["uniform"] = "uniform"

    def sample(self, rng: np.random.Generator, size: int) -> np.ndarray:
        """Draw `size` values."""
        return rng.uniform(self.low, self.high, size)


class PowerLaw(_Interval):
    """dN/dx proportional to x^slope between `low` and `high`, both positive; slope -1 is log-uniform."""

    kind: Literal["power_law"] = "power_law"
    slope: float
    low: float = Field(gt=0)

    def sample(self, rng: np.random.Generator, size: int) -> np.ndarray:
        """Draw `size` values by inverting the cumulative distribution."""
        u = rng.random(size)
        power = self.slope + 1
        if power == 0:
            return np.asarray(self.low * (self.high / self.low) ** u)
        return np.asarray((self.low**power + (self.high**power - self.low**power) * u) ** (1 / power))


class Normal(Frozen):
    """Gaussian with mean `mean` and standard deviation `sigma`."""

    kind: Literal["normal"] = "normal"
    mean: float
    sigma: float = Field(ge=0)

    def sample(self, rng: np.random.Generator, size: int) -> np.ndarray:
        """Draw `size` values."""
        return rng.normal(self.mean, self.sigma, size)

    def bounds(self) -> tuple[float, float]:
        """Return the smallest and largest value that can occur."""
        return (-np.inf, np.inf) if self.sigma else (self.mean, self.mean)


def _bare_number(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {"kind": "constant", "value": value}
    return value


Prior = Annotated[
    Annotated[Constant | Uniform | PowerLaw | Normal, Field(discriminator="kind")],
    BeforeValidator(_bare_number),
]
