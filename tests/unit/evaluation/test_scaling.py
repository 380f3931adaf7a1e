"""Temperature scaling and isotonic curves: their optimum, and their effect on an overconfident network."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression

from darklens.calibration import Calibration, CalibrationCurve, softmax
from darklens.errors import InputError
from darklens.evaluation import metrics
from darklens.evaluation.scaling import fit_curves, fit_temperature


def calibrated(n, seed):
    """Logits, and labels drawn from their softmax."""
    g = np.random.default_rng(seed)
    logits = g.normal(0, 2, (n, 3))
    labels = (softmax(logits).cumsum(1) < g.random(n)[:, None]).sum(1)
    return logits, labels


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
def test_calibration_error_falls_below_two_per_cent(factor):
    logits, labels = calibrated(20000, 0)
    temperature = fit_temperature(factor * logits[:5000], labels[:5000])
    assert temperature == pytest.approx(factor, rel=0.1)
    p = Calibration(temperature=temperature).probabilities(factor * logits[5000:])
    assert metrics.calibration_error(labels[5000:], p) < 0.02
    if factor != 1:
        assert metrics.calibration_error(labels[5000:], softmax(factor * logits[5000:])) > 0.05


@given(st.integers(0, 1000), st.floats(0.3, 3))
def test_the_temperature_minimises_the_smoothed_log_loss(seed, factor):
    logits, labels = calibrated(200, seed)
    best = fit_temperature(factor * logits, labels)
    target = np.full((200, 3), 1 / 201 / 3)
    target[np.arange(200), labels] += 200 / 201
    losses = [-(target * np.log(softmax(factor * logits / (t * best)))).sum() for t in (0.98, 1, 1.02)]
    assert losses[1] == min(losses)


def test_a_small_sample_without_errors_does_not_give_certainty():
    logits = np.eye(3)[np.arange(30) % 3] * 2.0
    p = softmax(logits / fit_temperature(logits, np.arange(30) % 3))
    assert 0.95 < p.max() < 0.985


def test_constant_logits_give_a_finite_temperature():
    assert 0.05 <= fit_temperature(np.zeros((30, 3)), np.arange(30) % 3) <= 20


def overconfident_in_one_class(n, seed):
    """Logits that are calibrated for the first class and overconfident for the third, and their labels."""
    g = np.random.default_rng(seed)
    logits = 2 * g.normal(size=(n, 3))
    labels = (g.random((n, 1)) > softmax(logits).cumsum(1)).sum(1).clip(max=2)
    return logits + np.where(logits > 0, [0.0, -0.5, 3.0], [0.0, -0.5, 1.0]), labels


def test_curves_correct_what_a_temperature_cannot():
    held_out, fresh = overconfident_in_one_class(6000, 0), overconfident_in_one_class(12_000, 1)
    curves = fit_curves(softmax(held_out[0]), held_out[1])
    before, after = (Calibration(curves=c).probabilities(fresh[0]) for c in ((), curves))
    np.testing.assert_allclose(after.sum(1), 1)
    error_before, error_after = (metrics.calibration_error(fresh[1], p) for p in (before, after))
    assert error_before > 0.08 and error_after < 0.6 * error_before
    assert metrics.log_loss(fresh[1], after) < metrics.log_loss(fresh[1], before)


def test_each_curve_equals_that_of_scikit_learn():
    logits, labels = overconfident_in_one_class(900, 2)
    p = softmax(logits).round(6)
    for k, curve in enumerate(fit_curves(p, labels)):
        expected = IsotonicRegression(y_min=1 / 902, y_max=1 - 1 / 902).fit(p[:, k], labels == k)
        np.testing.assert_allclose(
            np.interp(p[:, k], curve.predicted, curve.calibrated), expected.predict(p[:, k]), atol=1e-6
        )


@pytest.mark.parametrize(
    ("predicted", "calibrated"), [((0.1, 0.1), (0.2, 0.3)), ((0.1,), (0.2, 0.3)), ((0.1,), (1.0,)), ((), ())]
)
def test_an_invalid_curve_is_refused(predicted, calibrated):
    with pytest.raises(ValueError, match=r"predicted|calibrated"):
        CalibrationCurve(predicted=predicted, calibrated=calibrated)


def test_a_format_without_curves_says_so():
    curve = CalibrationCurve(predicted=(0.5,), calibrated=(0.4,))
    with pytest.raises(InputError, match="an ONNX file takes a temperature alone"):
        Calibration(curves=(curve,)).require_temperature_alone("an ONNX file")
