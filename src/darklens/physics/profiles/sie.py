"""Singular isothermal ellipsoid at the origin (Kormann, Schneider & Bartelmann 1994).

The convention is lenstronomy's: theta_E is the product average, so kappa = theta_E / (2 sqrt(q u^2 + v^2 / q)) with
u along the major axis, and the axis ratio is q = (1 - |e|) / (1 + |e|) with |e|^2 = e1^2 + e2^2.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from darklens.physics.profiles.card import Parameter
from darklens.physics.profiles.sis import SMALLEST_SQUARE, isothermal_hessian

Field = Float[Tensor, "*#shape"]

PARAMETERS = (
    Parameter(symbol="theta_E", unit="arcsec", low=0.0, high=10.0, meaning="product-average Einstein radius"),
    Parameter(symbol="e1", unit="1", low=-0.7, high=0.7, meaning="ellipticity along x"),
    Parameter(symbol="e2", unit="1", low=-0.7, high=0.7, meaning="ellipticity along x = y"),
)
REFERENCE = "Kormann, Schneider & Bartelmann 1994, A&A 284, 285"

# 1 - q^2 below which four terms of the series are exact in float64.
_SERIES_BELOW = 1e-4

# |e|^2 below which the lens counts as round; smaller squares underflow and their roots have infinite gradients.
_ROUND_BELOW = 1e-24


def _axes(e1: Tensor, e2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return q and the cosine and sine of the angle of the major axis; 1 and 0 for a circle."""
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
    away = squared > 0
    inverse = torch.where(away, torch.where(away, squared, 1.0).rsqrt(), 0.0)
    u, v = u * inverse, v * inverse
    # arctan(f u) / f and artanh(f v) / f with f^2 = 1 - q^2, by their series where f is small.
    square = (1 - q) * (1 + q)
    oblate = square > _SERIES_BELOW
    f = torch.where(oblate, square, 1.0).sqrt()
    scale = theta_E * torch.sqrt(q)
    along = scale * torch.where(oblate, torch.atan(f * u) / f, _series(u, -square))
    across = scale * torch.where(oblate, torch.atanh(torch.where(oblate, f, 0.0) * v) / f, _series(v, square))
    return along * cos - across * sin, along * sin + across * cos


def _series(w: Tensor, square: Tensor) -> Tensor:
    t = square * w * w
    return w * (1 + t * (1 / 3 + t * (1 / 5 + t / 7)))


def potential(x: Field, y: Field, *, theta_E: Field, e1: Field, e2: Field) -> Tensor:
    """Return psi = theta . alpha in arcsec^2: an isothermal potential is homogeneous of degree one."""
    alpha_x, alpha_y = deflection(x, y, theta_E=theta_E, e1=e1, e2=e2)
    return x * alpha_x + y * alpha_y


def convergence(x: Field, y: Field, *, theta_E: Field, e1: Field, e2: Field) -> Tensor:
    """Return kappa = theta_E / (2 sqrt(q u^2 + v^2 / q)), dimensionless; kept finite at the origin."""
    q, cos, sin = _axes(e1, e2)
    u, v = x * cos + y * sin, y * cos - x * sin
    return theta_E / (2 * (q * u * u + v * v / q).clamp_min(SMALLEST_SQUARE).sqrt())


def hessian(x: Field, y: Field, *, theta_E: Field, e1: Field, e2: Field) -> tuple[Tensor, Tensor, Tensor]:
    """Return psi_xx, psi_xy and psi_yy, dimensionless; zero at the origin, where they are infinite."""
    return isothermal_hessian(x, y, convergence(x, y, theta_E=theta_E, e1=e1, e2=e2))
