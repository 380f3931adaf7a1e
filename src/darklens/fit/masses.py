"""Deflections of point and line masses, and their derivatives with respect to mass, position and shape.

Outside the mass, alpha* = alpha_x - i alpha_y is an analytic function of z = x + i y, and so is each derivative. The
code uses real arithmetic, which runs on every device.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from darklens.physics.profiles import line, point

POINT = ("mass", "x", "y")  # arcsec^2, arcsec
LINE = ("mass", "x", "y", "angle", "ln_length")  # arcsec^2, arcsec, radians from x towards y, ln arcsec

_SOFTENING = 0.03  # arcsec; bounds the derivatives near a mass
_JUMP_WIDTH = 0.025  # arcsec, over which the derivatives spread the jump of the deflection across a line


class MassDeflections(NamedTuple):
    """Deflections (arcsec) (b, s, s), and derivatives of their x and y components by each parameter (b, k, s, s)."""

    alpha: tuple[Tensor, Tensor]
    by_x: Tensor
    by_y: Tensor


def points(parameters: Float[Tensor, "b k"], x: Float[Tensor, "1 s"], y: Float[Tensor, "s 1"]) -> MassDeflections:
    """Return the total deflection of point masses; the parameters are mass, x and y of each in turn."""
    mass, at_x, at_y = (v[:, :, None, None] for v in parameters.reshape(len(parameters), -1, len(POINT)).unbind(2))
    from_x, from_y = x - at_x, y - at_y
    alpha_x, alpha_y = point.deflection(from_x, from_y, theta_E=torch.ones_like(mass))
    # d(1/z)/dz = -1/z^2; the derivative by the position of the mass has the opposite sign.
    inverse = 1 / (from_x * from_x + from_y * from_y + _SOFTENING**2)
    real = mass * (from_x * from_x - from_y * from_y) * inverse**2
    imaginary = mass * (2 * from_x * from_y) * inverse**2
    by_x = torch.stack([alpha_x, real, imaginary], 2).flatten(1, 2)
    by_y = torch.stack([alpha_y, imaginary, -real], 2).flatten(1, 2)
    return MassDeflections(((mass * alpha_x).sum(1), (mass * alpha_y).sum(1)), by_x, by_y)


def line_mass(
    parameters: Float[Tensor, "b 5"], x: Float[Tensor, "1 s"], y: Float[Tensor, "s 1"], *, blur: float = 0.0
) -> MassDeflections:
    """Return the deflection of a line mass.

    With u along the line, v across it and half length h, the deflection along the line is m/L times
    A = ln[((u + h)^2 + v^2) / ((u - h)^2 + v^2)] / 2, and across it m/L times O = atan2(2 h v, u^2 + v^2 - h^2).

    Args:
        parameters: Mass, x, y, angle and ln length of one line for each image.
        x: Positions, arcsec.
        y: Positions, arcsec.
        blur: Width over which the jump of O across the line is smoothed, arcsec. Light is sampled at points: when a
            sharp line moves, pixels change discontinuously, and derivatives do not describe it.
    """
    mass, at_x, at_y, angle, ln_length = (v[:, None, None] for v in parameters.unbind(1))
    length, from_x, from_y = ln_length.exp(), x - at_x, y - at_y
    cos, sin, h, density = torch.cos(angle), torch.sin(angle), length / 2, mass / length
    u, v = from_x * cos + from_y * sin, from_y * cos - from_x * sin
    unit = line.terms(mass=torch.ones_like(mass), length=length, angle=torch.zeros_like(angle))
    along, across = line.deflection_from(u, v, unit)
    near = 1 / (v * v + max(blur, _JUMP_WIDTH) ** 2).sqrt()
    # Derivative of |v| / sqrt(v^2 + blur^2) by v, times the sign of O.
    rise = length * across.abs() * max(blur, _JUMP_WIDTH) ** 2 * near**3
    smooth = v.abs() * near if blur else torch.ones_like(v)
    across = across * smooth
    start, end = (1 / (part * part + v * v + _SOFTENING**2) for part in (u + h, u - h))
    start_u, end_u, start_v, end_v = (u + h) * start, (u - h) * end, v * start, v * end
    along_u, along_v = density * (start_u - end_u), density * (start_v - end_v)
    across_u, across_v = along_v * smooth, density * rise - along_u * smooth
    alpha_along, alpha_across = mass * along, mass * across
    angle_along = along_u * v - along_v * u - alpha_across
    angle_across = across_u * v - across_v * u + alpha_along
    length_along = density * h * (start_u + end_u) - alpha_along
    length_across = density * h * (start_v + end_v) * smooth - alpha_across
    parts = [
        (along, across),
        (along_v * sin - along_u * cos, across_v * sin - across_u * cos),
        (-along_u * sin - along_v * cos, -across_u * sin - across_v * cos),
        (angle_along, angle_across),
        (length_along, length_across),
    ]
    by_x = torch.stack([a * cos - c * sin for a, c in parts], 1)
    by_y = torch.stack([a * sin + c * cos for a, c in parts], 1)
    return MassDeflections((mass * by_x[:, 0], mass * by_y[:, 0]), by_x, by_y)
