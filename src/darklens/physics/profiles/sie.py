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

_NEARLY_ROUND = 1e-4  # |e|^2 below which the series is exact in float64
_N_TERMS = 9  # of the series


def _oval(x: Field, y: Field, e1: Field, e2: Field) -> tuple[Tensor, Tensor, Tensor]:
    """Return (1 + |e|)^2 (q^2 u^2 + v^2), |e|^2 and e1 (x^2 - y^2) + 2 e2 x y, which are smooth in e1 and e2."""
    squared, aligned = e1 * e1 + e2 * e2, e1 * (x * x - y * y) + 2 * e2 * x * y
    return (1 + squared) * (x * x + y * y) - 2 * aligned, squared, aligned


def deflection(x: Field, y: Field, *, theta_E: Field, e1: Field, e2: Field) -> tuple[Tensor, Tensor]:
    """Return alpha in arcsec (Kormann et al. 1994, eq. 27a, in product-average units); zero at the origin.

    A nearly round lens has no well-defined major axis, so its deflection is a series in e1 and e2. It is exact, also in
    its derivatives, for a round lens.
    """
    oval, squared, aligned = _oval(x, y, e1, e2)
    near = squared < _NEARLY_ROUND
    away = oval > 0
    inverse = torch.where(away, torch.where(away, oval, 1.0).rsqrt(), 0.0)
    # With T(t) = arctan(t^1/2) / t^1/2, the deflections along the axes are proportional to u T(p + m) and v T(p - m),
    # where m = |e| k. Mean and half the difference of both T are `mean` and m * `slope`, by the series of T.
    twice = 2 * inverse * inverse
    k, p = twice * (x * x + y * y), twice * aligned
    mean, slope = torch.zeros_like(p), torch.zeros_like(p)
    for n in range(_N_TERMS, -1, -1):
        mean, slope = 1 / (2 * n + 1) - (p * mean + squared * k * k * slope), -(mean + p * slope)
    scale = theta_E * torch.sqrt(1 - squared)
    of_round = scale * inverse
    along_x = of_round * (mean * x + k * slope * (e1 * x + e2 * y))
    along_y = of_round * (mean * y + k * slope * (e2 * x - e1 * y))
    far_x, far_y = _far_from_round(x, y, scale, torch.where(near, 0.5, e1), torch.where(near, 0.0, e2))
    return torch.where(near, along_x, far_x), torch.where(near, along_y, far_y)


def _far_from_round(x: Field, y: Field, scale: Field, e1: Field, e2: Field) -> tuple[Tensor, Tensor]:
    """Return alpha in closed form, for theta_E (1 - |e|^2)^1/2."""
    oval, squared, _ = _oval(x, y, e1, e2)
    away = oval > 0
    inverse = torch.where(away, torch.where(away, oval, 1.0).rsqrt(), 0.0)
    angle = torch.atan2(e2, e1) / 2
    cos, sin = torch.cos(angle), torch.sin(angle)
    f = 2 * torch.sqrt(squared.sqrt())
    u, v = x * cos + y * sin, y * cos - x * sin
    along, across = torch.atan(f * u * inverse) * scale / f, torch.atanh(f * v * inverse) * scale / f
    return along * cos - across * sin, along * sin + across * cos


def potential(x: Field, y: Field, *, theta_E: Field, e1: Field, e2: Field) -> Tensor:
    """Return psi = theta . alpha in arcsec^2: an isothermal potential is homogeneous of degree one."""
    alpha_x, alpha_y = deflection(x, y, theta_E=theta_E, e1=e1, e2=e2)
    return x * alpha_x + y * alpha_y


def convergence(x: Field, y: Field, *, theta_E: Field, e1: Field, e2: Field) -> Tensor:
    """Return kappa = theta_E / (2 sqrt(q u^2 + v^2 / q)), dimensionless; kept finite at the origin."""
    oval, squared, _ = _oval(x, y, e1, e2)
    return theta_E * torch.sqrt(1 - squared) / (2 * oval.clamp_min(SMALLEST_SQUARE).sqrt())


def hessian(x: Field, y: Field, *, theta_E: Field, e1: Field, e2: Field) -> tuple[Tensor, Tensor, Tensor]:
    """Return psi_xx, psi_xy and psi_yy, dimensionless; zero at the origin, where they are infinite."""
    return isothermal_hessian(x, y, convergence(x, y, theta_E=theta_E, e1=e1, e2=e2))
