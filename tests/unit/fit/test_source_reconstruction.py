"""A source on a grid: its splines and prior, its derivatives in a fit, and what reconstructions recover."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from darklens.errors import ConfigError, InputError
from darklens.fit.fit_result import FitResult, OtherSolution
from darklens.fit.perturber_profiles import HaloPerturber, Redshifts
from darklens.fit.perturbers import find_perturbers
from darklens.fit.scene_fit import fit
from darklens.fit.scene_solver import Solver, data_of, detector_of
from darklens.fit.source_plane import focus
from darklens.fit.source_reconstruction import reconstruct_source
from darklens.physics.duals import slopes_of, variable
from darklens.scene import EPL, PSF, Detector, Observation, Scene, Sersic, Shear, SourceGrid
from darklens.scene.source_grid import curvature

PSF_OF_TESTS = PSF.gaussian(fwhm=0.2, pixel_scale=0.1)
LENS = {"epl.theta_E": 1.2, "epl.slope": 2.0, "epl.e1": 0.1, "epl.e2": 0.05, "epl.centre_x": 0.0, "epl.centre_y": 0.0}
SHEAR = {"shear.gamma1": 0.02, "shear.gamma2": -0.03}
CLUMPS = [(0.05, 0.02, 0.12, 1.0), (0.2, 0.1, 0.05, 2.0), (-0.1, 0.15, 0.06, 1.5), (0.0, -0.15, 0.04, 2.0)]
GRID = {"half_width": 0.5, "name": "source", "centre_x": 0.05, "centre_y": 0.02}
CONCENTRATED = Redshifts(0.5, 1.0, 60.0)


def observed(halo: dict[str, float] | None = None, seed: int = 3) -> Observation:
    """Return a lens of a source with four clumps, peak signal-to-noise ratio 50."""
    clumps = [
        Sersic(name=f"clump{i}", R_e=r, n=1.0, e1=0.0, e2=0.0, centre_x=x, centre_y=y)
        for i, (x, y, r, _) in enumerate(CLUMPS)
    ]
    lens = [EPL(), Shear(), *([HaloPerturber(CONCENTRATED, name="halo")] if halo else [])]
    values = LENS | SHEAR | {f"halo.{name}": value for name, value in (halo or {}).items()}
    amplitudes = {f"clump{i}.amplitude": amplitude for i, (*_, amplitude) in enumerate(CLUMPS)}
    image = Scene(lens, clumps).image(values, amplitudes, Detector((48, 48), 0.1, PSF_OF_TESTS, supersample=5))
    sigma = image.max() / 50
    noise = np.random.default_rng(seed).normal(0, sigma, image.shape)
    return Observation.of(image + noise, noise_map=np.full(image.shape, sigma), psf=PSF_OF_TESTS, pixel_scale=0.1)


@pytest.fixture(scope="module")
def smooth() -> FitResult:
    return fit(observed(), Scene([EPL(), Shear()], Sersic()))


@pytest.fixture(scope="module")
def reconstructed(smooth) -> FitResult:
    return reconstruct_source(smooth, 20)


def test_splines_add_up_to_one_inside_the_grid_and_vanish_outside():
    grid = SourceGrid(12, **GRID)
    x = torch.linspace(-0.35, 0.35, 31, dtype=torch.float64)[None, None].expand(1, 31, 31)
    inside = grid.basis(x, x.mT)
    assert inside.shape == (1, 144, 31, 31)
    torch.testing.assert_close(inside.sum(1), torch.ones(1, 31, 31, dtype=torch.float64))
    assert not grid.basis(x + 1.0, x.mT).any()


def test_brightness_and_its_gradient_are_those_of_the_splines():
    grid, g = SourceGrid(8, **GRID), torch.Generator().manual_seed(0)
    weights = torch.randn(2, 64, 1, 1, generator=g, dtype=torch.float64)
    x, y = (torch.rand(2, 5, 6, generator=g, dtype=torch.float64) - 0.5 for _ in range(2))
    leaves = [v.clone().requires_grad_() for v in (x, y)]
    total = (grid.basis(*leaves) * weights).sum(1)
    expected = torch.autograd.grad(total.sum(), leaves)
    dual = grid.brightness(variable("x", x), variable("y", y), weights)
    torch.testing.assert_close(dual.value, total.detach())
    for symbol, gradient in zip(("x", "y"), expected, strict=True):
        torch.testing.assert_close(slopes_of(dual)[symbol], gradient)


def test_the_prior_is_the_sum_of_squared_second_differences():
    a = np.random.default_rng(0).normal(size=(6, 6))
    padded = np.pad(a, 2)
    along, across = np.diff(padded, 2, axis=1), np.diff(padded, 2, axis=0)
    mixed = np.diff(np.diff(padded, axis=0), axis=1)
    flat = torch.from_numpy(a.ravel())
    expected = (along**2).sum() + (across**2).sum() + 2 * (mixed**2).sum()
    assert float(flat @ curvature(6) @ flat) == pytest.approx(expected)
    assert float(torch.linalg.eigvalsh(curvature(6)).min()) > 0
    assert torch.equal(SourceGrid(6, smoothness=3.0, **GRID).amplitude_prior(), 3 * curvature(6))


@pytest.mark.parametrize("moves", [False, True])
def test_slopes_of_the_deviance_agree_with_finite_differences(moves):
    observation = observed()
    observation = observation.scaled(1 / observation.unit)
    angle = torch.arange(40, dtype=torch.float64)
    rays = torch.stack([1.3 * angle.cos(), 1.1 * angle.sin(), torch.full_like(angle, 1 / 40)])
    grid = SourceGrid(14, smoothness=0.1, rays=rays if moves else None, reference=(0.0, 0.0, 0.2), core=0.1, **GRID)
    scene = Scene([EPL(), Shear()], grid)
    solver, data = Solver(scene, detector_of(observation, scene)), data_of(observation)
    data.images, data.weights = data.images.double(), data.weights.double()
    at = scene.internal(scene.pack(LENS | SHEAR)) + 0.01
    state = solver.state(at, data)
    for column in range(at.shape[1]):
        step = torch.zeros_like(at)
        step[0, column] = 1e-5
        difference = (solver.deviance(at + step, data) - solver.deviance(at - step, data)) / 2e-5
        torch.testing.assert_close(-2 * state.rhs[:, column], difference, rtol=1e-3, atol=1e-2)
    assert float(state.deviance) == pytest.approx(float(solver.deviance(at, data)))


def test_a_structured_source_is_reconstructed_to_the_noise(smooth, reconstructed):
    assert smooth.is_poor
    assert reconstructed.converged
    assert not reconstructed.is_poor
    assert 0.9 < reconstructed.chi2_per_pixel < 1.1
    assert 20 < reconstructed.effective_amplitudes < 300  # of 400
    for name in ("epl.theta_E", "shear.gamma1", "shear.gamma2"):
        assert abs(reconstructed.parameters[name] - (LENS | SHEAR)[name]) < 4 * reconstructed.errors[name]


def test_the_solution_with_the_highest_evidence_is_chosen(smooth, reconstructed):
    wrong = smooth.parameters | {"epl.theta_E": 0.9}
    start = replace(smooth, parameters=wrong, alternatives=(OtherSolution(1.2, 5.0, smooth.parameters),))
    found = reconstruct_source(start, 20)
    assert found.theta_E == pytest.approx(reconstructed.theta_E, abs=reconstructed.errors["epl.theta_E"])
    assert all(abs(other.theta_E / found.theta_E - 1) > 0.02 and other.excess > 0 for other in found.alternatives)
    assert all("its -2 ln(evidence) is" in warning for warning in found.warnings)


def test_a_grid_that_describes_the_image_without_a_lens_is_no_alternative(smooth, reconstructed):
    assert focus(smooth) == 0 and 0.1 < focus(reconstructed) < 0.6
    weak = Scene([EPL(theta_E=0.15, slope=2.0), Shear()], Sersic())
    start = {name: value for name, value in smooth.parameters.items() if name in weak.names}
    alone = reconstruct_source(replace(smooth, scene=weak, parameters=start), 20)
    assert focus(alone) > 0.7
    assert any("as large as its images" in warning for warning in alone.warnings)
    assert not any("as large as its images" in warning for warning in reconstructed.warnings)


@pytest.mark.sweep
def test_errors_of_the_slope_are_its_scatter():
    """The slope is one error too steep on average (decision 23)."""
    fits = [reconstruct_source(fit(observed(seed=k), Scene([EPL(), Shear()], Sersic())), 24) for k in range(8)]
    slopes = np.array([result.parameters["epl.slope"] for result in fits])
    errors = np.array([result.errors["epl.slope"] for result in fits])
    assert abs(slopes.mean() - 2.05) < 0.03
    assert 0.5 < slopes.std() / errors.mean() < 1.5
    assert abs(slopes - 2).max() < 4 * errors.max()


def test_the_smoothness_has_the_highest_evidence(reconstructed):
    """At the maximum, smoothness times a.R.a is the number of amplitudes that the image determines."""
    grid = reconstructed.scene.source_grid
    amplitudes = torch.tensor([reconstructed.amplitudes[name] for name in reconstructed.scene.amplitude_names])
    penalty = float(amplitudes.double() @ (grid.amplitude_prior() @ amplitudes.double()))
    assert penalty == pytest.approx(reconstructed.effective_amplitudes, rel=0.3)
    assert reconstructed.deviance == pytest.approx(reconstructed.chi2 + penalty, abs=3.0)  # all other priors are flat


def test_a_fit_in_another_unit_is_the_same(smooth, reconstructed):
    other = reconstruct_source(smooth.scaled(1e-3), 20)
    assert other.theta_E == pytest.approx(reconstructed.theta_E, rel=1e-5)
    ratio = other.scene.source_grid.smoothness / reconstructed.scene.source_grid.smoothness
    assert ratio == pytest.approx(1e6, rel=0.01)


def test_the_figure_shows_the_grid(reconstructed, tmp_path):
    reconstructed.plot(tmp_path / "fit.png")
    assert (tmp_path / "fit.png").stat().st_size > 10_000
    assert "source.amplitude" not in str(reconstructed)


def test_a_halo_before_a_structured_source_is_found():
    halo = {"log10_mass": 10.0, "centre_x": 0.3, "centre_y": 1.15}
    observation = observed(halo)
    smooth = reconstruct_source(fit(observation, Scene([EPL(), Shear()], Sersic())), 20)
    search = find_perturbers(observation, smooth.scene, result=smooth, redshifts=CONCENTRATED, threshold=30.0)
    (found,) = search.perturbers
    assert search.detected
    assert math.hypot(found.x - halo["centre_x"], found.y - halo["centre_y"]) < 0.1
    assert abs(found.log10_mass - 10) < 0.3


def test_no_halo_is_found_where_there_is_none(reconstructed):
    search = find_perturbers(
        reconstructed.observation,
        reconstructed.scene,
        result=reconstructed,
        redshifts=CONCENTRATED,
        threshold=30.0,
    )
    assert not search.detected
    assert search.delta_chi2 < 25


def test_what_a_grid_cannot_do_is_said(smooth, reconstructed):
    with pytest.raises(ConfigError, match="grid already"):
        reconstruct_source(reconstructed)
    with pytest.raises(ConfigError, match="n from 4 to 64, got 100"):
        reconstruct_source(smooth, 100)
    with pytest.raises(ConfigError, match="positive half_width"):
        reconstruct_source(smooth, 8, half_width=-1.0)
    with pytest.raises(ConfigError, match="needs a threshold"):
        find_perturbers(reconstructed.observation, reconstructed.scene, result=reconstructed)
    with pytest.raises(ConfigError, match="needs the fit"):
        find_perturbers(reconstructed.observation, reconstructed.scene, threshold=30.0)
    with pytest.raises(ConfigError, match="cannot be written as YAML"):
        reconstructed.scene.to_yaml()


def test_an_image_without_arcs_has_no_source_to_reconstruct():
    noise = np.random.default_rng(0).normal(0, 0.3, (40, 40))
    observation = Observation.of(noise, noise_map=np.ones((40, 40)), psf=PSF_OF_TESTS, pixel_scale=0.1)
    with pytest.raises(InputError, match="no arcs"):
        reconstruct_source(fit(observation, Scene([EPL(), Shear()], Sersic())), 8)
