"""Multipole perturbation of an elliptical isothermal lens, of order m, centred at the origin.

The convergence perturbs the surface density on the ellipses of the lens, not on circles (Paugnat & Gilman 2025,
"Elliptical multipoles for gravitational lenses"; lenstronomy's ELLIPTICAL multipoles). In complex notation, with
z = x + i y, e = e1 + i e2 and zeta = z - e conj(z) as in `epl`,

    kappa = sqrt(1 - |e|^2) / (2 |zeta|) [a cos(m Phi) + b sin(m Phi)],   Phi = arg zeta.

Phi is the eccentric anomaly counted from the x axis, so a and b stay smooth where the lens becomes round; there they
are the circular multipoles of Xu et al. (2013). The amplitude a + i b in arcsec is a_m exp(i m phi_m); divided by
theta_E it is the fractional deformation of an isodensity contour.

The convergence is Re[(a - i b) sum_d C_d s^k] / r with s = z / |z| and k = m + 2 d, from the binomial series of
zeta^((m - 1)/2) conj(zeta)^(-(m + 1)/2). With H = (a - i b) C_d, each harmonic k gives the potential
r Re(H s^k) / (1 - k^2), and so the deflection

    [H s^(1 + k) / (1 + k) + conj(H) s^(1 - k) / (1 - k)] / 2.

Only k = 1 and k = -1 differ: their potential is r ln(r) Re(H s^k) / 2 with r in arcsec, whose zero point is a uniform
deflection, which no image depends on. The deflection is therefore a Fourier series in the position angle whose
coefficients depend on the parameters alone, plus ln(r) times a constant.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from darklens.constants import constant
from darklens.physics.duals import with_slopes
from darklens.physics.profiles.card import Parameter

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
_HARMONICS_FLOAT32 = 12  # changes alpha by no more than the rounding, a few 1e-6 of its amplitude
_POWERS = 12  # of |e|^2 beyond those harmonics
_SMALLEST_SQUARE = 1e-16  # arcsec^2

_Rows = tuple[tuple[float, ...], ...]
_Pair = tuple[Tensor, Tensor]


class _Tables(NamedTuple):
    """Constants of one order, for the harmonics d from -h to h.

    Attributes:
        powers: Coefficients of C_d / e^|d| by descending power of |e|^2, each for all d.
        orders: Orders n of the Fourier series of alpha.
        by_order: Coefficients of cos(n phi) and sin(n phi) in alpha_x by Re H and Im H, then of sin(n phi) and
            cos(n phi) in alpha_y by the same; each for all d and n.
        logarithm: Coefficient of ln r in alpha_x by Re H, and in alpha_y by Im H, for all d.
    """

    powers: _Rows
    orders: tuple[int, ...]
    by_order: tuple[_Rows, _Rows, _Rows, _Rows]
    logarithm: _Rows


@cache
def _tables(m: int, harmonics: int) -> _Tables:
    terms = harmonics + _POWERS
    rising, falling = _binomial((m - 1) / 2, terms), _binomial(-(m + 1) / 2, terms)
    degrees = range(-harmonics, harmonics + 1)
    factors = [
        [rising[j + max(0, -d)] * falling[j + max(0, d)] if j < terms - abs(d) else 0.0 for j in range(terms)]
        for d in degrees
    ]
    largest = 1 + m + 2 * harmonics
    orders = tuple(range((m + 1) % 2, largest + 1, 2))
    by_order = np.zeros((4, len(degrees), len(orders)))
    logarithm = np.zeros((2, len(degrees)))
    for row, d in enumerate(degrees):
        k = m + 2 * d
        # H of the power 1 + k of s, and conj(H) of the power 1 - k.
        for power, sign in ((1 + k, 1), (1 - k, -1)):
            half = 0.5 / power if power else 0.25
            column, direction = orders.index(abs(power)), (power > 0) - (power < 0)
            by_order[:, row, column] += half * np.array([1, -sign * direction, direction, sign])
        if abs(k) == 1:
            logarithm[:, row] = 0.5, -0.5 * k
    cos_x, sin_x, sin_y, cos_y = (tuple(map(tuple, matrix.tolist())) for matrix in by_order)
    return _Tables(
        powers=tuple(zip(*factors, strict=True))[::-1],
        orders=orders,
        by_order=(cos_x, sin_x, sin_y, cos_y),
        logarithm=tuple(map(tuple, logarithm.tolist())),
    )


def _binomial(power: float, terms: int) -> list[float]:
    """Return the coefficients of (1 - w)^power in powers of w."""
    coefficients = [1.0]
    for j in range(1, terms):
        coefficients.append(-coefficients[-1] * (power - j + 1) / j)
    return coefficients


def _table(m: int, like: Tensor) -> _Tables:
    return _tables(m, HARMONICS if like.dtype == torch.float64 else _HARMONICS_FLOAT32)


def _coefficients(e1: Tensor, e2: Tensor, m: int) -> tuple[_Pair, _Pair, _Pair]:
    """Return C_d and its derivatives by e1 and e2, each as real and imaginary part (..., d)."""
    squared = (e1 * e1 + e2 * e2)[..., None]
    e1, e2 = e1[..., None], e2[..., None]
    rows = [constant(row, squared.dtype, squared.device) for row in _table(m, squared).powers]
    factor, slope = torch.zeros_like(squared), torch.zeros_like(squared)
    for row in rows:
        factor, slope = factor * squared + row, slope * squared + factor
    scale = torch.sqrt(1 - squared)
    slope, factor = scale * slope - 0.5 / scale * factor, scale * factor  # of sqrt(1 - |e|^2) C_d / e^|d|
    real, imaginary = [torch.ones_like(e1)], [torch.zeros_like(e1)]  # of e^n
    for _ in range(len(rows[0]) // 2):
        real, imaginary = (
            [*real, real[-1] * e1 - imaginary[-1] * e2],
            [*imaginary, imaginary[-1] * e1 + real[-1] * e2],
        )
    number = torch.arange(1, len(real), dtype=squared.dtype, device=squared.device)
    zero = torch.zeros_like(e1)
    # conj(e)^d for d > 0 and e^|d| for d < 0; the derivatives of e by e1 and e2 are 1 and i.
    power = torch.cat([*real[:0:-1], *real], -1), torch.cat([*imaginary[:0:-1], *(-v for v in imaginary)], -1)
    along, across = torch.cat(real[:-1], -1) * number, torch.cat(imaginary[:-1], -1) * number  # d e^n / d e

    def mirrored(part: Tensor, sign: int) -> Tensor:
        return torch.cat([part.flip(-1), zero, sign * part], -1)

    def by(e: Tensor, slope_real: Tensor, slope_imaginary: Tensor) -> _Pair:
        chain = 2 * e * slope
        return power[0] * chain + slope_real * factor, power[1] * chain + slope_imaginary * factor

    return (
        (power[0] * factor, power[1] * factor),
        by(e1, mirrored(along, 1), mirrored(across, -1)),
        by(e2, mirrored(-across, 1), mirrored(along, -1)),
    )


def _times_amplitude(a: Tensor, b: Tensor, c: _Pair) -> _Pair:
    """Return real and imaginary part of (a - i b) c."""
    a, b = a[..., None], b[..., None]
    return a * c[0] + b * c[1], a * c[1] - b * c[0]


class _Angle:
    """cos(n phi) and sin(n phi) of all orders n, at all positions."""

    def __init__(self, x: Tensor, y: Tensor, m: int) -> None:
        square = (x * x + y * y).clamp_min(_SMALLEST_SQUARE)
        self.inverse_square = 1 / square
        inverse = square.rsqrt()
        cos, sin = x * inverse, y * inverse
        one = cos * cos + sin * sin  # zero at the origin, so that alpha is zero there
        self.log_r = one * square.log() / 2
        cos2, sin2 = cos * cos - sin * sin, 2 * cos * sin
        self.table = _table(m, square)
        first = (cos, sin) if self.table.orders[0] else (one, torch.zeros_like(sin))
        self.cos, self.sin = [first[0]], [first[1]]
        for _ in self.table.orders[1:]:
            before_cos, before_sin = self.cos[-1], self.sin[-1]
            self.cos.append(before_cos * cos2 - before_sin * sin2)
            self.sin.append(before_sin * cos2 + before_cos * sin2)

    def series(self, h: _Pair) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Return coefficients (..., n) of cos(n phi) and sin(n phi), for alpha_x and for alpha_y."""
        real, imaginary = h
        cos_x, sin_x, sin_y, cos_y = (constant(m, real.dtype, real.device) for m in self.table.by_order)
        return (real @ cos_x, imaginary @ sin_x), (imaginary @ cos_y, real @ sin_y)

    def logarithm(self, h: _Pair) -> _Pair:
        """Return the coefficients of ln r in alpha_x and in alpha_y."""
        along, across = (constant(v, h[0].dtype, h[0].device) for v in self.table.logarithm)
        return (h[0] * along).sum(-1), (h[1] * across).sum(-1)

    def sum(self, coefficients: _Pair) -> Tensor:
        """Return the sum over n of the coefficients (..., n) times cos(n phi) and sin(n phi)."""
        total = torch.zeros_like(self.log_r)
        for cos, sin, c, s in zip(self.cos, self.sin, *(v.unbind(-1) for v in coefficients), strict=True):
            total = torch.addcmul(torch.addcmul(total, c, cos), s, sin)
        return total

    def deflection(self, h: _Pair) -> _Pair:
        """Return alpha_x and alpha_y."""
        x, y = (self.sum(part) + v * self.log_r for part, v in zip(self.series(h), self.logarithm(h), strict=True))
        return x, y

    def turned(self, h: _Pair) -> _Pair:
        """Return the derivatives of alpha_x and alpha_y by phi."""
        n = constant(tuple(map(float, self.table.orders)), h[0].dtype, h[0].device)
        x, y = (self.sum((n * sin, -n * cos)) for cos, sin in self.series(h))
        return x, y


def _slopes_of_deflection(
    x: Tensor, y: Tensor, a: Tensor, b: Tensor, e1: Tensor, e2: Tensor, m: int
) -> tuple[_Pair, tuple[tuple[Tensor, ...], ...]]:
    """Return alpha and its derivatives by x, y, a, b, e1 and e2."""
    angle = _Angle(x, y, m)
    c, *by_ellipticity = _coefficients(e1, e2, m)
    one, zero = torch.ones_like(a), torch.zeros_like(a)
    by_a, by_b = (angle.deflection(_times_amplitude(*v, c)) for v in ((one, zero), (zero, one)))
    by_e1, by_e2 = (angle.deflection(_times_amplitude(a, b, v)) for v in by_ellipticity)
    h = _times_amplitude(a, b, c)
    rows = []
    by_parameters = zip(by_a, by_b, by_e1, by_e2, strict=True)
    for by_phi, by_log_r, others in zip(angle.turned(h), angle.logarithm(h), by_parameters, strict=True):
        by_x = (by_log_r * x - by_phi * y) * angle.inverse_square
        by_y = (by_log_r * y + by_phi * x) * angle.inverse_square
        rows.append((by_x, by_y, *others))
    return (a * by_a[0] + b * by_b[0], a * by_a[1] + b * by_b[1]), tuple(rows)


@with_slopes(_slopes_of_deflection)
def _deflection(x: Tensor, y: Tensor, a: Tensor, b: Tensor, e1: Tensor, e2: Tensor, m: int) -> _Pair:
    return _Angle(x, y, m).deflection(_times_amplitude(a, b, _coefficients(e1, e2, m)[0]))


def deflection(x: Field, y: Field, *, a: Field, b: Field, e1: Field, e2: Field, m: int) -> tuple[Tensor, Tensor]:
    """Return alpha in arcsec, the gradient of psi; for odd m it diverges at the origin as ln r."""
    alpha_x, alpha_y = _deflection(x, y, a, b, e1, e2, m)
    return alpha_x, alpha_y


def potential(x: Field, y: Field, *, a: Field, b: Field, e1: Field, e2: Field, m: int) -> Tensor:
    """Psi in arcsec^2; x, y, a, b in arcsec, e1, e2 dimensionless, broadcast together.

    All terms but that of ln r are homogeneous of degree one, so psi is the scalar product of position and alpha, less
    the contribution of the slope of ln r.
    """
    angle = _Angle(x, y, m)
    h = _times_amplitude(a, b, _coefficients(e1, e2, m)[0])
    (alpha_x, alpha_y), (along, across) = angle.deflection(h), angle.logarithm(h)
    return x * (alpha_x - along) + y * (alpha_y - across)


def convergence(x: Field, y: Field, *, a: Field, b: Field, e1: Field, e2: Field, m: int) -> Tensor:
    """Kappa, dimensionless; falls as 1 / r and integrates to no mass for m > 0 and a round lens."""
    real, imaginary = x - e1 * x - e2 * y, y - e2 * x + e1 * y
    inverse = (real * real + imaginary * imaginary).clamp_min(_SMALLEST_SQUARE).rsqrt()
    cos, sin = _power(real * inverse, imaginary * inverse, m)
    return torch.sqrt(1 - e1 * e1 - e2 * e2) * inverse / 2 * (a * cos + b * sin)


def _power(cos: Tensor, sin: Tensor, k: int) -> _Pair:
    """Return cos(k phi) and sin(k phi)."""
    real, imaginary = torch.ones_like(cos), torch.zeros_like(sin)
    for _ in range(k):
        real, imaginary = real * cos - imaginary * sin, imaginary * cos + real * sin
    return real, imaginary
