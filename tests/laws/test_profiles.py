"""Laws that every mass profile obeys, found through the registry, and those of single profiles."""

import itertools
import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from darklens.physics.duals import slopes_of, value_of, variable
from darklens.physics.grid import Grid
from darklens.physics.profiles import PROFILES, _series, epl, line, nfw, point, shear, sie, sis, tnfw
from darklens.physics.raytrace import k_map_deflection, point_masses_deflection, source_plane

MILLIARCSEC = 1e-3
EXACT_ARCSEC = 1e-10  # float64 algebra
SINGLE_ARCSEC = 2e-5  # float32 against float64, at radii of arcsecs

ALL = sorted(PROFILES)
angle = st.floats(-3.1, 3.1)
positions = st.lists(st.tuples(st.floats(0.3, 4.0), angle), min_size=1, max_size=6)


def parameters_of(name):
    ranges = {
        "theta_E": (0.1, 2.0),
        "mass": (0.01, 1.0),
        "length": (0.1, 3.0),
        "alpha_Rs": (0.05, 1.5),
        "R_s": (0.05, 3.0),
        "r_t": (0.1, 20.0),
        "slope": (1.2, 2.8),
    }
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
@settings(max_examples=15, deadline=None)
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


@pytest.mark.parametrize(("name", "profile"), [("sis", sis), ("sie", sie), ("shear", shear)])
@given(data=st.data(), polar=positions)
@settings(max_examples=25, deadline=None)
def test_the_hessian_is_the_gradient_of_the_deflection(name, profile, data, polar):
    values = tensors(data.draw(parameters_of(name)))
    x, y = (c.requires_grad_() for c in points(polar))
    alpha_x, alpha_y = profile.deflection(x, y, **values)
    xx, xy = torch.autograd.grad(alpha_x.sum(), (x, y), retain_graph=True)
    yx, yy = torch.autograd.grad(alpha_y.sum(), (x, y))
    found = torch.stack([v.expand_as(x) for v in profile.hessian(x, y, **values)])
    torch.testing.assert_close(found, torch.stack([xx, xy, yy]), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(xy, yx, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", ALL)
@given(data=st.data(), polar=positions)
@settings(max_examples=8, deadline=None)
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
@settings(max_examples=8, deadline=None)
def test_turning_the_lens_turns_the_deflection(name, data, polar, turn):
    profile, values = PROFILES[name], data.draw(parameters_of(name))
    x, y = points(polar, values)
    turned = dict(values)
    order = int(name[-1]) if name.startswith("multipole") else 0
    for first, second, fold in (("e1", "e2", 2), ("gamma1", "gamma2", 2), ("a", "b", order)):
        if first in values:
            c, s = math.cos(fold * turn), math.sin(fold * turn)
            turned[first] = c * values[first] - s * values[second]
            turned[second] = s * values[first] + c * values[second]
    if "angle" in values:
        turned["angle"] = values["angle"] + turn
    c, s = math.cos(turn), math.sin(turn)
    ax, ay = profile.deflection(x, y, **tensors(values))
    bx, by = profile.deflection(c * x - s * y, s * x + c * y, **tensors(turned))
    torch.testing.assert_close(bx, c * ax - s * ay, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(by, s * ax + c * ay, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", [name for name in ALL if name != "line"])
def test_the_origin_has_a_finite_value_and_gradient(name):
    zero = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    symbols = [parameter.symbol for parameter in PROFILES[name].parameters]
    p = tensors({symbol: 2.3 if symbol == "slope" else 0.1 for symbol in symbols}, requires_grad=True)
    alpha = PROFILES[name].deflection(zero, zero, **p)
    assert all(float(a.detach()) == 0 for a in alpha)
    gradients = torch.autograd.grad(alpha[0].sum() + alpha[1].sum(), [zero, *p.values()], allow_unused=True)
    assert all(torch.isfinite(g).all() for g in gradients if g is not None)


MASSES, SIZES = {"theta_E", "mass", "alpha_Rs", "a", "b", "gamma1", "gamma2"}, {"R_s", "r_t", "length", "R_a"}
GRID = Grid(n_pixels=5, pixel_scale=0.05).coordinates()  # with a pixel at the centre


def subsets(names):
    return [set(chosen) for k in range(len(names) + 1) for chosen in itertools.combinations(sorted(names), k)]


@pytest.mark.parametrize("law", ["potential", "deflection", "convergence"])
@pytest.mark.parametrize("name", ALL)
def test_no_law_is_nan_for_zero_mass_or_zero_size_with_a_pixel_at_the_centre(name, law):
    symbols = {parameter.symbol for parameter in PROFILES[name].parameters}
    for massless, round_ in itertools.product((True, False), repeat=2):
        for zero in subsets(symbols & SIZES):
            zero |= (symbols & MASSES if massless else set()) | ({"e1", "e2"} if round_ else set())
            values = {s: 0.0 if s in zero else {"slope": 2.3, "e1": 0.1, "e2": 0.1}.get(s, 0.5) for s in symbols}
            p = {symbol: torch.tensor(value, requires_grad=True) for symbol, value in values.items()}
            x, y = (c.float().requires_grad_() for c in GRID)
            result = getattr(PROFILES[name], law)(x, y, **p)
            result = result if isinstance(result, tuple) else (result,)
            assert all(torch.isfinite(value).all() for value in result), values
            assert not massless or all((value == 0).all() for value in result), values
            total = sum(value.sum() for value in result)
            if total.requires_grad:
                gradients = torch.autograd.grad(total, [x, y, *p.values()], allow_unused=True)
                assert all(torch.isfinite(g).all() for g in gradients if g is not None), values


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


@pytest.mark.parametrize(
    ("function", "at"),
    [
        (_series.signed_quotient, _series._SERIES_BELOW),
        (_series.signed_quotient, -_series._SERIES_BELOW),
        (_series.log1p_quotient, _series._SERIES_BELOW),
        (_series.log1p_quotient, -_series._SERIES_BELOW),
        (lambda u: nfw.f_and_g(u)[0], nfw._INNER_BELOW),
        (lambda u: nfw.f_and_g(u)[1], nfw._INNER_BELOW),
        (nfw.h, nfw._INNER_BELOW),
        (lambda u: nfw.projected(u, nfw.f_and_g(u)[0]), 1 - nfw._SERIES_BELOW),
        (lambda u: nfw.projected(u, nfw.f_and_g(u)[0]), 1 + nfw._SERIES_BELOW),
    ],
)
def test_two_forms_of_a_function_and_of_its_slope_meet(function, at):
    either_side = torch.tensor([at * (1 - 1e-13), at * (1 + 1e-13)], dtype=torch.float64, requires_grad=True)
    value = function(either_side)
    (slope,) = torch.autograd.grad(value.sum(), either_side)
    assert abs(float((value[1] - value[0]).detach())) < 1e-13
    assert abs(float(slope[1] - slope[0])) < 1e-12


NEW_ONES = {
    "nfw": {"alpha_Rs": 0.8, "R_s": 0.5},
    "tnfw": {"alpha_Rs": 0.8, "R_s": 0.5, "r_t": 0.5},
    "epl": {"theta_E": 1.2, "slope": 2.4, "e1": 0.0, "e2": 0.0},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("law", ["potential", "deflection", "convergence"])
@pytest.mark.parametrize("name", NEW_ONES)
def test_values_and_gradients_are_finite_everywhere(name, law, dtype):
    # The origin, the bounds below which a radius counts as zero, both sides of R_s = 0.5, and far away.
    one = [0, 1e-30, 1e-13, 1.1e-12, 4e-10, 6e-10, 0.9e-8, 1.1e-8, 1e-6, 1e-3, 0.25, 0.5, 0.5 * (1 + 1e-6), 1, 100, 1e4]
    axis = torch.tensor([*one, *(-v for v in one)], dtype=dtype)
    x, y = (c.clone().requires_grad_() for c in torch.meshgrid(axis, axis, indexing="ij"))
    p = {k: torch.full_like(x, v).requires_grad_() for k, v in NEW_ONES[name].items()}
    values = getattr(PROFILES[name], law)(x, y, **p)
    values = values if isinstance(values, tuple) else (values,)
    for value in values:
        assert value.isfinite().all()
        gradients = torch.autograd.grad(value.sum(), (x, y, *p.values()), retain_graph=True)
        assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("name", ALL)
def test_a_profile_never_branches_on_its_values(name):
    # Meta tensors have none: a Python branch, .item() or a mask raises. So does a graph break under torch.compile.
    x = torch.empty(2, 5, device="meta")
    p = {parameter.symbol: torch.empty(2, 1, device="meta") for parameter in PROFILES[name].parameters}
    profile = PROFILES[name]
    for value in (profile.potential(x, x, **p), *profile.deflection(x, x, **p), profile.convergence(x, x, **p)):
        assert value.shape == (2, 5) and value.dtype == torch.float32


class Halo:
    """The truncated halo in 60 digits, as Baltz et al. 2009 print it (A.5, A.6, A.8, A.11, A.14), or an NFW one."""

    def __init__(self, x, tau):
        self.x, self.tau = mpmath.mpf(x), None if tau is None else mpmath.mpf(tau)
        self.F = mpmath.mpf(1)
        if x != 1:
            root = mpmath.sqrt(abs(1 - self.x**2))
            self.F = (mpmath.acosh(1 / self.x) if x < 1 else mpmath.acos(1 / self.x)) / root
        self.K = mpmath.mpf(1) / 3 if x == 1 else (1 - self.F) / (self.x**2 - 1)
        if tau is not None:
            self.S = mpmath.sqrt(self.tau**2 + self.x**2)
            self.L = mpmath.log(self.x / (self.S + self.tau))

    def mass(self):
        x, tau, F = self.x, self.tau, self.F
        if tau is None:
            return mpmath.log(x / 2) + F
        logs = (tau**2 - 1) * mpmath.log(tau) + self.S * (-mpmath.pi + (tau**2 - 1) / tau * self.L)
        return (tau / (tau**2 + 1)) ** 2 * ((tau**2 + 1 + 2 * (x**2 - 1)) * F + tau * mpmath.pi + logs)

    def surface_density(self):
        tau, S = self.tau, self.S if self.tau else None
        if tau is None:
            return self.K
        rest = 2 * self.F - mpmath.pi / S + (tau**2 - 1) / (tau * S) * self.L
        return (tau / (tau**2 + 1)) ** 2 * ((tau**2 + 1) * self.K + rest)

    def potential(self):
        x, tau, arc = self.x, self.tau, -(1 - self.x**2) * self.F**2
        log = mpmath.log
        if tau is None:
            return log(x / 2) ** 2 + arc
        t2, S, L = tau**2, self.S, self.L
        total = 2 * t2 * mpmath.pi * (tau - S + tau * log(tau + S)) + 2 * (t2 - 1) * tau * S * L
        total += t2 * (t2 - 1) * (L**2 + arc) + 4 * t2 * (x**2 - 1) * self.F
        total += t2 * ((t2 - 1) * log(tau) - t2 - 1) * 2 * log(x)
        constant = (t2 - 1) * log(tau) * log(4 * tau) + 2 * log(tau / 2) - 2 * tau * (tau - mpmath.pi) * log(2 * tau)
        return (total - t2 * constant) / (t2 + 1) ** 2


RADII = [*np.logspace(-6, 4, 41), 0.5, 0.97, 1 - 1e-3, 1 - 1e-9, 1.0, 1 + 1e-9, 1 + 1e-3, 1.03]


@pytest.mark.parametrize(
    ("dtype", "relative", "absolute"), [(torch.float64, 1e-11, 1e-14), (torch.float32, 0.0, SINGLE_ARCSEC / 10)]
)
@pytest.mark.parametrize("tau", [None, 0.1, 1.0, 1 + 1e-7, 2.0, 50.0, 1e4])
def test_haloes_keep_their_digits_at_every_radius(tau, dtype, relative, absolute):
    R_s, profile = 0.0625, nfw if tau is None else tnfw  # a power of two scales without rounding
    x = torch.tensor(RADII, dtype=dtype)
    p = {"alpha_Rs": torch.ones((), dtype=dtype), "R_s": torch.full((), R_s, dtype=dtype)}
    if tau is not None:
        p["r_t"] = torch.full((), tau * R_s, dtype=dtype)
        tau = float(p["r_t"]) / R_s
    at = R_s * x, torch.zeros_like(x)
    # All three in the unit of alpha, which is what their rounding errors have in common.
    found = (
        profile.deflection(*at, **p)[0],
        profile.convergence(*at, **p) * at[0],
        profile.potential(*at, **p) / at[0],
    )
    with mpmath.workdps(60):
        haloes, k = [Halo(r, tau) for r in x.double().tolist()], 1 / (1 - mpmath.log(2))
        expected = (
            [k * halo.mass() / halo.x for halo in haloes],
            [k * halo.surface_density() * halo.x / 2 for halo in haloes],
            [k * halo.potential() / (2 * halo.x) for halo in haloes],
        )
    for ours, exact in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours.double(), [float(v) for v in exact], rtol=relative, atol=absolute)


def test_an_nfw_halo_deflects_by_alpha_Rs_at_R_s():
    p = tensors({"alpha_Rs": 0.7, "R_s": 0.3})
    alpha = nfw.deflection(torch.tensor(0.18, dtype=torch.float64), torch.tensor(-0.24, dtype=torch.float64), **p)
    assert [float(a) for a in alpha] == pytest.approx([0.42, -0.56], rel=1e-12)


@given(polar=positions, alpha_Rs=st.floats(0.05, 1.5), R_s=st.floats(0.05, 3.0))
@settings(max_examples=15, deadline=None)
def test_a_halo_truncated_far_away_is_not_truncated(polar, alpha_Rs, R_s):
    x, y = points(polar)
    p = tensors({"alpha_Rs": alpha_Rs, "R_s": R_s})
    for r_t, far in ((1e3, 1e-2), (1e9, 1e-9)):  # the difference falls as 1 / r_t
        truncated = tnfw.deflection(x, y, **p, r_t=torch.tensor(r_t, dtype=torch.float64))
        for a, b in zip(truncated, nfw.deflection(x, y, **p), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=far * alpha_Rs)
    near = tnfw.deflection(x, y, **p, r_t=torch.tensor(1.0, dtype=torch.float64))
    assert any(float((a - b).abs().max()) > 1e-3 * alpha_Rs for a, b in zip(near, truncated, strict=True))


@pytest.mark.parametrize("tau", [0.3, 1.0, 4.0, 50.0])
def test_a_truncated_halo_has_the_total_mass_of_its_density(tau):
    R_s, far = 0.2, torch.tensor(1e6, dtype=torch.float64)
    p = tensors({"alpha_Rs": 0.6, "R_s": R_s, "r_t": tau * R_s})
    # pi r alpha is the mass; 4 pi rho_0 R_s^3 = pi k R_s in these units (Baltz et al. 2009, eq. A.4).
    found = float(far * tnfw.deflection(far, torch.zeros_like(far), **p)[0]) / (0.6 * R_s / (1 - math.log(2)))
    printed = (tau / (tau**2 + 1)) ** 2 * ((tau**2 - 1) * math.log(tau) + tau * math.pi - (tau**2 + 1))
    assert found == pytest.approx(printed, rel=1e-6)
    density = float(
        mpmath.quad(lambda r: r / (1 + r) ** 2 * tau**2 / (r**2 + tau**2), [0, 1, tau, 10 * tau, mpmath.inf])
    )
    assert found == pytest.approx(density, rel=1e-6)


@pytest.mark.parametrize("radius", [0.02, 0.5, 3.0])
@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("sis", {"theta_E": 1.3}),
        ("nfw", {"alpha_Rs": 0.8, "R_s": 0.5}),
        ("tnfw", {"alpha_Rs": 0.8, "R_s": 0.5, "r_t": 1.1}),
        ("epl", {"theta_E": 1.2, "slope": 1.7, "e1": 0.2, "e2": -0.1}),
    ],
)
def test_the_mean_convergence_within_a_circle_is_alpha_over_its_radius(name, values, radius):
    p, profile = tensors(values), PROFILES[name]
    phi = torch.arange(128, dtype=torch.float64) * (2 * math.pi / 128)
    nodes, weights = np.polynomial.legendre.leggauss(60)
    # With r = radius s^8 the integrand is smooth at the centre, where the convergence is not.
    s, weights = (nodes[:, None] + 1) / 2, weights / 2
    r = torch.from_numpy(radius * s**8)
    kappa = profile.convergence(r * phi.cos(), r * phi.sin(), **p).mean(1).numpy()
    mean = 2 / radius**2 * float(weights @ (kappa * (r.numpy() * 8 * radius * s**7)[:, 0]))
    alpha_x, alpha_y = profile.deflection(radius * phi.cos(), radius * phi.sin(), **p)
    assert mean == pytest.approx(float((alpha_x * phi.cos() + alpha_y * phi.sin()).mean()) / radius, rel=1e-8)


@given(e=st.floats(0, 0.5), phi=angle, theta_E=st.floats(0.1, 2), polar=positions)
@settings(max_examples=40, deadline=None)
def test_an_isothermal_power_law_is_a_sie(e, phi, theta_E, polar):
    x, y = points(polar)
    p = tensors({"theta_E": theta_E, "e1": e * math.cos(phi), "e2": e * math.sin(phi)})
    two = torch.tensor(2.0, dtype=torch.float64)
    pairs = [*zip(epl.deflection(x, y, slope=two, **p), sie.deflection(x, y, **p), strict=True)]
    pairs.append((epl.potential(x, y, slope=two, **p), sie.potential(x, y, **p)))
    pairs.append((epl.convergence(x, y, slope=two, **p), sie.convergence(x, y, **p)))
    for found, expected in pairs:
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=EXACT_ARCSEC)


def test_the_series_of_the_power_law_is_as_exact_as_its_docstring_says(monkeypatch):
    x, y = Grid(n_pixels=12, pixel_scale=0.31).coordinates(dtype=torch.float64)
    p = {"theta_E": 1.0, "slope": 2.6, "e1": 0.0, "e2": 0.0}
    for e, promised in ((0.5, 2e-12), (0.6, 4e-9), (0.7, 3e-6)):
        monkeypatch.undo()
        forty = epl.deflection(x, y, **tensors(p | {"e1": e}))
        monkeypatch.setattr(epl, "TERMS", 200)
        exact = epl.deflection(x, y, **tensors(p | {"e1": e}))
        # The factor before the sum is kappa |zeta| 2 / (3 - slope).
        scale = epl.convergence(x, y, **tensors(p | {"e1": e})) * torch.hypot((1 - e) * x, (1 + e) * y) * 2 / 0.4
        error = max(float(((a - b).abs() / scale).max()) for a, b in zip(forty, exact, strict=True))
        assert promised / 300 < error < promised, e


@pytest.mark.parametrize("e", [0.0, 1e-12, 1e-6, 1e-3, 0.0099, 0.0101])
@pytest.mark.parametrize(("profile", "parameters"), [(epl, {"slope": 2.3}), (sie, {})])
def test_a_round_lens_still_feels_its_ellipticity(profile, parameters, e):
    at = torch.tensor([0.7], dtype=torch.float64), torch.tensor([-0.4], dtype=torch.float64)
    p = tensors({"theta_E": 1.2, "e1": e, "e2": e / 3, **parameters}, requires_grad=True)
    for axis in range(2):
        slopes = torch.autograd.grad(profile.deflection(*at, **p)[axis].sum(), (p["e1"], p["e2"]))
        for symbol, slope in zip(("e1", "e2"), slopes, strict=True):
            values = [
                {k: float(v.detach()) for k, v in p.items()} | {symbol: float(p[symbol].detach()) + step}
                for step in (1e-5, -1e-5)
            ]
            ahead, behind = (float(profile.deflection(*at, **tensors(v))[axis]) for v in values)
            assert float(slope) == pytest.approx((ahead - behind) / 2e-5, rel=1e-6)
            assert abs(float(slope)) > 1e-3


@pytest.mark.parametrize("e", [0.0, 0.1])
@pytest.mark.parametrize(("profile", "parameters"), [(epl, {"slope": 2.0}), (sie, {})])
def test_the_deflection_at_the_centre_has_no_derivatives(profile, parameters, e):
    values = {"theta_E": 1.2, "e1": e, "e2": 0.0, **parameters}
    p = {name: variable(name, value) for name, value in tensors(values).items()}
    at = torch.zeros(1, dtype=torch.float64)
    for alpha in profile.deflection(at, at, **p):
        assert float(value_of(alpha)) == 0
        assert all(float(torch.as_tensor(slope)) == 0 for slope in slopes_of(alpha).values())


def test_a_massless_power_law_deflects_nothing_and_has_finite_gradients():
    p = tensors({"theta_E": 0.0, "slope": 1.6, "e1": 0.1, "e2": 0.0}, requires_grad=True)
    x = torch.tensor([0.0, 0.3], dtype=torch.float64)
    alpha = epl.deflection(x, x, **p)
    assert not any(a.any() for a in alpha)
    assert all(g.isfinite() for g in torch.autograd.grad(alpha[0].sum() + alpha[1].sum(), [*p.values()]))


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
