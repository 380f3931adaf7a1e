"""Singular isothermal sphere (Schneider, Ehlers & Falco 1992, sec. 8.1.4), centred at the origin."""

import torch
from jaxtyping import Float
from torch import Tensor

from darklens.physics.profiles.card import Parameter

Field = Float[Tensor, "*#shape"]

PARAMETERS = (Parameter(symbol="theta_E", unit="arcsec", low=0.0, high=10.0, meaning="Einstein radius"),)
REFERENCE = "Schneider, Ehlers & Falco 1992, sec. 8.1.4"


SMALLEST_SQUARE = 1e-24  # arcsec^2; of much less, the gradient of the convergence overflows in float32


def radius(x: Tensor, y: Tensor) -> Tensor:
    """|theta| with a zero, not NaN, gradient at the origin."""
    squared = x * x + y * y
    return torch.where(squared > 0, torch.where(squared > 0, squared, 1.0).sqrt(), 0.0)


def potential(x: Field, y: Field, *, theta_E: Field) -> Tensor:
    """Return psi = theta_E |theta| in arcsec^2; all arguments in arcsec, broadcast together."""
    return theta_E * radius(x, y)


def deflection(x: Field, y: Field, *, theta_E: Field) -> tuple[Tensor, Tensor]:
    """Return alpha = theta_E theta / |theta| in arcsec; zero at the origin, where the direction is undefined."""
    squared = x * x + y * y
    away = squared > 0
    scale = theta_E * torch.where(away, torch.where(away, squared, 1.0).rsqrt(), 0.0)
    return scale * x, scale * y


def convergence(x: Field, y: Field, *, theta_E: Field) -> Tensor:
    """Return kappa = theta_E / (2 |theta|), dimensionless; kept finite at the origin, where it diverges."""
    return theta_E / (2 * (x * x + y * y).clamp_min(SMALLEST_SQUARE).sqrt())


def hessian(x: Field, y: Field, *, theta_E: Field) -> tuple[Tensor, Tensor, Tensor]:
    """Return psi_xx, psi_xy and psi_yy, dimensionless; zero at the origin, where they are infinite."""
    return isothermal_hessian(x, y, convergence(x, y, theta_E=theta_E))


def isothermal_hessian(x: Field, y: Field, kappa: Field) -> tuple[Tensor, Tensor, Tensor]:
    """Return the second derivatives of an isothermal potential, round or elliptical, from its convergence.

    Psi is homogeneous of degree one, so alpha is constant along the radius and 2 kappa is the tangential derivative.
    """
    squared = x * x + y * y
    away = squared > 0
    across = torch.where(away, 2 * kappa / torch.where(away, squared, 1.0), 0.0)
    return across * y * y, -across * x * y, across * x * x
