"""Surface brightness of sources."""

import math
from collections.abc import Callable, Collection
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from darklens.physics.duals import slopes_of, variable

Field = Float[Tensor, "*#shape"]

_SMALLEST_SQUARE = 1e-12  # (1e-6 arcsec)^2; it keeps gradients finite at the cusp


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
    """Terms of a Sersic profile that do not depend on position: I = exp[peak - b exp(half_power ln r^2 - scale)]."""

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
    squared = (terms.q * u * u + terms.inverse_q * v * v).clamp_min(_SMALLEST_SQUARE)
    # exp(log) instead of torch.pow, which takes four times as long.
    return torch.exp(terms.peak - terms.b * torch.exp(torch.log(squared) * terms.half_power - terms.scale))


def sersic_slopes(
    x: Field,
    y: Field,
    *,
    amplitude: Field,
    R_e: Field,
    n: Field,
    e1: Field,
    e2: Field,
    b: Callable[[Tensor], Tensor],
    by: Collection[str],
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the brightness of `sersic` and its derivatives, several times as fast as automatic ones.

    The square of the elliptical radius is written in the ellipticity e = (1 - q)/(1 + q), in which it is smooth where
    light is round: r^2 = [(1 + e^2)(x^2 + y^2) - 2 e1 (x^2 - y^2) - 4 e2 x y] / (1 - e^2).

    Args:
        x: Coordinates in arcsec.
        y: Coordinates in arcsec.
        amplitude: As in `sersic`.
        R_e: As in `sersic`.
        n: As in `sersic`.
        e1: e cos(2 angle).
        e2: e sin(2 angle), |e| < 1.
        b: `sersic_b` or `sersic_b_linear`.
        by: What to derive by: of x, y, e1, e2, ln_R_e and ln_n.
    """
    b_n = b(n)
    inverse = 1 / (1 - e1 * e1 - e2 * e2)
    xx, yy, twice_xy = x * x, y * y, 2 * x * y
    circular = xx + yy
    squared = ((2 - 1 / inverse) * circular - 2 * (e1 * (xx - yy) + e2 * twice_xy)) * inverse
    squared = squared.clamp_min(_SMALLEST_SQUARE)
    power = torch.exp(torch.log(squared) * (0.5 / n) + (torch.log(b_n) - torch.log(R_e) / n))
    brightness = torch.exp(torch.log(amplitude) + b_n - power)
    rate = brightness * power
    by_half_square = rate / squared * (-1 / n)
    slopes = {}
    if "x" in by:
        slopes["x"] = by_half_square * (((2 - 1 / inverse - 2 * e1) * x - 2 * e2 * y) * inverse)
    if "y" in by:
        slopes["y"] = by_half_square * (((2 - 1 / inverse + 2 * e1) * y - 2 * e2 * x) * inverse)
    if "e1" in by:
        slopes["e1"] = by_half_square * inverse * (e1 * (circular + squared) - (xx - yy))
    if "e2" in by:
        slopes["e2"] = by_half_square * inverse * (e2 * (circular + squared) - twice_xy)
    if "ln_R_e" in by:
        slopes["ln_R_e"] = rate / n
    if "ln_n" in by:
        b_slope = slopes_of(b(variable("n", n)))["n"]
        slopes["ln_n"] = (n * b_slope) * brightness - rate * (n * b_slope / b_n - torch.log(power / b_n))
    return brightness, slopes


def sersic_total(*, R_e: Field, n: Field, b: Field) -> Tensor:
    """Return the total brightness of a Sersic profile of amplitude 1: 2 pi n R_e^2 e^b b^(-2n) Gamma(2n), arcsec^2.

    Source: Graham & Driver 2005, PASA 22, 118, eq. 4; R_e is the product average, so the axis ratio drops out.
    """
    return 2 * math.pi * n * R_e**2 * torch.exp(b - 2 * n * torch.log(b) + torch.lgamma(2 * n))


def image_brightness(
    image: Float[Tensor, "m m"], x: Float[Tensor, "n n"], y: Float[Tensor, "n n"], *, pixel_scale: Tensor
) -> Float[Tensor, "n n"]:
    """Return the surface brightness of a source that is an image, by bilinear interpolation; zero outside it.

    Args:
        image: Brightness per pixel.
        x: Positions in arcsec, with the centre of the image as origin.
        y: Positions in arcsec.
        pixel_scale: Side of a pixel of the image in arcsec.

    Returns:
        Brightness per square arcsec.
    """
    half_side = image.shape[0] * pixel_scale / 2
    positions = torch.stack([x / half_side, y / half_side], dim=-1)
    sampled = F.grid_sample(image.to(x)[None, None], positions[None], mode="bilinear", align_corners=False)
    return sampled[0, 0] / pixel_scale**2


def sersic_of_ellipticity(
    x: Field,
    y: Field,
    *,
    amplitude: Field | float,
    R_e: Field,
    n: Field,
    e1: Field,
    e2: Field,
    b: Field,
    core: float | Tensor = 0.0,
) -> Tensor:
    """Return the brightness of `sersic` from ellipticity components, in which it is smooth where the light is round.

    The square of its elliptical radius is [(1 + e^2)(x^2 + y^2) - 2 e1 (x^2 - y^2) - 4 e2 x y] / (1 - e^2), with
    e = (1 - q)/(1 + q), e1 = e cos(2 angle) and e2 = e sin(2 angle); the other arguments are those of `sersic`.
    `core`, arcsec, is added to the elliptical radius in quadrature.
    """
    squared = (elliptical_square(x, y, e1=e1, e2=e2) + core * core).clamp_min(_SMALLEST_SQUARE)
    power = torch.exp(torch.log(squared) * (0.5 / n) - torch.log(R_e) / n)
    return amplitude * torch.exp(b - b * power)


def elliptical_square(x: Field, y: Field, *, e1: Field, e2: Field) -> Tensor:
    """Return the square of the elliptical radius of `sersic_of_ellipticity`, in the unit of x squared."""
    squared_e = e1 * e1 + e2 * e2
    xx, yy = x * x, y * y
    return ((1 + squared_e) * (xx + yy) - 2 * e1 * (xx - yy) - 4 * e2 * (x * y)) / (1 - squared_e)


def shapelets(
    x: Float[Tensor, "b h w"], y: Float[Tensor, "b h w"], *, beta: Float[Tensor, "b 1 1"], n_max: int
) -> Float[Tensor, "b k h w"]:
    """Return all Cartesian shapelets up to total order n_max (Refregier 2003, MNRAS 338, 35, eq. 1 and 18).

    B_jk = phi_j(x / beta) phi_k(y / beta) / beta, phi_n(t) = H_n(t) exp(-t^2 / 2) / sqrt(2^n sqrt(pi) n!), 1 / arcsec.

    Args:
        x: Coordinates in arcsec.
        y: Coordinates in arcsec.
        beta: Scale in arcsec.
        n_max: Highest order.

    Returns:
        k = (n_max + 1)(n_max + 2)/2 functions: j + k = 0, then (1, 0), (0, 1), then (2, 0), (1, 1), (0, 2), ...
    """
    along, across = (_hermite(v / beta, n_max) for v in (x, y))
    pairs = [(order - k, k) for order in range(n_max + 1) for k in range(order + 1)]
    return torch.stack([along[j] * across[k] for j, k in pairs], 1) / beta[:, None]


def _hermite(t: Tensor, n_max: int) -> list[Tensor]:
    """Return phi_0 ... phi_n_max by their recurrence, which stays finite where H_n would overflow."""
    functions = [torch.exp(-t * t / 2) * math.pi**-0.25]
    if n_max:
        functions.append(math.sqrt(2) * t * functions[0])
    for n in range(2, n_max + 1):
        functions.append(math.sqrt(2 / n) * t * functions[-1] - math.sqrt((n - 1) / n) * functions[-2])
    return functions
