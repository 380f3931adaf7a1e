"""Elliptical power law centred at the origin (Tessore & Metcalf 2015, A&A 580, A79).

kappa = (3 - slope) / 2 (theta_E / sqrt(q u^2 + v^2 / q))^(slope - 1) with u along the major axis: lenstronomy's EPL,
whose `gamma` is called `slope` here, since gamma1 and gamma2 are the shear. It is the slope of the density in space,
1 < slope < 3; 2 is the isothermal ellipsoid of `sie`. The axis ratio is q = (1 - |e|) / (1 + |e|).

The paper's formulae need the major axis, which a round lens has not. In complex notation, with z = x + i y,
e = e1 + i e2, t = slope - 1 and zeta = z - e conj(z), which is its elliptical coordinate up to a factor, they become

    alpha = (theta_E sqrt(1 - |e|^2) / |zeta|)^t zeta sum_n c_n omega^n,   omega = -conj(e) zeta / conj(zeta),
    c_n / c_(n-1) = (2 n - 2 + t) / (2 n + 2 - t),   c_0 = 1,

(their eq. 22, 23 and 29, where f = |e|), which are differentiable at e = 0 too. As |omega| = |e| and 0 < c_n <= 1,
leaving out the terms from `TERMS` = 40 on changes the sum by at most |e|^40 / (1 - |e|): 2e-12 at the card's bound
|e| = 0.5 (q = 1/3), 4e-9 at 0.6, 3e-6 at 0.7; the change of alpha is that times the factor before the sum.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from darklens.physics.duals import with_slopes
from darklens.physics.profiles.card import Parameter

Field = Float[Tensor, "*#shape"]

PARAMETERS = (
    Parameter(symbol="theta_E", unit="arcsec", low=0.0, high=10.0, meaning="product-average Einstein radius"),
    Parameter(symbol="slope", unit="1", low=1.0, high=3.0, meaning="slope of the density in space, both excluded"),
    # 0.35 keeps |e| below 0.5, for which the series is summed.
    Parameter(symbol="e1", unit="1", low=-0.35, high=0.35, meaning="ellipticity along x"),
    Parameter(symbol="e2", unit="1", low=-0.35, high=0.35, meaning="ellipticity along x = y"),
)
REFERENCE = "Tessore & Metcalf 2015, A&A 580, A79"

TERMS = 40
_TERMS_FLOAT32 = 24  # an error of 2e-9 at |e| = 0.5

_SMALLEST_SQUARE = 1e-16  # arcsec^2; of less, the gradient of the convergence overflows in float32


def _elliptical(x: Tensor, y: Tensor, e1: Tensor, e2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return zeta and 1 / |zeta|, which is kept finite at the origin."""
    real = x - e1 * x - e2 * y
    imaginary = y - e2 * x + e1 * y
    return real, imaginary, (real * real + imaginary * imaginary).clamp_min(_SMALLEST_SQUARE).rsqrt()


def _power(inverse: Tensor, theta_E: Tensor, t: Tensor, squared: Tensor) -> Tensor:
    """(theta_E sqrt(1 - |e|^2) / |zeta|)^t, with a zero, not infinite, gradient for a massless lens."""
    present = theta_E > 0
    base = torch.where(present, theta_E, 1.0) * torch.sqrt(1 - squared) * inverse
    return torch.where(present, base**t, 0.0)


def _ratios(t: Tensor) -> tuple[Tensor, Tensor]:
    """Return numerators and denominators of c_n / c_(n-1), n along the first axis; fewer terms in float32."""
    terms = TERMS if t.dtype == torch.float64 else _TERMS_FLOAT32
    n = torch.arange(1, terms + 1, dtype=t.dtype, device=t.device).reshape(-1, *(1,) * t.ndim)
    return 2 * n - 2 + t, 2 * n + 2 - t


def _sum(coefficients: Tensor, real: Tensor, imaginary: Tensor, squared: Tensor) -> tuple[Tensor, Tensor]:
    """Return sum_n c_(n+1) omega^n, from omega and |omega|^2.

    Horner's rule with the quadratic factor omega^2 - 2 Re(omega) omega + |omega|^2 in place of omega, so that no
    complex product is needed.
    """
    twice = 2 * real
    first, second = torch.zeros_like(twice), torch.zeros_like(twice)
    for c in coefficients.flip(0):
        first, second = torch.addcmul(torch.addcmul(c, squared, second, value=-1), twice, first), first
    return first - real * second, imaginary * second


def _slopes_of_series(
    real: Tensor, imaginary: Tensor, t: Tensor, squared: Tensor
) -> tuple[tuple[Tensor, Tensor], tuple[tuple[Tensor, ...], ...]]:
    """Return the sum of `_series` and its derivatives by the real and imaginary part of omega and by t.

    The sum F = 1 + omega H is the hypergeometric function 2F1(1, t/2; 2 - t/2; omega). Since its first argument is 1,
    its derivative needs no further series: (1 - omega) dF/d omega = t/2 F - (1 - t/2) H.
    """
    above, below = _ratios(t[(None,) * (real.ndim - t.ndim)])
    coefficients = torch.cumprod(above / below, 0)
    by_t = coefficients * torch.cumsum(1 / above + 1 / below, 0)
    both = _sum(torch.stack([coefficients, by_t], 1), real, imaginary, squared)
    (h_real, h_t_real), (h_imaginary, h_t_imaginary) = both
    sum_real, sum_imaginary = 1 + real * h_real - imaginary * h_imaginary, real * h_imaginary + imaginary * h_real
    b = 0.5 * t
    top_real, top_imaginary = b * sum_real - (1 - b) * h_real, b * sum_imaginary - (1 - b) * h_imaginary
    scale = 1 / (1 - 2 * real + squared)
    along = (top_real * (1 - real) - top_imaginary * imaginary) * scale
    across = (top_imaginary * (1 - real) + top_real * imaginary) * scale
    t_real, t_imaginary = (
        real * h_t_real - imaginary * h_t_imaginary,
        real * h_t_imaginary + imaginary * h_t_real,
    )
    return (sum_real, sum_imaginary), ((along, -across, t_real), (across, along, t_imaginary))


@with_slopes(_slopes_of_series)
def _series(real: Tensor, imaginary: Tensor, t: Tensor, squared: Tensor) -> tuple[Tensor, Tensor]:
    """Return sum_n c_n omega^n, from omega and |omega|^2."""
    above, below = _ratios(t)
    h_real, h_imaginary = _sum(torch.cumprod(above / below, 0), real, imaginary, squared)
    return 1 + real * h_real - imaginary * h_imaginary, real * h_imaginary + imaginary * h_real


def deflection(x: Field, y: Field, *, theta_E: Field, slope: Field, e1: Field, e2: Field) -> tuple[Tensor, Tensor]:
    """Return alpha in arcsec; x, y, theta_E in arcsec, other arguments dimensionless, broadcast together.

    It is zero at the origin, where it diverges for slope > 2 and has no direction for slope = 2.
    """
    t, squared = slope - 1, e1 * e1 + e2 * e2
    real, imaginary, inverse = _elliptical(x, y, e1, e2)
    cos, sin = real * inverse, imaginary * inverse
    cos2, sin2 = cos * cos - sin * sin, 2 * cos * sin
    omega_real, omega_imaginary = -(e1 * cos2 + e2 * sin2), e2 * cos2 - e1 * sin2
    sum_real, sum_imaginary = _series(omega_real, omega_imaginary, t, squared)
    scale = _power(inverse, theta_E, t, squared)
    return (
        scale * (real * sum_real - imaginary * sum_imaginary),
        scale * (real * sum_imaginary + imaginary * sum_real),
    )


def potential(x: Field, y: Field, *, theta_E: Field, slope: Field, e1: Field, e2: Field) -> Tensor:
    """Return psi = theta . alpha / (3 - slope) in arcsec^2 (Tessore & Metcalf 2015, eq. 15): psi is homogeneous."""
    alpha_x, alpha_y = deflection(x, y, theta_E=theta_E, slope=slope, e1=e1, e2=e2)
    return (x * alpha_x + y * alpha_y) / (3 - slope)


def convergence(x: Field, y: Field, *, theta_E: Field, slope: Field, e1: Field, e2: Field) -> Tensor:
    """Return kappa, dimensionless (Tessore & Metcalf 2015, eq. 2); kept finite at the origin, where it diverges."""
    _, _, inverse = _elliptical(x, y, e1, e2)
    return (3 - slope) / 2 * _power(inverse, theta_E, slope - 1, e1 * e1 + e2 * e2)


def hessian(x: Field, y: Field, *, theta_E: Field, slope: Field, e1: Field, e2: Field) -> tuple[Tensor, Tensor, Tensor]:
    """Return psi_xx, psi_xy and psi_yy, dimensionless, from alpha and kappa, as alpha scales as r^(2 - slope).

    With alpha and z complex, d alpha / d z = kappa and Euler's theorem give the shear
    d alpha / d conj(z) = [(2 - slope) alpha - kappa z] / conj(z).
    """
    values = {"theta_E": theta_E, "slope": slope, "e1": e1, "e2": e2}
    kappa, (alpha_x, alpha_y) = convergence(x, y, **values), deflection(x, y, **values)
    inverse = 1 / (x * x + y * y).clamp_min(_SMALLEST_SQUARE)
    along, across = (2 - slope) * alpha_x - kappa * x, (2 - slope) * alpha_y - kappa * y
    gamma1, gamma2 = (along * x - across * y) * inverse, (along * y + across * x) * inverse
    return kappa + gamma1, gamma2, kappa - gamma1
