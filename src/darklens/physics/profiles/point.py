"""Point mass at the origin (Schneider, Ehlers & Falco 1992, sec. 8.1.2)."""

import torch
from jaxtyping import Float
from torch import Tensor

from darklens.physics.profiles.card import Parameter

Field = Float[Tensor, "*#shape"]

PARAMETERS = (Parameter(symbol="theta_E", unit="arcsec", low=0.0, high=10.0, meaning="Einstein radius"),)
REFERENCE = "Schneider, Ehlers & Falco 1992, sec. 8.1.2"

SMALLEST_SQUARE = 1e-24  # arcsec^2


def potential(x: Field, y: Field, *, theta_E: Field) -> Tensor:
    """Return psi = theta_E^2 ln |theta| in arcsec^2 (the zero is at |theta| = 1 arcsec); arguments in arcsec.

    It is kept finite on the mass itself.
    """
    return theta_E**2 * torch.log((x * x + y * y).clamp_min(SMALLEST_SQUARE)) / 2


def deflection(x: Field, y: Field, *, theta_E: Field) -> tuple[Tensor, Tensor]:
    """Return alpha = theta_E^2 theta / |theta|^2 in arcsec; zero on the mass itself."""
    scale = theta_E**2 / (x * x + y * y).clamp_min(SMALLEST_SQUARE)
    return scale * x, scale * y


def convergence(x: Field, y: Field, *, theta_E: Field) -> Tensor:
    """Return kappa = 0 everywhere off the mass."""
    return torch.zeros_like(x * y * theta_E)
