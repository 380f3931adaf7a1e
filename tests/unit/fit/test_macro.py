"""The fit of the smooth lens: best-fit parameters, their covariance, and errors."""

import math

import numpy as np
import pytest
import torch

from darklens import populations
from darklens.errors import ConfigError
from darklens.fit.evidence import evidence_maps
from darklens.fit.fitter import Fitter, fitter_of
from darklens.fit.macro import fit_macro
from darklens.fit.model import Model
from darklens.fit.smooth import CENTRE, SmoothLens
from darklens.simulate import render
from darklens.simulate.batch import simulate_batch

N = 24


@pytest.fixture(scope="module")
def common():
    """Images of common-test-i, their true columns, and their fits."""
    population = populations.get("common-test-i")
    images, truth = simulate_batch(population, 77, range(N))
    images = torch.from_numpy(images)[:, 0]
    return population, images, truth, fit_macro(images, population)


def test_free_parameters_are_those_that_the_population_varies():
    names = {name: SmoothLens(populations.get(name)).names for name in ("common-test-i", "deeplense-model-i")}
    assert names["common-test-i"] == ["theta_E", "gamma1", "gamma2", "source_x", "source_y", "source_e1", "source_e2"]
    assert names["deeplense-model-i"] == ["source_x", "source_y"]
    realistic = SmoothLens(populations.get("realistic-hst")).names
    assert {"theta_E", "e1", "e2", "source_ln_R_e", "source_ln_n", "light_ln_amplitude"} <= set(realistic)
    assert SmoothLens(populations.get("common-test-i-wide")).names[-1] == "psf_ln_width"


@pytest.mark.parametrize("name", ["common-test-i", "deeplense-model-i", "realistic-hst"])
def test_images_of_the_smooth_lens_equal_those_of_the_simulator(name):
    population = populations.get(name, ["field.n_pixels=40"])
    lens = SmoothLens(population)
    _, truth = simulate_batch(population, 3, [0, 3, 6])  # all of class no
    assert set(truth["label"]) == {0}
    images = lens.images(lens.from_truth(truth))
    expected = render.render(population, {key: value for key, value in truth.items() if key != "label"})
    scale = (images * expected).sum((1, 2)) / (images**2).sum((1, 2))
    torch.testing.assert_close(images * scale[:, None, None], expected, rtol=1e-4, atol=1e-4 * float(expected.max()))


@pytest.mark.parametrize(
    ("name", "kind", "centred"),
    [
        ("common-test-i", "smooth", True),
        ("common-test-i", "points", False),
        ("common-test-i", "line", True),
        ("realistic-hst", "smooth", False),
        ("realistic-hst", "points", True),
        ("realistic-hst", "line", False),
    ],
)
def test_derivatives_agree_with_finite_differences(name, kind, centred, monkeypatch):
    monkeypatch.setattr("darklens.fit.masses._SOFTENING", 0.0)
    fitter = Fitter(populations.get(name, ["field.n_pixels=24"]), centred=centred)
    _, truth = simulate_batch(fitter.population, 3, [0, 3])
    masses = {"smooth": [], "points": [0.01, 0.33, 0.21, 0.02, -0.4, 0.5], "line": [0.05, 0.1, 0.2, 0.7, 0.1]}[kind]
    smooth = fitter.lens.from_truth(truth).double()
    if not centred:
        smooth[:, [fitter.lens.names.index(axis) for axis in CENTRE]] = torch.tensor([0.11, -0.07]).double()
    others = torch.tensor([[0.3, 0.1, *masses]], dtype=torch.float64).expand(2, -1)
    parameters, model = torch.cat([smooth, others], 1), Model(fitter.lens, fitter.full, kind, blur=0.1)
    images, slopes = model.expected(parameters)
    torch.testing.assert_close(model.light(parameters), images, rtol=1e-12, atol=1e-12)
    if kind == "smooth":
        torch.testing.assert_close((images - 0.1) / math.exp(0.3), fitter.lens.images(smooth), rtol=1e-5, atol=1e-6)
    for k in range(parameters.shape[1]):
        step = torch.zeros_like(parameters)
        step[:, k] = 1e-6
        numeric = (model.expected(parameters + step)[0] - model.expected(parameters - step)[0]) / 2e-6
        torch.testing.assert_close(slopes[:, k], numeric, rtol=1e-3, atol=1e-4 * float(slopes[:, k].abs().max()))


def test_smooth_lenses_have_unit_reduced_chi2_and_substructure_has_more(common):
    _, _, truth, fit = common
    smooth = truth["label"] == 0
    assert fit.converged.all()
    assert float(fit.reduced_chi2[smooth].min()) > 0.96 and float(fit.reduced_chi2[smooth].max()) < 1.04
    assert fit.residual[smooth].std() == pytest.approx(1, abs=0.02)
    assert float(fit.reduced_chi2[~smooth].median()) > 1.04


def test_reused_derivatives_lead_to_the_same_fit(common, monkeypatch):
    population, images, _, fit = common
    monkeypatch.setattr("darklens.fit.macro._REUSE_SLOPES_BELOW", 0.0)
    fresh = fit_macro(images, population)
    errors = torch.diagonal(fresh.covariance, dim1=1, dim2=2).sqrt()
    assert float(((fit.parameters - fresh.parameters) / errors).abs().max()) < 0.01
    torch.testing.assert_close(fit.reduced_chi2, fresh.reduced_chi2, rtol=1e-5, atol=0)
    torch.testing.assert_close(fit.covariance, fresh.covariance, rtol=0.1, atol=float(errors.max()) ** 2 * 0.03)


def test_scatter_of_the_parameters_agrees_with_the_covariance(common):
    population, _, _, _ = common
    images, truth = simulate_batch(population, 5, range(0, 180, 3))
    fit = fit_macro(torch.from_numpy(images)[:, 0], population)
    deviation = fit.parameters - fitter_of(population).lens.from_truth(truth)
    pull = deviation / torch.diagonal(fit.covariance, dim1=1, dim2=2).sqrt()
    # Sixty images measure the standard deviation to 10 %.
    assert float(pull.std(0).min()) > 0.7 and float(pull.std(0).max()) < 1.35
    assert float(pull.mean(0).abs().max()) < 0.5


def test_fit_does_not_depend_on_unit_and_zero_point_of_the_image(common):
    population, images, _, fit = common
    again = fit_macro(images[:4] * 300 + 40, population)
    torch.testing.assert_close(again.parameters, fit.parameters[:4], atol=1e-4, rtol=0)
    torch.testing.assert_close(again.scale, fit.scale[:4] * 300, rtol=1e-3, atol=0)
    torch.testing.assert_close(again.offset, fit.offset[:4] * 300 + 40, rtol=1e-3, atol=0.1)
    torch.testing.assert_close(again.residual, fit.residual[:4], atol=0.01, rtol=0.01)


def test_fit_of_an_image_does_not_depend_on_the_batch(common):
    population, images, _, fit = common
    alone = fit_macro(images[7:8], population)
    torch.testing.assert_close(alone.parameters[0], fit.parameters[7], atol=1e-3, rtol=0)
    assert float(alone.reduced_chi2[0]) == pytest.approx(float(fit.reduced_chi2[7]), rel=1e-4)


def test_scale_converts_the_model_to_photon_counts(common):
    population, images, truth, fit = common
    smooth = np.flatnonzero(truth["label"] == 0)
    assert images.max() == 1  # counts were scaled to 0..1; the unit of the model is one count
    expected = render.render(population, {k: v[smooth] for k, v in truth.items() if k != "label"})
    counts = (fit.model[smooth] - fit.offset[smooth, None, None]) / fit.scale[smooth, None, None]
    assert float(((counts - expected).abs().amax((1, 2)) / expected.amax((1, 2))).max()) < 0.05


def test_images_of_another_size_or_with_nan_raise(common):
    population, images, _, _ = common
    with pytest.raises(ValueError, match="150 x 150 pixels, got 100 x 100"):
        fit_macro(images[:1, :100, :100], population)
    with pytest.raises(ValueError, match="finite"):
        fit_macro(images[:1] * torch.nan, population)
    for shaped in (images[0], images[:1, None]):
        with pytest.raises(ValueError, match=r"shape \(number, height, width\), got"):
            fit_macro(shaped, population)


def test_a_blank_image_is_no_good_fit(common):
    fit = fit_macro(torch.zeros(1, 150, 150), common[0])
    assert not (fit.converged[0] and float(fit.reduced_chi2[0]) < 1.1 and float(fit.reduced_chi2[0]) > 0.9)


def test_galaxies_from_files_cannot_be_fitted(tmp_path):
    from darklens.populations.light_models import ImageLight

    population = populations.get("common-test-i")
    light = ImageLight.model_construct(kind="images")
    with pytest.raises(ConfigError, match="only Sersic light"):
        SmoothLens(population.model_copy(update={"source": light}))


@pytest.fixture(scope="module")
def shifted():
    """Smooth lenses two pixels in x and four in y off the centre, and their true columns."""
    population = populations.get("common-test-i", ["stored=counts", "field.n_pixels=170"])
    images, truth = simulate_batch(population, 93, range(0, 90, 3))
    return torch.from_numpy(images)[:, 0, 6:156, 8:158].clone(), truth


def test_a_free_centre_is_recovered(shifted):
    images, truth = shifted
    fit = fit_macro(images, "common-test-i", centred=False)
    fixed_centre = fit_macro(images, "common-test-i")
    assert fit.converged.all() and float(fit.reduced_chi2.max()) < 1.04 < float(fixed_centre.reduced_chi2.median())
    for name, true in (("centre_x", 0.1), ("centre_y", 0.2), ("theta_E", truth["theta_E"])):
        i = fit.names.index(name)
        pull = (fit.parameters[:, i] - torch.as_tensor(true)) / fit.covariance[:, i, i].sqrt()
        assert float(pull.abs().max()) < 4.5 and float(fit.covariance[:, i, i].max()) < 0.005**2


def test_a_mirrored_lens_keeps_the_midpoint_of_its_images():
    lens = SmoothLens(populations.get("common-test-i"), centred=False)
    columns = [lens.names.index(name) for name in ("centre_x", "centre_y", "source_x", "source_y")]
    parameters = torch.zeros(2, len(lens.names))
    parameters[:, columns] = torch.tensor([[0.02, -0.05, 0.1, 0.05], [0.2, 0.0, 0.3, -0.4]])
    mirrored = lens.mirrored(parameters)[:, columns]
    torch.testing.assert_close(mirrored[0], torch.tensor([0.22, 0.05, -0.1, -0.05]))
    torch.testing.assert_close(mirrored[1], torch.tensor([0.3, -0.3, 0.2, -0.1]))  # the limits of the centre
    torch.testing.assert_close(
        mirrored[:, :2] + mirrored[:, 2:], parameters[:, columns][:, :2] + parameters[:, columns][:, 2:]
    )
    torch.testing.assert_close(lens.mirrored(lens.mirrored(parameters))[0], parameters[0])


def test_smooth_lenses_with_a_free_centre_show_no_evidence(shifted):
    images, _ = shifted
    fit = fit_macro(images[:4], "common-test-i", centred=False)
    evidence = evidence_maps(images[:4], fit, "common-test-i")
    assert float(evidence.delta_chi2_point.amax()) < 25  # smooth lenses: noise


@pytest.mark.usefixtures("in_pytorch")
@pytest.mark.parametrize("width", [0.9, 1.1])
def test_the_width_of_an_unknown_psf_is_recovered(width):
    images, _ = simulate_batch(populations.get("common-test-i", [f"psf.sigma={0.087 * width}"]), 31, range(0, 24, 3))
    images = torch.from_numpy(images)[:, 0]
    known = fit_macro(images, "common-test-i")
    fit = fit_macro(images, populations.get("common-test-i", ["psf.known=false"]))
    i = fit.names.index("psf_ln_width")
    pull = (fit.parameters[:, i] - math.log(width)) / fit.covariance[:, i, i].sqrt()
    assert float(pull.abs().max()) < 4 and float(fit.covariance[:, i, i].max()) < 0.02**2
    assert bool(fit.converged.all()) and float((known.reduced_chi2 - fit.reduced_chi2).mean()) * images[0].numel() > 30


def test_unneeded_nuisance_parameters_do_not_change_the_fit(common):
    _, images, truth, plain = common
    fit = fit_macro(images[:12], "common-test-i-wide")
    smooth = torch.from_numpy(truth["label"][:12] == 0)
    assert float(fit.reduced_chi2[smooth].max()) < 1.04
    assert float((fit.reduced_chi2 - plain.reduced_chi2[:12])[smooth].abs().max()) < 0.005
    assert bool(torch.isfinite(fit.covariance).all())


def test_elliptical_lenses_with_lens_light_are_fitted():
    population = populations.get("common-test-i-wide")
    images, truth = simulate_batch(population, 32, range(0, 36, 3))
    fit = fit_macro(torch.from_numpy(images)[:, 0], population)
    assert float(fit.reduced_chi2.max()) < 1.04
    for name in ("theta_E", "e1", "e2"):
        i = fit.names.index(name)
        pull = (fit.parameters[:, i] - torch.from_numpy(truth[name])) / fit.covariance[:, i, i].sqrt()
        assert float(pull.abs().median()) < 1.5
