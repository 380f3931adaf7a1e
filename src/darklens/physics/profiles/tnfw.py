"""Truncated Navarro-Frenk-White halo of finite mass centred at the origin (Baltz, Marshall & Oguri 2009, n = 1).

Its density is the NFW one times r_t^2 / (r^2 + r_t^2). The convention is lenstronomy's: alpha_Rs is the deflection
at R_s of the halo *before* truncation. With x = r / R_s, tau = r_t / R_s, S = sqrt(tau^2 + x^2),
L = ln[x / (S + tau)], and F, g, h, k of the untruncated halo (see `nfw`), eq. A.8, A.11 and A.14 of Baltz et al.
(JCAP 01, 015) are rearranged here with p = (S - tau) / (2 tau) and q = ln(1 + p):

    alpha = k g_t / x, g_t = c {a [g + 2 p L - q] + b [2 x^2 F - pi (S - tau)]};
    kappa = k / (2 R_s) c {(F - 1) / (1 - x^2) + b [2 F - pi / S] + a L / (tau S)};
    psi = k R_s h_t / 2, h_t = c {a [h + 2 L (2 p - q) - q (2 + q)] + b [4 (x^2 F - g) + 2 pi tau (q - 2 p)]};

a = (tau^2 - 1) / (tau^2 + 1), b = 1 / (tau^2 + 1), c = tau^2 / (tau^2 + 1). Every term of g_t and h_t goes as x^2
(or x^2 ln x) for small x and none grows with tau, so nothing large cancels there.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from darklens.physics.profiles import nfw
from darklens.physics.profiles._series import log1p_quotient
from darklens.physics.profiles.card import Parameter

Field = Float[Tensor, "*#shape"]

PARAMETERS = (
    Parameter(symbol="alpha_Rs", unit="arcsec", low=0.0, high=10.0, meaning="deflection at R_s before truncation"),
    nfw.SCALE_RADIUS,
    Parameter(symbol="r_t", unit="arcsec", low=nfw.SMALLEST_RADIUS, high=1000.0, meaning="truncation radius"),
)
REFERENCE = "Baltz, Marshall & Oguri 2009, JCAP 01, 015"


def _truncation(u: Tensor, tau: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return S, L and p for u = x^2 > 0."""
    x, S = torch.sqrt(u), torch.sqrt(tau * tau + u)
    return S, torch.log(x / (S + tau)), u / (2 * tau * (S + tau))


def _weights(tau: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return a, b, c; as ratios, since tau^4 overflows in float32 where the halo is all but untruncated."""
    b = 1 / (tau * tau + 1)
    return (tau - 1) * (tau + 1) * b, b, tau * tau * b


def potential(x: Field, y: Field, *, alpha_Rs: Field, R_s: Field, r_t: Field) -> Tensor:
    """Return psi = k R_s h_t / 2 in arcsec^2, zero at the origin; all arguments in arcsec, broadcast together."""
    R_s, r_t = R_s.clamp_min(nfw.SMALLEST_RADIUS), r_t.clamp_min(nfw.SMALLEST_RADIUS)
    u, tau = nfw.scaled_square(x, y, R_s), r_t / R_s
    F, g = nfw.f_and_g(u)
    _, L, p = _truncation(u, tau)
    a, b, c = _weights(tau)
    q = torch.log1p(p)
    outer = 4 * u * (F - g) + 2 * math.pi * tau * (q - 2 * p)
    h_t = c * (a * (nfw.h(u) + 2 * L * (2 * p - q) - q * (2 + q)) + b * outer)
    return alpha_Rs * R_s / (2 * nfw.DEFLECTION_AT_R_S) * h_t


def deflection(x: Field, y: Field, *, alpha_Rs: Field, R_s: Field, r_t: Field) -> tuple[Tensor, Tensor]:
    """Return alpha in arcsec, k g_t / x along theta (Baltz et al. 2009, eq. A.11); zero at the origin."""
    R_s, r_t = R_s.clamp_min(nfw.SMALLEST_RADIUS), r_t.clamp_min(nfw.SMALLEST_RADIUS)
    u, tau = nfw.scaled_square(x, y, R_s), r_t / R_s
    F, g = nfw.f_and_g(u)
    S, L, p = _truncation(u, tau)
    a, b, c = _weights(tau)
    # g_t / x^2, from the quotients by x^2 of its terms: S - tau = x^2 / (S + tau).
    g_t = c * (a * (g + (2 * L - log1p_quotient(p)) / (2 * tau * (S + tau))) + b * (2 * F - math.pi / (S + tau)))
    scale = alpha_Rs / (R_s * nfw.DEFLECTION_AT_R_S) * g_t
    return scale * x, scale * y


def convergence(x: Field, y: Field, *, alpha_Rs: Field, R_s: Field, r_t: Field) -> Tensor:
    """Return kappa, dimensionless (Baltz et al. 2009, eq. A.8); as -ln x inside R_s, as x^-4 outside r_t."""
    R_s, r_t = R_s.clamp_min(nfw.SMALLEST_RADIUS), r_t.clamp_min(nfw.SMALLEST_RADIUS)
    u, tau = nfw.scaled_square(x, y, R_s), r_t / R_s
    F, _ = nfw.f_and_g(u)
    S, L, _ = _truncation(u, tau)
    a, b, c = _weights(tau)
    surface = c * (nfw.projected(u, F) + b * (2 * F - math.pi / S) + a * L / (tau * S))
    return alpha_Rs / (2 * R_s * nfw.DEFLECTION_AT_R_S) * surface
