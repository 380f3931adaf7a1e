"""Multipole perturbation of an elliptical isothermal lens, of order m, centred at the origin.

The convergence perturbs the surface density on the ellipses of the lens, not on circles (Paugnat & Gilman 2025,
"Elliptical multipoles for gravitational lenses"; lenstronomy's ELLIPTICAL multipoles). In complex notation, with
z = x + i y, e = e1 + i e2 and zeta = z - e conj(z) as in `epl`,

    kappa = sqrt(1 - |e|^2) / (2 |zeta|) [a cos(m Phi) + b sin(m Phi)],   Phi = arg zeta.

Phi is the eccentric anomaly counted from the x axis, so a and b stay smooth where the lens becomes round; there they
are the circular multipoles of Xu et al. (2013). The amplitude a + i b in arcsec is a_m exp(i m phi_m); divided by
theta_E it is the fractional deformation of an isodensity contour.

The convergence is Re[(a - i b) sum_d C_d s^k] / r with s = z / |z| and k = m + 2 d, from the binomial series of
zeta^((m - 1)/2) conj(zeta)^(-(m + 1)/2). Each harmonic k gives the potential r s^k / (1 - k^2), and k = 1 the resonant
r ln(r) s / 2, in which r is in arcsec: its zero point is a uniform deflection, which no image depends on.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from darklens.physics.profiles.card import Parameter
from darklens.physics.profiles.sis import radius

Field = Float[Tensor, "*#shape"]

PARAMETERS = (
    Parameter(symbol="a", unit="arcsec", low=-0.5, high=0.5, meaning="amplitude of cos(m Phi)"),
    Parameter(symbol="b", unit="arcsec", low=-0.5, high=0.5, meaning="amplitude of sin(m Phi)"),
    Parameter(symbol="e1", unit="1", low=-0.35, high=0.35, meaning="ellipticity of the lens along x"),
    Parameter(symbol="e2", unit="1", low=-0.35, high=0.35, meaning="ellipticity of the lens along x = y"),
)
REFERENCE = "Paugnat & Gilman 2025, elliptical multipoles for gravitational lenses"
ORDERS = (1, 3, 4)

HARMONICS = 20  # on either side of m: changes kappa by less than 1e-6 of its amplitude for |e| <= 0.5
_SMALLEST_SQUARE = 1e-16  # arcsec^2


_Harmonic = tuple[int, Tensor, Tensor, Tensor, Tensor]


def _binomial(power: float, terms: int) -> list[float]:
    """Return the coefficients of (1 - w)^power in powers of w."""
    coefficients = [1.0]
    for j in range(1, terms):
        coefficients.append(-coefficients[-1] * (power - j + 1) / j)
    return coefficients


def _harmonics(m: int, squared: Tensor) -> dict[int, Tensor]:
    """Return C_d / e^|d| by d: the real factors that depend on |e|^2 alone."""
    terms = HARMONICS + 12
    rising, falling = _binomial((m - 1) / 2, terms), _binomial(-(m + 1) / 2, terms)
    factors = {}
    for d in range(-HARMONICS, HARMONICS + 1):
        products = [rising[j + max(0, -d)] * falling[j + max(0, d)] for j in range(terms - abs(d))]
        if not any(products):
            continue
        total = torch.zeros_like(squared)
        for coefficient in reversed(products):
            total = total * squared + coefficient
        factors[d] = total
    return factors


def _terms(
    x: Tensor, y: Tensor, a: Tensor, b: Tensor, e1: Tensor, e2: Tensor, m: int
) -> tuple[Tensor, list[_Harmonic]]:
    """Return ln r and, for each harmonic k, the real and imaginary part of H s^k with H = (a - i b) C_d, and of s^k."""
    square = (x * x + y * y).clamp_min(_SMALLEST_SQUARE)
    inverse = square.rsqrt()
    cos, sin = x * inverse, y * inverse
    cos2, sin2 = cos * cos - sin * sin, 2 * cos * sin
    squared = e1 * e1 + e2 * e2
    scale = torch.sqrt(1 - squared)
    start = m - 2 * HARMONICS
    angle_cos, angle_sin = _power(cos, sin, start)
    # Powers of conj(e) for d > 0 and of e for d < 0, times (a - i b).
    amplitude: dict[int, tuple[Tensor, Tensor]] = {0: (a * scale, -b * scale)}
    for d in range(1, HARMONICS + 1):
        real, imaginary = amplitude[d - 1]
        amplitude[d] = real * e1 + imaginary * e2, imaginary * e1 - real * e2
        real, imaginary = amplitude[1 - d]
        amplitude[-d] = real * e1 - imaginary * e2, imaginary * e1 + real * e2
    factors, harmonics = _harmonics(m, squared), []
    for d in range(-HARMONICS, HARMONICS + 1):
        if d in factors:
            real, imaginary = (part * factors[d] for part in amplitude[d])
            harmonics.append((m + 2 * d, real, imaginary, angle_cos, angle_sin))
        angle_cos, angle_sin = angle_cos * cos2 - angle_sin * sin2, angle_sin * cos2 + angle_cos * sin2
    return square.log() / 2, harmonics


def _power(cos: Tensor, sin: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return cos(k phi) and sin(k phi)."""
    if k < 0:
        real, imaginary = _power(cos, sin, -k)
        return real, -imaginary
    real, imaginary = torch.ones_like(cos), torch.zeros_like(sin)
    for _ in range(k):
        real, imaginary = real * cos - imaginary * sin, imaginary * cos + real * sin
    return real, imaginary


def potential(x: Field, y: Field, *, a: Field, b: Field, e1: Field, e2: Field, m: int) -> Tensor:
    """Psi in arcsec^2; x, y, a, b in arcsec, e1, e2 dimensionless, broadcast together."""
    log_r, harmonics = _terms(x, y, a, b, e1, e2, m)
    total = torch.zeros_like(log_r)
    for k, real, imaginary, cos, sin in harmonics:
        value = real * cos - imaginary * sin
        total = total + value * (log_r / 2 if abs(k) == 1 else 1 / (1 - k * k))
    return radius(x, y) * total


def deflection(x: Field, y: Field, *, a: Field, b: Field, e1: Field, e2: Field, m: int) -> tuple[Tensor, Tensor]:
    """Return alpha in arcsec, the gradient of psi; for odd m it diverges at the origin as ln r."""
    log_r, harmonics = _terms(x, y, a, b, e1, e2, m)
    square = (x * x + y * y).clamp_min(_SMALLEST_SQUARE)
    inverse = square.rsqrt()
    unit_x, unit_y = x * inverse, y * inverse
    alpha_x, alpha_y = torch.zeros_like(log_r), torch.zeros_like(log_r)
    for k, real, imaginary, cos, sin in harmonics:
        # H s^k = p + i t, and psi = r p f with f = 1 / (1 - k^2) or ln(r) / 2: its radial and tangential derivatives.
        p, t = real * cos - imaginary * sin, real * sin + imaginary * cos
        if abs(k) == 1:
            radial, tangential = p * (log_r + 1) / 2, -k * t * log_r / 2
        else:
            radial, tangential = p / (1 - k * k), -k * t / (1 - k * k)
        alpha_x = alpha_x + radial * unit_x - tangential * unit_y
        alpha_y = alpha_y + radial * unit_y + tangential * unit_x
    return alpha_x, alpha_y


def convergence(x: Field, y: Field, *, a: Field, b: Field, e1: Field, e2: Field, m: int) -> Tensor:
    """Kappa, dimensionless; falls as 1 / r and integrates to no mass for m > 0 and a round lens."""
    real, imaginary = x - e1 * x - e2 * y, y - e2 * x + e1 * y
    inverse = (real * real + imaginary * imaginary).clamp_min(_SMALLEST_SQUARE).rsqrt()
    cos, sin = _power(real * inverse, imaginary * inverse, m)
    return torch.sqrt(1 - e1 * e1 - e2 * e2) * inverse / 2 * (a * cos + b * sin)
