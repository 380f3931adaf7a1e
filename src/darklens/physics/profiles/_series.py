"""Quotients with a removable singularity, evaluated by their series where the closed form loses precision."""

import torch
from torch import Tensor

# Below this argument the series here are exact in float64, and the quotients' derivatives are not.
_SERIES_BELOW = 2e-3

# Every branch of a `where` gets a finite argument where it is not selected: NaN or infinity would spoil gradients.


def odd_series(t: Tensor, *, first: int = 1, terms: int = 7) -> Tensor:
    """Return 1 / first + t / (first + 2) + t^2 / (first + 4) + ..."""
    total = torch.zeros_like(t)
    for k in range(terms - 1, -1, -1):
        total = total * t + 1 / (2 * k + first)
    return total


def signed_quotient(t: Tensor) -> Tensor:
    """Return artanh(sqrt t) / sqrt t for 0 < t < 1 and its continuation for t < 0, arctan(sqrt -t) / sqrt -t."""
    above = torch.where(t > _SERIES_BELOW, t, 0.25).sqrt()
    below = torch.where(t < -_SERIES_BELOW, -t, 1.0).sqrt()
    closed = torch.where(t > 0, torch.atanh(above) / above, torch.atan(below) / below)
    far = t.abs() > _SERIES_BELOW
    return torch.where(far, closed, odd_series(torch.where(far, 0.0, t)))


def log1p_quotient(z: Tensor) -> Tensor:
    """Return ln(1 + z) / z, smooth through z = 0, for z > -1."""
    far = z.abs() > _SERIES_BELOW
    small, safe = torch.where(far, 0.0, z), torch.where(far, z, 1.0)
    series = torch.zeros_like(z)
    for k in range(6, -1, -1):
        series = 1 / (k + 1) - small * series
    return torch.where(far, torch.log1p(safe) / safe, series)
