"""Pseudo-Jaffe profile (dual pseudo-isothermal, dPIE) centred at the origin (Eliasdottir et al. 2007, appendix A).

An isothermal sphere with a core R_a that is truncated at R_s > R_a:

    kappa = theta_E / 2 [1 / sqrt(R_a^2 + r^2) - 1 / sqrt(R_s^2 + r^2)],

of total mass pi theta_E (R_s - R_a) times the critical surface density per square arcsec. theta_E is the Einstein
radius of the sphere without core and truncation; lenstronomy's PJAFFE has sigma0 = theta_E (R_s - R_a) / (2 R_a R_s).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from darklens.physics.profiles.card import Parameter

Field = Float[Tensor, "*#shape"]

PARAMETERS = (
    Parameter(
        symbol="theta_E", unit="arcsec", low=0.0, high=10.0, meaning="Einstein radius for R_a = 0 and no truncation"
    ),
    Parameter(symbol="R_a", unit="arcsec", low=0.0, high=10.0, meaning="core radius"),
    Parameter(symbol="R_s", unit="arcsec", low=1e-6, high=100.0, meaning="truncation radius, above R_a"),
)
REFERENCE = "Eliasdottir et al. 2007, arXiv:0710.5636, appendix A"

_SMALLEST_SQUARE = 1e-16  # arcsec^2; keeps the gradient of a singular profile finite at the origin


def _radii(x: Tensor, y: Tensor, R_a: Tensor, R_s: Tensor) -> tuple[Tensor, Tensor]:
    square = (x * x + y * y).clamp_min(_SMALLEST_SQUARE)
    return torch.sqrt(R_a * R_a + square), torch.sqrt(R_s * R_s + square)


def potential(x: Field, y: Field, *, theta_E: Field, R_a: Field, R_s: Field) -> Tensor:
    """Psi in arcsec^2 up to a constant; all arguments in arcsec, broadcast together."""
    core, truncation = _radii(x, y, R_a, R_s)
    return theta_E * (core - R_a * torch.log(R_a + core) - truncation + R_s * torch.log(R_s + truncation))


def deflection(x: Field, y: Field, *, theta_E: Field, R_a: Field, R_s: Field) -> tuple[Tensor, Tensor]:
    """Return alpha in arcsec (Eliasdottir et al. 2007, eq. A20)."""
    core, truncation = _radii(x, y, R_a, R_s)
    scale = theta_E * (1 / (R_a + core) - 1 / (R_s + truncation))
    return scale * x, scale * y


def convergence(x: Field, y: Field, *, theta_E: Field, R_a: Field, R_s: Field) -> Tensor:
    """Kappa, dimensionless (Eliasdottir et al. 2007, eq. A3)."""
    core, truncation = _radii(x, y, R_a, R_s)
    return theta_E / 2 * (1 / core - 1 / truncation)
