"""Score tests of fits: their distribution for a correct model, and their response to each effect."""

import pytest
import torch

from darklens.fit import misfit
from darklens.kernels import smooth_fit
from darklens.kernels.library import library
from darklens.physics.grid import Grid

GROUP_SIZES = {"psf": 1, "lens_shape": 7, "sky_slope": 2, "lens_light": 2}
N, SIDE = 200, 24


@pytest.fixture(scope="module")
def fits():
    """Return templates, model, weights and slopes of N equal fits of a ring."""
    x, y = Grid(n_pixels=SIDE, pixel_scale=0.1).axes()
    ring = torch.exp(-((torch.hypot(x - 0.05, y) - 0.8) ** 2) / 0.05)
    by_x, by_y = (torch.gradient(ring, dim=dim)[0] for dim in (1, 0))
    slopes = torch.stack([by_x, by_y, ring, torch.ones_like(ring)])
    centre = (torch.zeros(N), torch.zeros(N))
    templates = misfit.Templates.of(x, y, theta_E=torch.full((N,), 0.8), centre=centre)
    return templates, ring.expand(N, -1, -1), torch.full((N, SIDE, SIDE), 4.0), slopes.expand(N, -1, -1, -1)


def run(fits, difference):
    templates, model, weight, slopes = fits
    columns = misfit.score_tests(templates, difference, model, weight, slopes, source=(0, 1))
    return dict(zip(misfit.NAMES, columns.unbind(1), strict=True))


def noise():
    return torch.randn(N, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) / 2


def test_for_a_correct_model_each_test_follows_chi2_with_one_degree_of_freedom_per_template(fits):
    tests = run(fits, noise())
    for group, n in GROUP_SIZES.items():
        mean, variance = tests[f"misfit_{group}"].mean(), tests[f"misfit_{group}"].var()
        assert abs(mean - n) < 4 * (2 * n / N) ** 0.5, group
        assert variance == pytest.approx(2 * n, rel=0.6), group


def test_parameters_of_the_model_cannot_mimic_an_effect(fits):
    change = (fits[3] * torch.tensor([3.0, -2.0, 5.0, 1.0])[:, None, None]).sum(1)
    before, after = run(fits, noise()), run(fits, noise() + change)
    for group in GROUP_SIZES:
        torch.testing.assert_close(after[f"misfit_{group}"], before[f"misfit_{group}"], rtol=1e-2, atol=0.05)


@pytest.mark.parametrize("group", GROUP_SIZES)
def test_an_effect_raises_its_test_most(fits, group):
    templates, model, _, slopes = fits
    effect = {
        "psf": misfit._laplacian(model),
        "lens_shape": slopes[:, 0] * templates.deflections[0][:, 1] + slopes[:, 1] * templates.deflections[1][:, 1],
        "sky_slope": templates.sky[:, 0],
        "lens_light": templates.lens_light[:, 0],
    }[group]
    tests = run(fits, noise() + 8 * effect / effect.norm(dim=(1, 2), keepdim=True))
    values = {name: tests[f"misfit_{name}"].median() / n for name, n in GROUP_SIZES.items()}
    assert max(values, key=values.get) == group and values[group] > 10


def test_a_bright_pixel_is_located(fits):
    difference = noise()
    difference[:, 5, 20] += 10
    tests = run(fits, difference)
    assert (tests["misfit_pixel"] > 15).all() and (tests["misfit_spot"] > 5).all()
    assert (tests["misfit_spot_x"] - 0.85).abs().max() < 0.11 and (tests["misfit_spot_y"] + 0.65).abs().max() < 0.11


def test_masked_pixels_do_not_count(fits):
    templates, model, weight, slopes = fits
    masked, difference = weight.clone(), noise()
    masked[:, 5, 20] = 0
    difference[:, 5, 20] += 1000
    tests = run((templates, model, masked, slopes), difference)
    assert tests["misfit_pixel"].max() < 6 and tests["misfit_sky_slope"].median() < 4


def test_values_that_are_not_finite_give_finite_tests(fits):
    templates, model, weight, slopes = fits
    broken = torch.full_like(model, torch.nan)
    tests = run((templates, broken, weight * torch.inf, slopes * torch.nan), broken)
    assert all(torch.isfinite(value).all() for value in tests.values())


def test_compiled_templates_agree_with_the_laws(monkeypatch):
    library()
    x, y = Grid(n_pixels=20, pixel_scale=0.1).axes()
    theta_E, centre = torch.tensor([0.8, 1.3]), (torch.tensor([0.01, -0.1]), torch.tensor([0.0, 0.07]))
    made = misfit.Templates.of(x, y, theta_E=theta_E, centre=centre)
    monkeypatch.setattr(smooth_fit, "usable", lambda *_: False)
    exact = misfit.Templates.of(
        x.double(), y.double(), theta_E=theta_E.double(), centre=(centre[0].double(), centre[1].double())
    )
    for one, other in ((made.lens_light, exact.lens_light), *zip(made.deflections, exact.deflections, strict=True)):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, check_dtype=False)
