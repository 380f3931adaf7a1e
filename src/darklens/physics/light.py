"""Surface brightness of sources."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

Field = Float[Tensor, "*#shape"]


def sersic_b(n: Field) -> Tensor:
    """Return b_n, which makes R_e the half-light radius (Ciotti & Bertin 1999, A&A 352, 447, eq. 18).

    Good to 1e-6 for n > 0.5.
    """
    return 2 * n - 1 / 3 + 4 / (405 * n) + 46 / (25515 * n**2) + 131 / (1148175 * n**3)


def sersic_b_linear(n: Field) -> Tensor:
    """Return the linear approximation b_n = 1.9992 n - 0.3271 (Capaccioli 1989), for parity with lenstronomy."""
    return 1.9992 * n - 0.3271


def sersic(x: Field, y: Field, *, amplitude: Field, R_e: Field, n: Field, q: Field, angle: Field, b: Field) -> Tensor:
    """Sersic profile I = amplitude exp{-b [(r / R_e)^(1/n) - 1]}, r^2 = q u^2 + v^2 / q, centred at the origin.

    Args:
        x: Coordinates in arcsec.
        y: Coordinates in arcsec.
        amplitude: Brightness at r = R_e, in the unit of the result.
        R_e: Effective radius in arcsec (product average).
        n: Sersic index.
        q: Axis ratio, 0 < q <= 1; u runs along the major axis.
        angle: Direction of the major axis in radians from x towards y.
        b: The coefficient b_n, from `sersic_b`.

    Returns:
        Brightness in the unit of `amplitude`, with all arguments broadcast together.
    """
    return sersic_brightness(x, y, sersic_terms(amplitude=amplitude, R_e=R_e, n=n, q=q, angle=angle, b=b))


class SersicTerms(NamedTuple):
    """What of a Sersic profile is the same at every position: I = exp[peak - b exp(half_power ln r^2 - scale)]."""

    cos: Tensor
    sin: Tensor
    q: Tensor
    inverse_q: Tensor
    half_power: Tensor
    scale: Tensor
    peak: Tensor
    b: Tensor


def sersic_terms(*, amplitude: Field, R_e: Field, n: Field, q: Field, angle: Field, b: Field) -> SersicTerms:
    """Return the terms of `sersic` that do not depend on the position; arguments as there."""
    cos, sin = torch.cos(angle), torch.sin(angle)
    return SersicTerms(cos, sin, q, 1 / q, 0.5 / n, torch.log(R_e) / n, torch.log(amplitude) + b, b)


def sersic_brightness(x: Field, y: Field, terms: SersicTerms) -> Tensor:
    """Return the brightness of `sersic` from its terms."""
    u, v = x * terms.cos + y * terms.sin, y * terms.cos - x * terms.sin
    # The floor of 1e-6 arcsec keeps the gradient finite at the cusp.
    squared = (terms.q * u * u + terms.inverse_q * v * v).clamp_min(1e-12)
    # The power is written out: torch.pow takes four times as long.
    return torch.exp(terms.peak - terms.b * torch.exp(torch.log(squared) * terms.half_power - terms.scale))


def sersic_total(*, R_e: Field, n: Field, b: Field) -> Tensor:
    """Return the total brightness of a Sersic profile of amplitude 1: 2 pi n R_e^2 e^b b^(-2n) Gamma(2n), arcsec^2.

    Source: Graham & Driver 2005, PASA 22, 118, eq. 4; R_e is the product average, so the axis ratio drops out.
    """
    return 2 * math.pi * n * R_e**2 * torch.exp(b - 2 * n * torch.log(b) + torch.lgamma(2 * n))
