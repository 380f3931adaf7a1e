"""Fits of line and point masses: recovered parameters and delta chi2 for each class."""

import numpy as np
import pytest
import torch

from darklens import populations
from darklens.fit import hypotheses
from darklens.fit.hypotheses import fit_hypotheses
from darklens.fit.macro import check_exposure, fit_macro
from darklens.fit.noise import MASKED_EXPOSURE
from darklens.fit.point_fit import N_POINTS
from darklens.simulate.batch import simulate_batch
from darklens.simulate.render import render
from darklens.simulate.truth import draw

N = 24


@pytest.fixture(scope="module")
def fitted_images():
    """Images of common-test-i, their true columns, and their fits."""
    images, truth = simulate_batch(populations.get("common-test-i"), 21, range(N))
    images = torch.from_numpy(images)[:, 0]
    return images, truth, fit_hypotheses(images, "common-test-i")


def test_each_class_is_fitted_best_by_its_hypothesis(fitted_images):
    _, truth, fits = fitted_images
    no, sphere, vort = (torch.from_numpy(truth["label"] == k) for k in range(3))
    n, scatter = fits.n_pixels_fitted[0], (2 * fits.n_pixels_fitted[0]).sqrt()
    assert float(((fits.deviance - n) / scatter)[no].abs().max()) < 4.5
    assert float(fits.delta_chi2_line[no].max()) < 40 and float(fits.delta_chi2_points[no].max()) < 60
    line_deviance = (fits.deviance - fits.delta_chi2_line)[vort]
    assert float(((line_deviance - n) / scatter).median().abs()) < 2
    assert (
        float(fits.delta_chi2_point_given_line[vort].median())
        < 20
        < float(fits.delta_chi2_point_given_line[sphere].median())
    )
    assert float((fits.delta_chi2_points[:, -1] - fits.delta_chi2_line)[sphere].median()) > 0


def test_perturbers_below_the_noise_are_estimated_to_first_order(fitted_images):
    _, truth, fits = fitted_images
    no = torch.from_numpy(truth["label"] == 0)
    assert not bool(fits.perturbers_fitted[no].any()) and bool(fits.perturbers_fitted[~no].all())
    assert float(torch.maximum(fits.delta_chi2_line, fits.delta_chi2_points[:, 0])[no].max()) < 24
    for maps in (fits.line_residual, fits.point_residual):
        torch.testing.assert_close(maps[no], fits.residual[no], rtol=0, atol=0)
    torch.testing.assert_close(fits.line_evidence[no], fits.evidence[no], rtol=0, atol=0)
    for delta_chi2 in (fits.delta_chi2_points[no, 0], fits.delta_chi2_point_given_line[no]):
        torch.testing.assert_close(delta_chi2, fits.evidence[no].amax((1, 2)), rtol=0, atol=0)
    assert float(fits.points[no, 1:].abs().max()) == 0 and float(fits.points[no, 0, 0].min()) > 0


def test_first_order_estimates_are_near_the_fits(fitted_images, monkeypatch):
    """With a limit of zero, perturbers are fitted to smooth lenses, too."""
    images, truth, fits = fitted_images
    no = torch.from_numpy(truth["label"] == 0)
    monkeypatch.setattr(hypotheses, "_NOISE", 0.0)
    fitted = fit_hypotheses(images[no], "common-test-i")
    assert bool(fitted.perturbers_fitted.all())
    difference = fitted.delta_chi2_points[:, 0] - fits.delta_chi2_points[no, 0]
    assert float(difference.abs().max()) < 5
    assert float((fitted.delta_chi2_line - fits.delta_chi2_line[no]).abs().max()) < 15


def test_a_fit_does_not_depend_on_the_other_images(fitted_images):
    images, truth, fits = fitted_images
    rows = torch.from_numpy(np.flatnonzero(truth["label"])[:3])
    alone = fit_hypotheses(images[rows], "common-test-i")
    for name in ("deviance", "delta_chi2_line", "delta_chi2_points", "points", "misfit", "line_residual"):
        expected = getattr(fits, name)[rows]
        torch.testing.assert_close(getattr(alone, name), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_parameters_of_a_line_mass_are_recovered(fitted_images):
    _, truth, fits = fitted_images
    vort = np.flatnonzero(truth["label"] == 2)
    mass, x, y, angle, length = fits.line[vort].T.double().numpy()
    assert np.median(np.abs(mass / truth["line_mass"][vort] - 1)) < 0.05
    assert np.median(np.hypot(x - truth["line_x"][vort], y - truth["line_y"][vort])) < 0.05
    assert np.median(np.abs(length / truth["line_length"][vort] - 1)) < 0.1
    angle_error = np.abs((angle - truth["line_angle"][vort] + np.pi / 2) % np.pi - np.pi / 2)
    assert np.median(angle_error) < 0.05


@pytest.mark.parametrize("mask", [False, True])
def test_images_of_another_exposure_have_the_fits_of_a_known_exposure(mask):
    """Half the exposure in the second image; the others have the same fits as without it."""
    population = populations.get("common-test-i")
    truth = draw(population, 21, range(6))
    rate = render(population, truth) + population.noise.sky
    depth = torch.tensor([1.0, 0.5, 1.0, 1.0, 1.0, 2.0])
    images = torch.poisson(rate * depth[:, None, None], generator=torch.Generator().manual_seed(0))
    known = torch.ones_like(rate)
    if mask:
        known[:, :20] = MASKED_EXPOSURE
    fits = fit_hypotheses(images, population, exposure=known if mask else None)
    torch.testing.assert_close(fits.relative_exposure, depth, rtol=0.15, atol=0)
    assert fits.relative_exposure[[0, 2, 3, 4]].tolist() == [1.0] * 4
    given = fit_hypotheses(images, population, exposure=known * fits.relative_exposure[:, None, None])
    assert given.relative_exposure.tolist() == [1.0] * 6
    for name in ("deviance", "delta_chi2_line", "delta_chi2_points", "smooth"):
        torch.testing.assert_close(getattr(fits, name), getattr(given, name), rtol=1e-2, atol=0.5)
    macro = fit_macro(images, population, exposure=known if mask else None)
    assert macro.relative_exposure.tolist() == pytest.approx(fits.relative_exposure.tolist(), rel=1e-3)
    best = fits.deviance - torch.maximum(fits.delta_chi2_line, fits.delta_chi2_points[:, -1])
    assert float((best / fits.n_pixels_fitted)[1]) < 1.3


def test_more_point_masses_never_increase_the_deviance(fitted_images):
    _, _, fits = fitted_images
    assert fits.delta_chi2_points.shape == (N, N_POINTS) and fits.points.shape == (N, N_POINTS, 3)
    delta_chi2 = torch.cat([torch.zeros(N, 1), fits.delta_chi2_points], 1)
    assert float(delta_chi2.diff(dim=1).min()) > -1e-2 * float(fits.deviance.max())
    assert float(fits.points[..., 0].min()) >= 0


def test_fits_hardly_depend_on_unit_and_rounding_of_the_image(fitted_images):
    images, _, fits = fitted_images
    rows = [0, 1, 2]
    for stored in (images[rows] * 3e-19 + 1e-20, (images[rows] * 255).round() / 255):
        again = fit_hypotheses(stored, "common-test-i")
        torch.testing.assert_close(
            again.delta_chi2_line.clamp_min(30).log(),
            fits.delta_chi2_line[rows].clamp_min(30).log(),
            atol=0.35,
            rtol=0,
        )
        torch.testing.assert_close(again.smooth, fits.smooth[rows], atol=0.02, rtol=0)


def test_images_and_exposures_that_cannot_be_fitted_raise():
    with pytest.raises(ValueError, match="150 x 150 pixels"):
        fit_hypotheses(torch.rand(1, 64, 64), "common-test-i")
    with pytest.raises(ValueError, match="finite"):
        fit_hypotheses(torch.full((1, 150, 150), torch.nan), "common-test-i")
    image = torch.rand(2, 150, 150)
    with pytest.raises(ValueError, match="exposure has shape"):
        check_exposure(image[:1], image)
    with pytest.raises(ValueError, match="exposure must be finite and positive"):
        fit_hypotheses(image, "common-test-i", exposure=torch.zeros_like(image))
