"""Uniform line mass centred at the origin: the lensing model of a vortex.

In complex notation a line of mass m (the theta_E^2 of the same mass as a point) with end points z1, z2, length L
and direction phi deflects by alpha* = (m / L) e^{-i phi} ln[(z - z1) / (z - z2)], the point-mass deflection
m / z averaged along the line. The functions below are its real form in the frame of the line, where u runs along
the line, v across it, and h = L / 2. It keeps full precision for a line much shorter than its distance.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from darklens.physics.profiles.card import Parameter

Field = Float[Tensor, "*#shape"]

_SMALLEST_SQUARE = 1e-24  # arcsec^2
_SHORTEST = 1e-6  # arcsec; a shorter line is one of this length, which is a point to every pixel

PARAMETERS = (
    Parameter(symbol="mass", unit="arcsec^2", low=0.0, high=10.0, meaning="theta_E^2 of the same mass as a point"),
    Parameter(symbol="length", unit="arcsec", low=_SHORTEST, high=20.0, meaning="full length"),
    Parameter(symbol="angle", unit="radian", low=-3.1416, high=3.1416, meaning="direction, from x towards y"),
)
REFERENCE = "docs/physics.md, 'Uniform line mass'"


class LineTerms(NamedTuple):
    """Terms of the deflection of a line that do not depend on position."""

    cos: Tensor
    sin: Tensor
    half_length: Tensor
    density: Tensor


def terms(*, mass: Field, length: Field, angle: Field) -> LineTerms:
    """Return the terms of `deflection` that do not depend on the position; arguments as there."""
    length = length.clamp_min(_SHORTEST)
    return LineTerms(torch.cos(angle), torch.sin(angle), length / 2, mass / length)


def _frame(x: Tensor, y: Tensor, line: LineTerms) -> tuple[Tensor, Tensor, Tensor]:
    return x * line.cos + y * line.sin, y * line.cos - x * line.sin, line.half_length


def potential(x: Field, y: Field, *, mass: Field, length: Field, angle: Field) -> Tensor:
    """Return psi in arcsec^2; x, y, length in arcsec, mass in arcsec^2, angle in radians from x towards y."""
    line = terms(mass=mass, length=length, angle=angle)
    u, v, h = _frame(x, y, line)
    ahead, behind = u + h, u - h
    to_start, to_end = ((part**2 + v * v).clamp_min(_SMALLEST_SQUARE) for part in (ahead, behind))
    logs = ahead * torch.log(to_start) - behind * torch.log(to_end)
    opening = torch.atan2(2 * h * v, u * u + v * v - h * h)
    return line.density * (logs / 2 - 2 * h + v * opening)


def deflection(x: Field, y: Field, *, mass: Field, length: Field, angle: Field) -> tuple[Tensor, Tensor]:
    """Return alpha in arcsec; units as in `potential`.

    The component along the line diverges logarithmically at the two end points, where it is kept finite. The component
    across the line jumps by 2 pi mass / length at the line, as at any mass sheet.
    """
    return deflection_from(x, y, terms(mass=mass, length=length, angle=angle))


def deflection_from(x: Field, y: Field, line: LineTerms) -> tuple[Tensor, Tensor]:
    """Return `deflection` (arcsec) from the terms of a line."""
    u, v, h = _frame(x, y, line)
    # artanh[2 u h / (u^2 + v^2 + h^2)], written from the nearer end point. In float32 the quotient rounds to 1, and the
    # deflection to infinity, already 2e-4 h from the end point.
    side = torch.where(u < 0, -1.0, 1.0).to(u)
    to_end = ((u - side * h) ** 2 + v * v).clamp_min(_SMALLEST_SQUARE)
    along = line.density * side / 2 * torch.log1p(4 * side * u * h / to_end)
    across = line.density * torch.atan2(2 * h * v, u * u + v * v - h * h)
    return along * line.cos - across * line.sin, along * line.sin + across * line.cos


def convergence(x: Field, y: Field, *, mass: Field, length: Field, angle: Field) -> Tensor:
    """Return kappa = 0 everywhere off the line."""
    return torch.zeros_like(x * y * mass * length * angle)
