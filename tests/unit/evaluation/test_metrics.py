import json

import numpy as np
import pytest

from darklens.errors import InputError
from darklens.evaluation import metrics


def sample(n=3000, skill=1.0, seed=0):
    g = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    logits = g.normal(size=(n, 3)) + skill * np.eye(3)[labels]
    p = np.exp(logits)
    return labels, p / p.sum(1, keepdims=True)


def test_the_legacy_auc_follows_the_notebooks_of_the_study():
    labels, p = sample(300)
    predicted = p.argmax(1)
    for i, value in enumerate(metrics.legacy_auc(labels, p)):
        positive = np.array(
            [label == i and label == prediction for label, prediction in zip(labels, predicted, strict=True)]
        )
        wins = [(a > b) + (a == b) / 2 for a in p[positive, i] for b in p[~positive, i]]
        assert value == pytest.approx(np.mean(wins), abs=1e-12)


def test_random_probabilities_have_a_legacy_auc_of_087_and_an_auc_of_one_half():
    labels, p = sample(30_000, skill=0.0)
    assert np.mean(metrics.legacy_auc(labels, p)) == pytest.approx(0.87, abs=0.015)
    assert metrics.macro_auc(labels, p) == pytest.approx(0.5, abs=0.01)


def test_the_legacy_auc_is_undefined_without_a_correct_prediction_of_the_class():
    labels, p = np.array([0, 1, 2]), np.tile([0.5, 0.3, 0.2], (3, 1))
    assert metrics.legacy_auc(labels, p)[1:] == [None, None]


def test_calibration_error_of_known_cases():
    labels = np.arange(1000) % 2
    certain = np.tile([1.0, 0.0], (1000, 1))
    assert metrics.calibration_error(labels, certain) == pytest.approx(0.5)
    assert metrics.calibration_error(np.zeros(1000, dtype=int), certain) == 0
    bins = metrics.reliability(*sample(1000))
    assert bins[:, 2].sum() == 1000 and bins[:, 2].max() - bins[:, 2].min() <= 1
    assert (np.diff(bins[:, 0]) >= 0).all()


@pytest.mark.parametrize(
    ("labels", "p", "sentence"),
    [
        (np.array([], dtype=int), np.zeros((0, 3)), "no images"),
        (np.array([0, 1]), np.full((3, 3), 1 / 3), "do not match"),
        (np.array([0, 1, 1]), np.full((3, 3), 1 / 3), "Class 2 has no image"),
        (np.array([0, 1, 3]), np.full((3, 3), 1 / 3), "from 0 to 2"),
        (np.array([0, 1, 2]), np.full((3, 3), np.nan), "finite"),
        (np.array([0, 1, 2]), np.full((3, 3), 0.5), "sum to one"),
    ],
)
def test_undefined_metrics_are_refused(labels, p, sentence):
    with pytest.raises(InputError, match=sentence):
        metrics.check(labels, p)


def dirichlet(n, seed=0):
    return np.arange(n) % 3, np.random.default_rng(seed).dirichlet([0.3, 0.3, 0.3], n)


def test_thinned_curves_keep_their_ends_and_their_shape():
    labels, p = dirichlet(6000)
    whole = metrics.roc_curve(labels == 0, p[:, 0])
    x, y = metrics.thin_curve(whole)
    assert 150 < len(x) <= metrics.MAX_CURVE_POINTS < len(whole[0])
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    assert np.abs(np.interp(whole[0], x, y) - whole[1]).max() < 0.02
    assert metrics.thin_curve((x, y)) == (x, y) or len(x) == metrics.MAX_CURVE_POINTS


def test_all_curves_are_json():
    labels, p = dirichlet(3000)
    curves = metrics.curves(labels, p, ["no", "sphere", "vort"])
    assert json.loads(json.dumps(curves, allow_nan=False)) == curves
    assert list(curves["roc"]) == list(curves["precision_recall"]) == ["no", "sphere", "vort"]
    assert curves["risk_coverage"]["coverage"][-1] == 1
    assert curves["risk_coverage"]["risk"][-1] == pytest.approx((p.argmax(1) != labels).mean())
    assert sum(curves["reliability"]["n"]) == 3000


def test_the_risk_at_a_coverage_is_of_the_fewest_images_that_reach_it():
    correct, confidence = np.array([True, True, False, True]), np.array([0.9, 0.8, 0.7, 0.6])
    result = metrics.weighted_risk_coverage(correct, confidence, np.ones((1, 4)), (0.5, 0.6, 1.0))
    assert result.risk_at[:, 0] == pytest.approx([0, 1 / 3, 1 / 4])
    assert result.area[0] == pytest.approx((0 + 0 + 1 / 3 + 1 / 4) / 4)
