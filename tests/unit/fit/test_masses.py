"""Deflections of perturbers agree with the mass profiles, and their derivatives with finite differences."""

import pytest
import torch

from darklens.fit import masses
from darklens.physics.profiles import line, point

# No grid point coincides with a point mass, the line or its ends.
X = torch.linspace(-2, 2, 9, dtype=torch.float64)[None]
Y = torch.linspace(-1.9, 2.1, 9, dtype=torch.float64)[:, None]
POINTS = torch.tensor([[0.3, 0.11, 0.23, 0.5, -0.4, 0.33]], dtype=torch.float64)
LINE = torch.tensor([[0.3, 0.11, 0.23, 0.7, 0.3]], dtype=torch.float64)


def test_deflections_equal_those_of_the_profiles():
    alpha = masses.points(POINTS, X, Y).alpha
    each = [
        point.deflection(X - POINTS[0, i + 1], Y - POINTS[0, i + 2], theta_E=POINTS[0, i].sqrt())
        for i in range(0, 6, 3)
    ]
    for axis in (0, 1):
        torch.testing.assert_close(alpha[axis][0], each[0][axis] + each[1][axis])
    mass, x, y, angle, ln_length = LINE[0]
    expected = line.deflection(X - x, Y - y, mass=mass, length=ln_length.exp(), angle=angle)
    for axis in (0, 1):
        torch.testing.assert_close(masses.line_mass(LINE, X, Y).alpha[axis][0], expected[axis])


@pytest.mark.parametrize(
    ("function", "parameters", "blur"),
    [(masses.points, POINTS, None), (masses.line_mass, LINE, 0.0), (masses.line_mass, LINE, 0.1)],
)
def test_derivatives_agree_with_finite_differences(function, parameters, blur, monkeypatch):
    monkeypatch.setattr(masses, "_SOFTENING", 0.0)
    # Without blur, the jump is a delta function, which finite differences miss.
    monkeypatch.setattr(masses, "_JUMP_WIDTH", 1e-9)
    options = {} if blur is None else {"blur": blur}
    derivatives = function(parameters, X, Y, **options)
    for k in range(parameters.shape[1]):
        step = torch.zeros_like(parameters)
        step[0, k] = 1e-6
        ahead, behind = (function(parameters + sign * step, X, Y, **options).alpha for sign in (1, -1))
        for axis, slopes in enumerate((derivatives.by_x, derivatives.by_y)):
            torch.testing.assert_close(slopes[:, k], (ahead[axis] - behind[axis]) / 2e-6, rtol=1e-6, atol=1e-7)


def test_a_blurred_line_has_no_jump_and_agrees_with_the_sharp_line_far_away():
    across = torch.tensor([-1e-4, 1e-4], dtype=torch.float64)[:, None]
    on_axis = torch.zeros(1, 2, dtype=torch.float64)
    at = torch.tensor([[0.3, 0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    sharp, soft = (masses.line_mass(at, on_axis, across, blur=blur).alpha[1][0, :, 0] for blur in (0.0, 0.05))
    assert float(sharp[1] - sharp[0]) == pytest.approx(2 * torch.pi * 0.3, rel=1e-2)
    assert abs(float(soft[1] - soft[0])) < 0.01
    far = torch.full((1, 1), 1.5, dtype=torch.float64)
    sharp, soft = (masses.line_mass(at, on_axis[:, :1], far, blur=blur).alpha[1] for blur in (0.0, 0.05))
    torch.testing.assert_close(sharp, soft, rtol=1e-3, atol=0)
