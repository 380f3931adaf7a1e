"""Navarro-Frenk-White halo centred at the origin, rho = rho_0 / [(r / R_s) (1 + r / R_s)^2].

The convention is lenstronomy's: alpha_Rs is the deflection at R_s. With x = r / R_s and F(x) = arccosh(1 / x) /
sqrt(1 - x^2), which goes on for x > 1 as arccos(1 / x) / sqrt(x^2 - 1), and k = alpha_Rs / (1 - ln 2),

    psi = k R_s h / 2, h = ln^2(x / 2) - (1 - x^2) F^2;    alpha = k g / x, g = ln(x / 2) + F;
    kappa = k / (2 R_s) (F - 1) / (1 - x^2).

References: Navarro, Frenk & White 1997, ApJ 490, 493 (the density); Bartelmann 1996, A&A 313, 697, and Wright &
Brainerd 2000, ApJ 534, 34, eq. 11 and 13 (the lens).
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from darklens.physics.profiles._series import log1p_quotient, odd_series, signed_quotient
from darklens.physics.profiles.card import Parameter

Field = Float[Tensor, "*#shape"]

SMALLEST_RADIUS = 1e-6  # arcsec; smaller scale and truncation radii count as this one
SCALE_RADIUS = Parameter(symbol="R_s", unit="arcsec", low=SMALLEST_RADIUS, high=100.0, meaning="scale radius")
PARAMETERS = (
    Parameter(symbol="alpha_Rs", unit="arcsec", low=0.0, high=10.0, meaning="deflection at R_s"),
    SCALE_RADIUS,
)
REFERENCE = "Wright & Brainerd 2000, ApJ 534, 34"

_SMALLEST_SQUARE = 1e-18  # of x^2; the reciprocal of less, over a small R_s, overflows in float32
_INNER_BELOW = 0.25  # of x^2: g and h are differences of nearly equal terms inside
_SERIES_BELOW = 0.05  # of |1 - x^2|, where float32 loses (F - 1) / (1 - x^2)

DEFLECTION_AT_R_S = 1 - math.log(2)  # g(1)


def scaled_square(x: Tensor, y: Tensor, R_s: Tensor) -> Tensor:
    """x^2 = r^2 / R_s^2, kept from zero: the convergence there is infinite, as a logarithm."""
    return ((x * x + y * y) / R_s**2).clamp_min(_SMALLEST_SQUARE)


def _inner(u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return u, s = sqrt(1 - u) and w = (1 - s) / 2, for u = x^2 where it is small and a constant elsewhere."""
    safe = torch.where(u < _INNER_BELOW, u, _INNER_BELOW)
    s = torch.sqrt(1 - safe)
    return safe, s, safe / (2 * (1 + s))


def f_and_g(u: Tensor) -> tuple[Tensor, Tensor]:
    """Return F and g / x^2, both positive, to full precision for every u = x^2 > 0."""
    log_half = torch.log(u / 4) / 2
    _, s, w = _inner(u)
    # F = [ln((1 + s) / 2) - ln(x / 2)] / s, so the ln(x / 2) of g cancels but for a part in x^2.
    g_inner = -(log_half + log1p_quotient(-w) / 2) / (s * (1 + s))
    outer = torch.where(u < _INNER_BELOW, 1.0, u)
    f_outer = signed_quotient(1 - outer)
    g = torch.where(u < _INNER_BELOW, g_inner, (log_half + f_outer) / outer)
    return torch.where(u < _INNER_BELOW, u * g - log_half, f_outer), g


def h(u: Tensor) -> Tensor:
    """Return h = ln^2(x / 2) - (1 - x^2) F^2 for u = x^2 > 0; it is 0 at u = 0, and dh / dx = 2 g / x."""
    safe, _, w = _inner(u)
    log_inner = torch.log1p(-w)
    inner = log_inner * (torch.log(safe / 4) - log_inner)
    outer = torch.where(u < _INNER_BELOW, 1.0, u)
    beyond = (torch.log(outer / 4) / 2) ** 2 - (1 - outer) * signed_quotient(1 - outer) ** 2
    return torch.where(u < _INNER_BELOW, inner, beyond)


def projected(u: Tensor, F: Tensor) -> Tensor:
    """Return (F - 1) / (1 - x^2), the surface density in units of 2 rho_0 R_s, for u = x^2 > 0; 1/3 at u = 1."""
    t = 1 - u
    near = t.abs() < _SERIES_BELOW
    return torch.where(
        near, odd_series(torch.where(near, t, 0.0), first=3, terms=12), (F - 1) / torch.where(near, 1.0, t)
    )


def potential(x: Field, y: Field, *, alpha_Rs: Field, R_s: Field) -> Tensor:
    """Return psi = k R_s h / 2 in arcsec^2, zero at the origin; all arguments in arcsec, broadcast together."""
    R_s = R_s.clamp_min(SMALLEST_RADIUS)
    return alpha_Rs * R_s / (2 * DEFLECTION_AT_R_S) * h(scaled_square(x, y, R_s))


def deflection(x: Field, y: Field, *, alpha_Rs: Field, R_s: Field) -> tuple[Tensor, Tensor]:
    """Return alpha in arcsec, k g / x along theta (Wright & Brainerd 2000, eq. 13, times x); zero at the origin."""
    R_s = R_s.clamp_min(SMALLEST_RADIUS)
    _, g = f_and_g(scaled_square(x, y, R_s))
    scale = alpha_Rs / (R_s * DEFLECTION_AT_R_S) * g
    return scale * x, scale * y


def convergence(x: Field, y: Field, *, alpha_Rs: Field, R_s: Field) -> Tensor:
    """Return kappa = k / (2 R_s) (F - 1) / (1 - x^2) (Wright & Brainerd 2000, eq. 11); grows as -ln x inside R_s."""
    R_s = R_s.clamp_min(SMALLEST_RADIUS)
    u = scaled_square(x, y, R_s)
    F, _ = f_and_g(u)
    return alpha_Rs / (2 * R_s * DEFLECTION_AT_R_S) * projected(u, F)
