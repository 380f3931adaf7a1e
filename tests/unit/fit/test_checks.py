"""The reasons not to trust a class: none for lenses of the population, one for each kind of other image."""

import numpy as np
import pytest
import torch

from darklens import populations
from darklens.calibration import widened
from darklens.fit.checks import doubts, hypothesis_of, suspicions
from darklens.fit.features import SUMMARY_NAMES, FitFeatures, extract_features
from darklens.fit.noise import MASKED_EXPOSURE
from darklens.fit.summary import FAILED, findings
from darklens.simulate.batch import simulate_batch

N = 4
HYPOTHESES = ["smooth", "points", "line"]


def star(image, g):
    y, x = np.indices(image.shape)
    angle = g.uniform(0, 2 * np.pi)
    distance = (x - 74.5 - 40 * np.cos(angle)) ** 2 + (y - 74.5 - 40 * np.sin(angle)) ** 2
    return image + g.poisson(150 * np.exp(-distance / 2 / 1.74**2))


def sloped_sky(image, g):
    return image + g.poisson(np.linspace(0, 12, 150) * np.ones((150, 1)))


def dead_column(image, _):
    image = image.copy()
    image[:, 60] = 0
    return image


def cosmic_ray(image, _):
    image = image.copy()
    image[88, 90:94] += 400
    return image


def badly_subtracted_lens_light(image, g):
    y, x = np.indices(image.shape)
    return image + 20 * np.exp(-np.hypot(x - 74.5, y - 74.5) / 4)


EFFECTS = {
    star: "residual of",
    sloped_sky: "sloped sky",
    dead_column: "dead",
    cosmic_ray: "cosmic ray",
    badly_subtracted_lens_light: "light of the lens galaxy",
}
OVERRIDES = {"PSF of another width": ["psf.sigma=0.105"], "elliptical lens": ["lens.e1=0.1"]}


@pytest.fixture(scope="module")
def fits():
    """Return fits of N smooth lenses without and with each effect, by name, and of images without a lens."""
    smooth = simulated([])
    sets = {"clean": smooth}
    for effect in EFFECTS:
        g = np.random.default_rng(1)
        sets[effect] = np.stack([effect(image, g) for image in smooth])
    sets |= {name: simulated(changes) for name, changes in OVERRIDES.items()}
    sets["blank sky"] = np.random.default_rng(0).poisson(10.0, smooth.shape)
    images = torch.from_numpy(np.concatenate(list(sets.values())).astype(np.float32))
    features = extract_features(images, "common-test-i", centred=False)
    return {name: features.rows(slice(N * i, N * (i + 1))) for i, name in enumerate(sets)}


def simulated(overrides, rows=range(0, 3 * N, 3)):
    population = populations.get("common-test-i", ["stored=counts", *overrides])
    return np.asarray(simulate_batch(population, 77, rows)[0])[:, 0].astype(np.float64)


def test_smooth_lenses_of_the_population_raise_no_doubt(fits):
    assert doubts(fits["clean"], ["smooth"] * N) == [()] * N


@pytest.mark.parametrize("effect", EFFECTS)
@pytest.mark.parametrize("hypothesis", HYPOTHESES)
def test_a_contaminant_raises_doubts_whatever_the_class(fits, effect, hypothesis):
    """A faint star beside the lens, which points explain, is otherwise a confident `sphere`."""
    reasons = doubts(fits[effect], [hypothesis] * N)
    assert all(reasons)
    if hypothesis == "smooth":
        assert all(any(EFFECTS[effect] in reason for reason in of_image) for of_image in reasons)


@pytest.mark.parametrize("effect", OVERRIDES)
def test_a_smooth_lens_of_another_kind_is_no_substructure(fits, effect):
    for hypothesis in HYPOTHESES:
        reasons = doubts(fits[effect], [hypothesis] * N)
        assert sum(any(effect in reason for reason in of_image) for of_image in reasons) >= N - 1, hypothesis


def test_images_without_contrast_fail_alone_and_not_the_batch(fits):
    """A singular curvature once ended the fits of all images of a batch with a LinAlgError."""
    assert doubts(fits["blank sky"], ["points"] * N) == [(FAILED,)] * N


def test_each_class_has_the_hypothesis_of_its_substructure():
    population = populations.get("common-test-i")
    assert [hypothesis_of(population, name) for name in ("no", "sphere", "vort")] == HYPOTHESES


def test_substructure_below_the_noise_is_doubted(fits):
    """A network may find substructure in first-order estimates of perturbers that the noise explains."""
    assert fits["clean"].column("perturbers_fitted").tolist() == [0.0] * N
    assert findings(fits["clean"])["perturbers"] == ["below the noise"] * N
    for hypothesis in ("line", "points"):
        reasons = doubts(fits["clean"], [hypothesis] * N)
        assert all("no line and no point mass rises above the noise" in of_image for of_image in reasons)
    substructure = extract_features(
        torch.from_numpy(simulated([], [1, 2]).astype(np.float32)), "common-test-i", centred=False
    )
    assert doubts(substructure, ["points", "line"]) == [(), ()]
    assert findings(substructure)["perturbers"] == ["fitted"] * 2


def test_a_class_is_doubted_if_another_hypothesis_fits_better():
    """One line gains 400, three points 900, or the other way round; an original image with 578 was no doubt before."""
    table = torch.zeros(2, len(SUMMARY_NAMES))
    good = {"n_pixels_fitted": 2000.0, "converged": 1.0, "theta_E": 1.2, "perturbers_fitted": 1.0}
    for name, value in good.items():
        table[:, SUMMARY_NAMES.index(name)] = value
    line, points = torch.tensor([[400.0, 900.0], [900.0, 400.0]])
    table[:, SUMMARY_NAMES.index("delta_chi2_line")] = line
    table[:, SUMMARY_NAMES.index("delta_chi2_points_3")] = points
    table[:, SUMMARY_NAMES.index("deviance")] = 2000 + torch.maximum(line, points)
    features = FitFeatures(torch.zeros(2, 6, 2, 2), table)
    assert doubts(features, ["points", "line"]) == [(), ()]
    by_line, by_points = doubts(features, ["line", "points"])
    assert "3 points would fit the image better, by a delta chi2 of 500" in by_line
    assert "one line would fit the image better, by a delta chi2 of 500" in by_points
    assert len(doubts(features, ["smooth"] * 2)[0]) == 3


def test_effects_that_other_fits_describe_are_suspicious_below_the_limits_of_a_doubt():
    values = {"psf": [10.0, 10.0, 8.0, 0.0], "sky_slope": [0.0, 0.0, 19.0, 0.0], "lens_light": [0.0, 0.0, 0.0, 60.0]}
    table = torch.zeros(4, len(SUMMARY_NAMES))
    for name, column in values.items():
        for hypothesis in ("smooth", "points"):
            table[:, SUMMARY_NAMES.index(f"misfit_{name}_{hypothesis}")] = torch.tensor(column)
    features = FitFeatures(torch.zeros(4, 6, 2, 2), table)
    light = "light of the lens galaxy, or its imperfect subtraction"
    expected = [["a PSF of another width"], [], [], [light]]
    result = suspicions(features, ["smooth", "points", "smooth", "points"])
    assert [list(reasons) for reasons in result] == [[f"the residuals suggest {e}" for e in row] for row in expected]


def test_points_that_gain_hardly_more_than_one_line_are_suspicious():
    table = torch.zeros(3, len(SUMMARY_NAMES))
    table[:, SUMMARY_NAMES.index("delta_chi2_points_3")] = 1000.0
    table[:, SUMMARY_NAMES.index("delta_chi2_line")] = torch.tensor([800.0, 900.0, 900.0])
    features = FitFeatures(torch.zeros(3, 6, 2, 2), table)
    reason = "one line lowers chi2 by 900, 3 points by 1000"
    assert suspicions(features, ["points", "points", "line"]) == [(), (reason,), ()]


def test_widened_probabilities_keep_the_order_and_are_never_confident():
    p = np.array([[0.999, 0.001, 0.0], [0.2, 0.5, 0.3], [1.0, 0.0, 0.0]])
    wide = widened(p, [True, True, False])
    assert wide.sum(1) == pytest.approx(1) and wide.max(1)[:2].max() < 0.67
    assert (wide.argsort(1) == p.argsort(1)).all() and (wide[2] == p[2]).all()


def test_masked_pixels_have_no_weight_in_the_fit():
    """A star under a mask changes neither the fit nor the class; without the mask it is a residual."""
    image = simulated([])[:1]
    spoilt, depth = image.copy(), np.ones_like(image)
    spoilt[:, 100:108, 40:48] += 300
    depth[:, 99:111, 39:51] = MASKED_EXPOSURE
    images = torch.from_numpy(np.concatenate([image, spoilt]).astype(np.float32))
    exposure = torch.from_numpy(np.concatenate([depth, depth]).astype(np.float32))
    masked = extract_features(images, "common-test-i", exposure=exposure, centred=False)
    assert doubts(masked, ["smooth"] * 2) == [(), ()]
    torch.testing.assert_close(masked.column("theta_E")[1], masked.column("theta_E")[0], rtol=1e-3, atol=0)
    assert masked.column("n_pixels_fitted").tolist() == [48**2 - 36] * 2
    assert all(doubts(extract_features(images[1:], "common-test-i", centred=False), ["smooth"]))
