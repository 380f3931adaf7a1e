"""Singular isothermal sphere (Schneider, Ehlers & Falco 1992, sec. 8.1.4), centred at the origin."""

import torch
from jaxtyping import Float
from torch import Tensor

Field = Float[Tensor, "*#shape"]


def _radius(x: Tensor, y: Tensor) -> Tensor:
    """|theta| with a zero, not NaN, gradient at the origin."""
    squared = x * x + y * y
    return torch.where(squared > 0, torch.where(squared > 0, squared, 1.0).sqrt(), 0.0)


def potential(x: Field, y: Field, *, theta_E: Field) -> Tensor:
    """Psi = theta_E |theta| in arcsec^2; all arguments in arcsec, broadcast together."""
    return theta_E * _radius(x, y)


def deflection(x: Field, y: Field, *, theta_E: Field) -> tuple[Tensor, Tensor]:
    """Alpha = theta_E theta / |theta| in arcsec; zero at the origin, where the direction is undefined."""
    squared = x * x + y * y
    away = squared > 0
    scale = theta_E * torch.where(away, torch.where(away, squared, 1.0).rsqrt(), 0.0)
    return scale * x, scale * y


def convergence(x: Field, y: Field, *, theta_E: Field) -> Tensor:
    """Kappa = theta_E / (2 |theta|), dimensionless; infinite at the origin."""
    return theta_E / (2 * _radius(x, y))
