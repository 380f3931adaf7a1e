"""Laws that every mass profile obeys, found through the registry, and those of single profiles."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from darklens.physics.grid import Grid
from darklens.physics.profiles import PROFILES, line, point, sie, sis
from darklens.physics.raytrace import k_map_deflection, point_masses_deflection, source_plane

MILLIARCSEC = 1e-3
EXACT_ARCSEC = 1e-10  # float64 algebra
SINGLE_ARCSEC = 2e-5  # float32 against float64, at radii of arcsecs

ALL = sorted(PROFILES)
angle = st.floats(-3.1, 3.1)
positions = st.lists(st.tuples(st.floats(0.3, 4.0), angle), min_size=1, max_size=6)


def parameters_of(name):
    ranges = {"theta_E": (0.1, 2.0), "mass": (0.01, 1.0), "length": (0.1, 3.0)}
    return st.fixed_dictionaries(
        {p.symbol: st.floats(*ranges.get(p.symbol, (0.5 * p.low, 0.5 * p.high))) for p in PROFILES[name].parameters}
    )


def tensors(values, **kwargs):
    return {name: torch.tensor(value, dtype=torch.float64, **kwargs) for name, value in values.items()}


def points(polar, *lenses, clear=0.05):
    """Cartesian positions, kept `clear` arcsec off line masses, where the convergence is not zero."""
    r, phi = torch.tensor(polar, dtype=torch.float64).T
    x, y = r * torch.cos(phi), r * torch.sin(phi)
    for parameters in lenses:
        if "length" in parameters:
            across = y * math.cos(parameters["angle"]) - x * math.sin(parameters["angle"])
            x, y = x[across.abs() > clear], y[across.abs() > clear]
    return x, y


@pytest.mark.parametrize("name", ALL)
@given(data=st.data(), polar=positions)
@settings(max_examples=25, deadline=None)
def test_deflection_is_the_gradient_of_the_potential_and_its_divergence_twice_kappa(name, data, polar):
    profile, values = PROFILES[name], data.draw(parameters_of(name))
    x, y = (c.requires_grad_() for c in points(polar, values))
    p = tensors(values)
    gradient = torch.autograd.grad(profile.potential(x, y, **p).sum(), (x, y))
    alpha = profile.deflection(x, y, **p)
    for expected, found in zip(gradient, alpha, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=EXACT_ARCSEC)
    divergence = (
        torch.autograd.grad(alpha[0].sum(), x, retain_graph=True)[0] + torch.autograd.grad(alpha[1].sum(), y)[0]
    )
    torch.testing.assert_close(divergence / 2, profile.convergence(x, y, **p), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", ALL)
@given(data=st.data(), polar=positions)
@settings(max_examples=15, deadline=None)
def test_single_precision_agrees_and_a_batch_is_its_members(name, data, polar):
    profile, first, second = PROFILES[name], data.draw(parameters_of(name)), data.draw(parameters_of(name))
    # Closer to an end of a line the deflection is so steep that rounding the position changes it.
    x, y = points(polar, first, second, clear=0.3)
    stacked = {k: torch.tensor([[first[k]], [second[k]]], dtype=torch.float64) for k in first}
    batch = profile.deflection(x, y, **stacked)
    for row, values in enumerate((first, second)):
        for together, alone in zip(batch, profile.deflection(x, y, **tensors(values)), strict=True):
            torch.testing.assert_close(together[row], alone, rtol=1e-13, atol=1e-14)
    single = profile.deflection(x.float(), y.float(), **{k: v.float() for k, v in stacked.items()})
    for low, high in zip(single, batch, strict=True):
        torch.testing.assert_close(low.double(), high, rtol=1e-4, atol=SINGLE_ARCSEC)


@pytest.mark.parametrize("name", ALL)
@given(data=st.data(), polar=positions, turn=angle)
@settings(max_examples=15, deadline=None)
def test_turning_the_lens_turns_the_deflection(name, data, polar, turn):
    profile, values = PROFILES[name], data.draw(parameters_of(name))
    x, y = points(polar, values)
    turned = dict(values)
    for first, second in (("e1", "e2"), ("gamma1", "gamma2")):
        if first in values:
            c, s = math.cos(2 * turn), math.sin(2 * turn)
            turned[first] = c * values[first] - s * values[second]
            turned[second] = s * values[first] + c * values[second]
    if "angle" in values:
        turned["angle"] = values["angle"] + turn
    c, s = math.cos(turn), math.sin(turn)
    ax, ay = profile.deflection(x, y, **tensors(values))
    bx, by = profile.deflection(c * x - s * y, s * x + c * y, **tensors(turned))
    torch.testing.assert_close(bx, c * ax - s * ay, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(by, s * ax + c * ay, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", ["sis", "sie", "shear", "point"])
def test_the_origin_has_a_finite_value_and_gradient(name):
    zero = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    p = {q.symbol: torch.tensor(0.1, dtype=torch.float64, requires_grad=True) for q in PROFILES[name].parameters}
    alpha = PROFILES[name].deflection(zero, zero, **p)
    assert all(float(a.detach()) == 0 for a in alpha)
    gradients = torch.autograd.grad(alpha[0].sum() + alpha[1].sum(), [zero, *p.values()], allow_unused=True)
    assert all(torch.isfinite(g).all() for g in gradients if g is not None)


@given(e=st.floats(0, 1e-2), phi=angle, polar=positions)
@settings(max_examples=40, deadline=None)
def test_a_nearly_round_sie_is_a_sis_with_finite_gradients(e, phi, polar):
    x, y = points(polar)
    e1 = torch.tensor(e * math.cos(phi), dtype=torch.float64, requires_grad=True)
    e2 = torch.tensor(e * math.sin(phi), dtype=torch.float64, requires_grad=True)
    theta_E = torch.tensor(1.2, dtype=torch.float64)
    ellipse, circle = sie.deflection(x, y, theta_E=theta_E, e1=e1, e2=e2), sis.deflection(x, y, theta_E=theta_E)
    for a, b in zip(ellipse, circle, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=3 * e * 1.2 + EXACT_ARCSEC)
    gradients = torch.autograd.grad(ellipse[0].sum() + ellipse[1].sum(), [e1, e2])
    assert all(torch.isfinite(g) for g in gradients)


def test_the_sie_series_meets_its_closed_form():
    below, above = (torch.tensor(t, dtype=torch.float64) for t in (2e-3 * (1 - 1e-9), 2e-3 * (1 + 1e-9)))
    for quotient in (sie._arctan_quotient, sie._artanh_quotient):
        assert abs(float(quotient(below) - quotient(above))) < 1e-11


def test_a_line_is_the_limit_of_many_points_and_converges_at_second_order():
    x, y = Grid(n_pixels=2, pixel_scale=1.9).coordinates(dtype=torch.float64)
    mass, length, direction = 0.05, 1.6, 0.7
    exact = line.deflection(x, y, **tensors({"mass": mass, "length": length, "angle": direction}))
    errors = []
    for n in (40, 80, 160):
        offset = (torch.arange(n, dtype=torch.float64) + 0.5) / n * length - length / 2
        approximate = point_masses_deflection(
            x,
            y,
            theta_E=torch.full((1, n), math.sqrt(mass / n), dtype=torch.float64),
            centre_x=(offset * math.cos(direction))[None],
            centre_y=(offset * math.sin(direction))[None],
        )
        errors.append(max(float((a[0] - b).abs().max()) for a, b in zip(approximate, exact, strict=True)))
    assert errors[-1] < 1e-3 * MILLIARCSEC
    orders = [math.log2(errors[i] / errors[i + 1]) for i in range(2)]
    assert all(1.8 < order < 2.2 for order in orders), orders


def test_a_short_line_is_a_point_in_single_precision_too():
    x, y = torch.tensor([0.7, -2.0]), torch.tensor([0.4, 1.0])
    short = line.deflection(x, y, mass=torch.tensor(0.04), length=torch.tensor(1e-5), angle=torch.tensor(0.3))
    spot = point.deflection(x, y, theta_E=torch.tensor(0.2))
    for a, b in zip(short, spot, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("name", "values"), [("point", {"theta_E": 0.4}), ("line", {"mass": 0.16, "length": 1.0, "angle": 0.4})]
)
def test_the_flux_of_the_deflection_through_a_circle_is_two_pi_times_the_mass(name, values):
    phi = torch.arange(0, 2 * math.pi, 2 * math.pi / 4096, dtype=torch.float64)
    ax, ay = PROFILES[name].deflection(2 * torch.cos(phi), 2 * torch.sin(phi), **tensors(values))
    flux = float((ax * torch.cos(phi) + ay * torch.sin(phi)).mean()) * 2 * 2 * math.pi
    assert flux == pytest.approx(2 * math.pi * 0.16, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("direction", [0.0, 0.6, math.pi / 2, -2.5])
@pytest.mark.parametrize("end", [-1, 1])
def test_the_deflection_is_finite_at_and_right_near_the_ends_of_a_line(dtype, direction, end):
    # In float32 a quotient of squares cannot tell points within 2e-4 half-lengths of an end from the end itself.
    length, mass = 1.7, 0.05
    away = torch.tensor([0.0, 1e-6, 1e-4, 2e-4, 1e-3], dtype=torch.float64)
    u = end * (length / 2 + away)
    at = (u * math.cos(direction)).to(dtype), (u * math.sin(direction)).to(dtype)
    x, y = (c.requires_grad_() for c in at)
    p = {k: v.to(dtype) for k, v in tensors({"mass": mass, "length": length, "angle": direction}).items()}
    alpha = line.deflection(x, y, **p)
    gradients = torch.autograd.grad(alpha[0].sum() + alpha[1].sum(), (x, y))
    assert all(torch.isfinite(v).all() for v in (*alpha, *gradients, line.potential(x, y, **p)))
    along = end * (alpha[0] * math.cos(direction) + alpha[1] * math.sin(direction)).detach().double()
    expected = mass / length * torch.log((length + away) / away)
    tolerance = 1e-9 if dtype == torch.float64 else 0.1 * MILLIARCSEC
    torch.testing.assert_close(along[-1], expected[-1], rtol=0, atol=tolerance)
    # Nearer, float32 positions are a fair part of the distance; the logarithm forgives it.
    torch.testing.assert_close(along[2:], expected[2:], rtol=0, atol=MILLIARCSEC)
    assert along[0] > along[-1] > 0


def test_the_normal_deflection_jumps_across_a_line():
    p = tensors({"mass": 0.05, "length": 1.5, "angle": 0.0})
    x = torch.tensor([0.3], dtype=torch.float64)
    above, below = (line.deflection(x, torch.tensor([s * 1e-9], dtype=torch.float64), **p)[1] for s in (1, -1))
    assert float(above - below) == pytest.approx(2 * math.pi * 0.05 / 1.5, rel=1e-6)


def test_deflections_add_up():
    x = torch.tensor([1.0, 2.0])
    beta_x, beta_y = source_plane(x, x, [(x * 0.1, x * 0.2), (x * 0.3, x * 0.1)])
    torch.testing.assert_close(beta_x, 0.6 * x)
    torch.testing.assert_close(beta_y, 0.7 * x)


def test_many_points_are_the_sum_of_single_ones_and_differentiable():
    x, y = Grid(n_pixels=5, pixel_scale=0.3).coordinates(dtype=torch.float64)
    g = torch.Generator().manual_seed(0)
    inputs = [torch.rand(2, 3, generator=g, dtype=torch.float64, requires_grad=True) for _ in range(3)]

    def together(theta_E, at_x, at_y):
        return point_masses_deflection(x, y, theta_E=theta_E, centre_x=at_x, centre_y=at_y)

    theta_E, at_x, at_y = inputs
    single = [
        sum(point.deflection(x - at_x[1, k], y - at_y[1, k], theta_E=theta_E[1, k])[axis] for k in range(3))
        for axis in range(2)
    ]
    for a, b in zip(together(*inputs), single, strict=True):
        torch.testing.assert_close(a[1], b, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(together, inputs)


def test_massless_points_deflect_nothing():
    x, y = Grid(n_pixels=5, pixel_scale=0.1).coordinates()
    zero = torch.zeros(2, 3)
    alpha_x, alpha_y = point_masses_deflection(x, y, theta_E=zero, centre_x=zero, centre_y=zero)
    assert not alpha_x.any() and not alpha_y.any()


class TestKMap:
    def test_a_constant_k_is_a_sis(self):
        x, y = Grid(n_pixels=21, pixel_scale=0.1).coordinates(dtype=torch.float64)
        k = torch.full((2, 21, 21), 1.1, dtype=torch.float64)
        for form in ("ignore", "exact"):
            found = k_map_deflection(x, y, k, grad_k=form)
            for a, b in zip(found, sis.deflection(x, y, theta_E=torch.tensor(1.1, dtype=torch.float64)), strict=True):
                torch.testing.assert_close(a, b.expand_as(a), rtol=0, atol=EXACT_ARCSEC)

    def test_the_exact_form_is_the_gradient_of_k_r_at_second_order(self):
        errors = []
        for n in (40, 80):
            x, y = (c.requires_grad_() for c in Grid(n_pixels=n, pixel_scale=4 / n).coordinates(dtype=torch.float64))
            k = 1 + 0.2 * torch.sin(x) * torch.cos(0.7 * y)
            psi = k * torch.sqrt(x * x + y * y)
            expected = torch.autograd.grad(psi.sum(), (x, y))
            exact = k_map_deflection(x.detach(), y.detach(), k.detach()[None], grad_k="exact")
            ignored = k_map_deflection(x.detach(), y.detach(), k.detach()[None], grad_k="ignore")
            inner = (slice(None), slice(2, -2), slice(2, -2))
            errors.append(max(float((a - b)[inner].abs().max()) for a, b in zip(exact, expected, strict=True)))
            assert float((ignored[0] - expected[0])[inner].abs().max()) > 0.1
        assert 1.7 < math.log2(errors[0] / errors[1]) < 2.3

    def test_another_form_is_refused(self):
        x, y = Grid(n_pixels=4, pixel_scale=0.1).coordinates()
        with pytest.raises(ValueError, match="'ignore' or 'exact'"):
            k_map_deflection(x, y, torch.ones(1, 4, 4), grad_k="none")
