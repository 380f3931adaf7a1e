"""Singular isothermal ellipsoid at the origin (Kormann, Schneider & Bartelmann 1994).

The convention is lenstronomy's: theta_E is the product average, so kappa = theta_E / (2 sqrt(q u^2 + v^2 / q)) with
u along the major axis, and the axis ratio is q = (1 - |e|) / (1 + |e|) with |e|^2 = e1^2 + e2^2.
"""

import torch
from jaxtyping import Float
from torch import Tensor

Field = Float[Tensor, "*#shape"]

# Below this argument six terms of the series are exact in float64 and the quotient is not.
_SERIES_BELOW = 2e-3

# |e|^2 below which the lens counts as round; smaller squares underflow and their roots have infinite gradients.
_ROUND_BELOW = 1e-24


def _series(t: Tensor, sign: float) -> Tensor:
    total = torch.zeros_like(t)
    for k in range(6, -1, -1):
        total = total * (sign * t) + 1 / (2 * k + 1)
    return total


def _arctan_quotient(t: Tensor) -> Tensor:
    """arctan(sqrt t) / sqrt t, smooth through t = 0."""
    root = torch.where(t > _SERIES_BELOW, t, 1.0).sqrt()
    return torch.where(t > _SERIES_BELOW, torch.atan(root) / root, _series(t, -1.0))


def _artanh_quotient(t: Tensor) -> Tensor:
    """artanh(sqrt t) / sqrt t, smooth through t = 0, for 0 <= t < 1."""
    root = torch.where(t > _SERIES_BELOW, t, 0.25).sqrt()
    return torch.where(t > _SERIES_BELOW, torch.atanh(root) / root, _series(t, 1.0))


def _axes(e1: Tensor, e2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return q and the cosine and sine of the major axis' angle; any direction serves for a circle."""
    squared = e1 * e1 + e2 * e2
    round_ = squared < _ROUND_BELOW
    e = torch.where(round_, 1.0, squared).sqrt()
    e = torch.where(round_, 0.0, e)
    angle = torch.atan2(torch.where(round_, 0.0, e2), torch.where(round_, 1.0, e1)) / 2
    return (1 - e) / (1 + e), torch.cos(angle), torch.sin(angle)


def deflection(x: Field, y: Field, *, theta_E: Field, e1: Field, e2: Field) -> tuple[Tensor, Tensor]:
    """Return alpha in arcsec (Kormann et al. 1994, eq. 27a, in product-average units); zero at the origin."""
    q, cos, sin = _axes(e1, e2)
    u, v = x * cos + y * sin, y * cos - x * sin
    squared = q * q * u * u + v * v
    inverse = torch.where(squared > 0, torch.where(squared > 0, squared, 1.0).rsqrt(), 0.0)
    flattening = 1 - q * q
    scale = theta_E * torch.sqrt(q) * inverse
    along = scale * u * _arctan_quotient(flattening * (u * inverse) ** 2)
    across = scale * v * _artanh_quotient(flattening * (v * inverse) ** 2)
    return along * cos - across * sin, along * sin + across * cos


def potential(x: Field, y: Field, *, theta_E: Field, e1: Field, e2: Field) -> Tensor:
    """Psi = theta . alpha in arcsec^2: an isothermal potential is homogeneous of degree one."""
    alpha_x, alpha_y = deflection(x, y, theta_E=theta_E, e1=e1, e2=e2)
    return x * alpha_x + y * alpha_y


def convergence(x: Field, y: Field, *, theta_E: Field, e1: Field, e2: Field) -> Tensor:
    """Kappa = theta_E / (2 sqrt(q u^2 + v^2 / q)), dimensionless; infinite at the origin."""
    q, cos, sin = _axes(e1, e2)
    u, v = x * cos + y * sin, y * cos - x * sin
    return theta_E / (2 * torch.sqrt(q * u * u + v * v / q))
