"""Curves from probabilities to how often they are true."""

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression

from darklens.calibration import Calibration, Curve, softmax
from darklens.errors import InputError
from darklens.evaluation import metrics
from darklens.evaluation.scaling import fit_curves


def too_sure_of_one_class(n, seed):
    """Logits of a network that is right about the first class, and says it is surer of the third than it may be."""
    g = np.random.default_rng(seed)
    honest = 2 * g.normal(size=(n, 3))
    labels = (g.random((n, 1)) > softmax(honest).cumsum(1)).sum(1).clip(max=2)
    return honest + np.where(honest > 0, [0.0, -0.5, 3.0], [0.0, -0.5, 1.0]), labels


def test_curves_mend_what_a_temperature_cannot():
    held_out, fresh = too_sure_of_one_class(6000, 0), too_sure_of_one_class(12_000, 1)
    curves = fit_curves(softmax(held_out[0]), held_out[1])
    before, after = (Calibration(curves=c).probabilities(fresh[0]) for c in ((), curves))
    np.testing.assert_allclose(after.sum(1), 1)
    was, is_now = (metrics.calibration_error(fresh[1], p) for p in (before, after))
    assert was > 0.08 and is_now < 0.6 * was
    assert metrics.log_loss(fresh[1], after) < metrics.log_loss(fresh[1], before)


def test_each_curve_is_sklearns():
    logits, labels = too_sure_of_one_class(900, 2)
    p = softmax(logits).round(6)
    for k, curve in enumerate(fit_curves(p, labels)):
        theirs = IsotonicRegression(y_min=1 / 902, y_max=1 - 1 / 902).fit(p[:, k], labels == k)
        np.testing.assert_allclose(np.interp(p[:, k], curve.given, curve.meant), theirs.predict(p[:, k]), atol=1e-6)


@pytest.mark.parametrize(
    ("given", "meant"), [((0.1, 0.1), (0.2, 0.3)), ((0.1,), (0.2, 0.3)), ((0.1,), (1.0,)), ((), ())]
)
def test_a_curve_of_nonsense_is_refused(given, meant):
    with pytest.raises(ValueError, match=r"given|meant"):
        Curve(given=given, meant=meant)


def test_what_takes_a_temperature_alone_says_so():
    with pytest.raises(InputError, match="an ONNX file takes a temperature alone"):
        Calibration(curves=(Curve(given=(0.5,), meant=(0.4,)),)).require_temperature_alone("an ONNX file")
