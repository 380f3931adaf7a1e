import json

import numpy as np
import pytest

from darklens.evaluation import metrics

CLASSES = ["no", "sphere", "vort"]


def sample(n, seed=0):
    g = np.random.default_rng(seed)
    return np.arange(n) % 3, g.dirichlet([0.3, 0.3, 0.3], n)


def test_thinned_curves_keep_their_ends_and_their_shape():
    labels, p = sample(6000)
    whole = metrics.roc_curve(labels == 0, p[:, 0])
    x, y = metrics.thin_curve(whole)
    assert 150 < len(x) <= metrics.MAX_CURVE_POINTS < len(whole[0])
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    assert np.abs(np.interp(whole[0], x, y) - whole[1]).max() < 0.02
    assert metrics.thin_curve((x, y)) == (x, y) or len(x) == metrics.MAX_CURVE_POINTS


def test_all_curves_are_json():
    labels, p = sample(3000)
    found = metrics.curves(labels, p, CLASSES)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert list(found["roc"]) == list(found["precision_recall"]) == CLASSES
    assert found["risk_coverage"]["coverage"][-1] == 1
    assert found["risk_coverage"]["risk"][-1] == pytest.approx((p.argmax(1) != labels).mean())
    assert sum(found["reliability"]["n"]) == 3000


def test_the_risk_at_a_coverage_is_of_the_fewest_images_that_reach_it():
    right, confidence = np.array([True, True, False, True]), np.array([0.9, 0.8, 0.7, 0.6])
    found = metrics.weighted_risk_coverage(right, confidence, np.ones((1, 4)), (0.5, 0.6, 1.0))
    assert found.risk_at[:, 0] == pytest.approx([0, 1 / 3, 1 / 4])
    assert found.area[0] == pytest.approx((0 + 0 + 1 / 3 + 1 / 4) / 4)
