"""Masses beside the smooth lens as unknowns of a fit: their deflection and its derivatives.

Both are harmonic off the mass, so alpha* = alpha_x - i alpha_y is an analytic function of z = x + i y, and each
derivative is one more such function. The masses are written in real arithmetic, which runs on any device.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from darklens.physics.profiles import line, point

POINT = ("mass", "x", "y")  # arcsec^2, arcsec
LINE = ("mass", "x", "y", "angle", "ln_length")  # arcsec^2, arcsec, radians from x towards y, ln arcsec

# arcsec; derivatives grow without bound towards a mass, and a fit that meets a pixel there would be thrown off.
_SOFT = 0.03
_JUMP = 0.025  # arcsec; a jump in the deflection counts as a slope over this width in derivatives


class Masses(NamedTuple):
    """A deflection (arcsec), and its derivatives by each unknown, in x and y (b, k, s, s)."""

    alpha: tuple[Tensor, Tensor]
    by_x: Tensor
    by_y: Tensor


def points(unknown: Float[Tensor, "b k"], x: Float[Tensor, "1 s"], y: Float[Tensor, "s 1"]) -> Masses:
    """Return the joint deflection of point masses; the unknowns are mass, x and y of one after the other."""
    mass, at_x, at_y = (v[:, :, None, None] for v in unknown.reshape(len(unknown), -1, len(POINT)).unbind(2))
    from_x, from_y = x - at_x, y - at_y
    alpha_x, alpha_y = point.deflection(from_x, from_y, theta_E=torch.ones_like(mass))
    # d(1/z)/dz = -1/z^2, and by the mass's place with the opposite sign.
    inverse = 1 / (from_x * from_x + from_y * from_y + _SOFT**2)
    real = mass * (from_x * from_x - from_y * from_y) * inverse**2
    imaginary = mass * (2 * from_x * from_y) * inverse**2
    by_x = torch.stack([alpha_x, real, imaginary], 2).flatten(1, 2)
    by_y = torch.stack([alpha_y, imaginary, -real], 2).flatten(1, 2)
    return Masses(((mass * alpha_x).sum(1), (mass * alpha_y).sum(1)), by_x, by_y)


def one_line(
    unknown: Float[Tensor, "b 5"], x: Float[Tensor, "1 s"], y: Float[Tensor, "s 1"], *, blur: float = 0.0
) -> Masses:
    """Return the deflection of a line mass.

    In the line's frame, u along and v across, with half length h: the part along it is m/L times
    A = ln[((u + h)^2 + v^2) / ((u - h)^2 + v^2)] / 2, the part across m/L times O = atan2(2 h v, u^2 + v^2 - h^2).

    Args:
        unknown: mass, x, y, angle and ln length of each image's line.
        x: arcsec.
        y: arcsec.
        blur: Width over which the jump of O across the line is spread, arcsec. Light is sampled at points, so a sharp
            line that moves makes pixels jump one by one, and no derivative says so.
    """
    mass, at_x, at_y, angle, ln_length = (v[:, None, None] for v in unknown.unbind(1))
    length, from_x, from_y = ln_length.exp(), x - at_x, y - at_y
    cos, sin, h, density = torch.cos(angle), torch.sin(angle), length / 2, mass / length
    u, v = from_x * cos + from_y * sin, from_y * cos - from_x * sin
    unit = line.terms(mass=torch.ones_like(mass), length=length, angle=torch.zeros_like(angle))
    along, across = line.deflection_from(u, v, unit)
    near = 1 / (v * v + max(blur, _JUMP) ** 2).sqrt()
    # d|v|/sqrt(v^2 + blur^2) / dv, times the sign that O has.
    rise = length * across.abs() * max(blur, _JUMP) ** 2 * near**3
    smooth = v.abs() * near if blur else torch.ones_like(v)
    across = across * smooth
    start, end = (1 / (part * part + v * v + _SOFT**2) for part in (u + h, u - h))
    start_u, end_u, start_v, end_v = (u + h) * start, (u - h) * end, v * start, v * end
    along_u, along_v = density * (start_u - end_u), density * (start_v - end_v)
    across_u, across_v = along_v * smooth, density * rise - along_u * smooth
    alpha_along, alpha_across = mass * along, mass * across
    turn_along = along_u * v - along_v * u - alpha_across
    turn_across = across_u * v - across_v * u + alpha_along
    grow_along = density * h * (start_u + end_u) - alpha_along
    grow_across = density * h * (start_v + end_v) * smooth - alpha_across
    parts = [
        (along, across),
        (along_v * sin - along_u * cos, across_v * sin - across_u * cos),
        (-along_u * sin - along_v * cos, -across_u * sin - across_v * cos),
        (turn_along, turn_across),
        (grow_along, grow_across),
    ]
    by_x = torch.stack([a * cos - c * sin for a, c in parts], 1)
    by_y = torch.stack([a * sin + c * cos for a, c in parts], 1)
    return Masses((mass * by_x[:, 0], mass * by_y[:, 0]), by_x, by_y)
