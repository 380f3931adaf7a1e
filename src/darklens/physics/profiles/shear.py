"""External shear about the origin (Schneider, Ehlers & Falco 1992, sec. 8.2.2)."""

import torch
from jaxtyping import Float
from torch import Tensor

from darklens.physics.profiles.card import Parameter

Field = Float[Tensor, "*#shape"]

PARAMETERS = (
    Parameter(symbol="gamma1", unit="1", low=-0.7, high=0.7, meaning="shear along x"),
    Parameter(symbol="gamma2", unit="1", low=-0.7, high=0.7, meaning="shear along x = y"),
)
REFERENCE = "Schneider, Ehlers & Falco 1992, sec. 8.2.2"


def potential(x: Field, y: Field, *, gamma1: Field, gamma2: Field) -> Tensor:
    """Return psi = gamma1 (x^2 - y^2) / 2 + gamma2 x y in arcsec^2; x, y in arcsec, gamma dimensionless."""
    return gamma1 * (x * x - y * y) / 2 + gamma2 * x * y


def deflection(x: Field, y: Field, *, gamma1: Field, gamma2: Field) -> tuple[Tensor, Tensor]:
    """Return alpha = (gamma1 x + gamma2 y, gamma2 x - gamma1 y) in arcsec."""
    return gamma1 * x + gamma2 * y, gamma2 * x - gamma1 * y


def convergence(x: Field, y: Field, *, gamma1: Field, gamma2: Field) -> Tensor:
    """Return kappa = 0: a shear has no mass."""
    return torch.zeros_like(x * y * gamma1 * gamma2)


def hessian(x: Field, y: Field, *, gamma1: Field, gamma2: Field) -> tuple[Tensor, Tensor, Tensor]:
    """Return psi_xx, psi_xy and psi_yy, dimensionless and constant, in the shape of gamma."""
    return gamma1, gamma2, -gamma1
