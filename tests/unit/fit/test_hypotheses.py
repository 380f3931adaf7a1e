"""What masses the fits find beside the smooth lens, and what their likelihoods say."""

import numpy as np
import pytest
import torch

from darklens import populations
from darklens.fit.hypotheses import N_POINTS, fit_hypotheses
from darklens.fit.macro import check_exposure
from darklens.simulate.batch import simulate_batch

N = 36


@pytest.fixture(scope="module")
def weighed():
    """Images of common-test-i, their true columns, and what was found."""
    images, truth = simulate_batch(populations.get("common-test-i"), 21, range(N))
    images = torch.from_numpy(images)[:, 0]
    return images, truth, fit_hypotheses(images, "common-test-i")


def test_each_class_is_explained_by_its_own_hypothesis(weighed):
    _, truth, found = weighed
    no, sphere, vort = (torch.from_numpy(truth["label"] == k) for k in range(3))
    n, scatter = found.n_pixels_fitted[0], (2 * found.n_pixels_fitted[0]).sqrt()
    assert float(((found.deviance - n) / scatter)[no].abs().max()) < 4.5
    assert float(found.delta_chi2_line[no].max()) < 40 and float(found.delta_chi2_points[no].max()) < 60
    left = (found.deviance - found.delta_chi2_line)[vort]
    assert float(((left - n) / scatter).median().abs()) < 2
    assert (
        float(found.delta_chi2_point_given_line[vort].median())
        < 20
        < float(found.delta_chi2_point_given_line[sphere].median())
    )
    assert float((found.delta_chi2_points[:, -1] - found.delta_chi2_line)[sphere].median()) > 0


def test_a_line_is_found_where_and_as_long_and_heavy_as_it_is(weighed):
    _, truth, found = weighed
    vort = np.flatnonzero(truth["label"] == 2)
    mass, x, y, angle, length = found.line[vort].T.double().numpy()
    assert np.median(np.abs(mass / truth["line_mass"][vort] - 1)) < 0.05
    assert np.median(np.hypot(x - truth["line_x"][vort], y - truth["line_y"][vort])) < 0.05
    assert np.median(np.abs(length / truth["line_length"][vort] - 1)) < 0.1
    turned = np.abs((angle - truth["line_angle"][vort] + np.pi / 2) % np.pi - np.pi / 2)
    assert np.median(turned) < 0.05


def test_more_points_never_fit_worse_and_a_point_of_no_mass_changes_nothing(weighed):
    _, _, found = weighed
    assert found.delta_chi2_points.shape == (N, N_POINTS) and found.points.shape == (N, N_POINTS, 3)
    gains = torch.cat([torch.zeros(N, 1), found.delta_chi2_points], 1)
    assert float(gains.diff(dim=1).min()) > -1e-2 * float(found.deviance.max())
    assert float(found.points[..., 0].min()) >= 0


def test_unit_and_rounding_of_the_image_hardly_matter(weighed):
    images, _, found = weighed
    some = [0, 1, 2, 3, 4, 5]
    for stored in (images[some] * 3e-19 + 1e-20, (images[some] * 255).round() / 255):
        again = fit_hypotheses(stored, "common-test-i")
        torch.testing.assert_close(
            again.delta_chi2_line.clamp_min(30).log(),
            found.delta_chi2_line[some].clamp_min(30).log(),
            atol=0.35,
            rtol=0,
        )
        torch.testing.assert_close(again.smooth, found.smooth[some], atol=0.02, rtol=0)


def test_what_cannot_be_fitted_is_refused():
    with pytest.raises(ValueError, match="150 x 150 pixels"):
        fit_hypotheses(torch.rand(1, 64, 64), "common-test-i")
    with pytest.raises(ValueError, match="finite"):
        fit_hypotheses(torch.full((1, 150, 150), torch.nan), "common-test-i")
    image = torch.rand(2, 150, 150)
    with pytest.raises(ValueError, match="exposure has shape"):
        check_exposure(image[:1], image)
    with pytest.raises(ValueError, match="exposure must be finite and positive"):
        fit_hypotheses(image, "common-test-i", exposure=torch.zeros_like(image))
