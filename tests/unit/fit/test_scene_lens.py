"""The smooth lens of a population of scenes, and the fits of all hypotheses with it."""

import copy
import math

import pytest
import torch
from scene_population import TREE, survey

from darklens.fit.fitter import Fitter
from darklens.fit.hypotheses import fit_hypotheses
from darklens.fit.macro import fit_macro
from darklens.fit.model import Model
from darklens.fit.smooth import CENTRE
from darklens.simulate import render
from darklens.simulate.batch import simulate_batch

pytestmark = pytest.mark.usefixtures("in_pytorch")
GAUSSIAN = {"kind": "gaussian", "sigma": 0.09, "known": False}
MASSES = {"smooth": [], "points": [0.01, 0.33, 0.21, 0.02, -0.4, 0.5], "line": [0.05, 0.1, 0.2, 0.7, 0.1]}


@pytest.fixture(scope="module", autouse=True)
def _small_bank():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("darklens.fit.fitter._BANK", 1024)
        yield


@pytest.fixture(scope="module", params=["image", "gaussian"])
def population(request, tmp_path_factory):
    changes = {"psf": GAUSSIAN} if request.param == "gaussian" else {}
    return survey(tmp_path_factory.mktemp("survey"), **changes)


def test_free_parameters_have_the_names_of_other_fits(population):
    lens = Fitter(population).lens
    expected = ["theta_E", "e1", "e2", "slope", "gamma1", "gamma2", "multipole4.a", "source_ln_R_e", "source_x"]
    expected += ["source_y", "light_ln_amplitude"] + ["psf_ln_width"] * (not population.psf.known)
    assert lens.names == expected and {"centre_x", "centre_y"} <= set(lens.fixed)
    free = Fitter(population, centred=False).lens
    assert set(free.names) == {*expected, *CENTRE}


@pytest.mark.parametrize(
    ("psf", "kind", "centred"), [({}, "smooth", False), ({}, "points", True), ({"psf": GAUSSIAN}, "line", False)]
)
def test_derivatives_agree_with_finite_differences(psf, kind, centred, tmp_path, monkeypatch):
    monkeypatch.setattr("darklens.fit.masses._SOFTENING", 0.0)
    field = {"n_pixels": 16, "pixel_scale": 0.2, "supersample": 2}
    fitter = Fitter(survey(tmp_path, field=field, **psf), centred=centred)
    _, truth = simulate_batch(fitter.population, 3, [0, 3])
    smooth = fitter.lens.from_truth(truth).double()
    if not centred:
        smooth[:, [fitter.lens.names.index(axis) for axis in CENTRE]] = torch.tensor([0.11, -0.07]).double()
    others = torch.tensor([[0.3, 0.1, *MASSES[kind]]], dtype=torch.float64).expand(2, -1)
    parameters, model = torch.cat([smooth, others], 1), Model(fitter.lens, fitter.full, kind, blur=0.1)
    images, slopes = model.expected(parameters)
    torch.testing.assert_close(model.light(parameters), images, rtol=1e-12, atol=1e-12)
    for k in range(parameters.shape[1]):
        step = torch.zeros_like(parameters)
        step[:, k] = 1e-6
        numeric = (model.expected(parameters + step)[0] - model.expected(parameters - step)[0]) / 2e-6
        torch.testing.assert_close(slopes[:, k], numeric, rtol=1e-3, atol=1e-4 * float(slopes[:, k].abs().max()))


def test_models_of_smooth_lenses_equal_the_images_of_the_simulator_to_the_edges(population):
    fitter = Fitter(population)
    _, truth = simulate_batch(population, 3, [0, 3, 6])
    columns = {key: value for key, value in truth.items() if key != "label"}
    smooth = fitter.lens.from_truth(truth).double()
    parameters = torch.cat([smooth, torch.zeros(3, 2, dtype=torch.float64)], 1)
    expected = render.render(population, columns, dtype=torch.float64)
    model = Model(fitter.lens, fitter.full).light(parameters)
    torch.testing.assert_close(model, expected, rtol=1e-4, atol=1e-5 * float(expected.max()))


def test_smooth_lenses_are_fitted_to_the_noise(population):
    images, truth = simulate_batch(population, 5, [0, 3])
    fit = fit_macro(torch.from_numpy(images)[:, 0], population)
    assert (fit.reduced_chi2 < 1.2).all() and fit.reduced_chi2.median() < 1.1
    theta_E = fit.parameters[:, fit.names.index("theta_E")]
    torch.testing.assert_close(theta_E, torch.from_numpy(truth["theta_E"]).float(), rtol=0.005, atol=0)


def test_fits_start_near_the_arcs_whatever_the_lens_light(tmp_path):
    scene = copy.deepcopy(TREE["scene"])
    scene["lens_light"]["bulge"] |= {"amplitude": {"kind": "uniform", "low": 600, "high": 2000}, "e1": -0.2}
    population = survey(tmp_path, scene=scene)
    images, truth = simulate_batch(population, 5, [0, 3, 6, 9])
    fitter = Fitter(population)
    start = fitter.nearest(torch.from_numpy(images)[:, 0])[0]
    for name, error in (("theta_E", 0.1), ("source_x", 0.1), ("source_y", 0.1), ("light_ln_amplitude", 0.5)):
        column = fitter.lens.names.index(name)
        torch.testing.assert_close(start[:, column], fitter.lens.from_truth(truth)[:, column], rtol=0, atol=error)


def test_each_class_is_fitted_best_by_its_hypothesis(tmp_path):
    population = survey(tmp_path)
    images, _ = simulate_batch(population, 5, range(3))
    fits = fit_hypotheses(torch.from_numpy(images)[:, 0], population)
    assert (fits.delta_chi2_line[0::3] < 30).all() and (fits.delta_chi2_points[0::3, -1] < 50).all()
    assert fits.delta_chi2_points[1::3, -1].amax() > 100
    assert (fits.delta_chi2_line[2::3] > 100).all()
    assert (fits.delta_chi2_line[2::3] > fits.delta_chi2_points[2::3, 0]).all()


def test_a_free_centre_moves_lens_and_lens_light(tmp_path):
    scene = copy.deepcopy(TREE["scene"])
    for component in (scene["mass"]["epl"], *scene["lens_light"].values()):
        component |= {"centre_x": 0.12, "centre_y": -0.08}
    images, _ = simulate_batch(survey(tmp_path, scene=scene), 5, [0, 3])
    fit = fit_macro(torch.from_numpy(images)[:, 0], survey(tmp_path), centred=False)
    at = [fit.names.index(axis) for axis in CENTRE]
    torch.testing.assert_close(fit.parameters[:, at], torch.tensor([[0.12, -0.08]]).expand(2, -1), rtol=0, atol=0.01)
    assert (fit.reduced_chi2 < 1.15).all() and math.isfinite(float(fit.covariance.sum()))
