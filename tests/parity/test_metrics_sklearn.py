"""Metrics equal those of scikit-learn, with ties and in tiny samples."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    brier_score_loss,
    confusion_matrix,
    log_loss,
    precision_recall_curve,
    recall_score,
    roc_auc_score,
    roc_curve,
)

from darklens.evaluation import bootstrap, metrics
from darklens.evaluation.intervals import metrics_with_intervals

EXACT = 1e-9


@st.composite
def predictions(draw):
    n_classes = draw(st.integers(2, 4))
    n = draw(st.integers(n_classes, 40))  # three images of three classes too
    g = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = g.permutation(np.concatenate([np.arange(n_classes), g.integers(0, n_classes, n - n_classes)]))
    # Few distinct values, so that ties are common; zeros and ones occur.
    raw = g.integers(0, draw(st.sampled_from([2, 4, 1000])), (n, n_classes)).astype(float)
    raw[raw.sum(1) == 0] = 1
    return labels, raw / raw.sum(1, keepdims=True)


@given(predictions())
@settings(max_examples=60, deadline=None)
def test_parity(case):
    labels, p = case
    n_classes = p.shape[1]
    metrics.check(labels, p)
    for i in range(n_classes):
        assert metrics.class_auc(labels, p)[i] == pytest.approx(roc_auc_score(labels == i, p[:, i]), abs=EXACT)
        curve = np.array(metrics.roc_curve(labels == i, p[:, i]))
        expected = np.array(roc_curve(labels == i, p[:, i], drop_intermediate=False)[:2])
        np.testing.assert_allclose(curve, expected, atol=EXACT)
    if n_classes > 2:
        assert metrics.macro_auc(labels, p) == pytest.approx(
            roc_auc_score(labels, p, multi_class="ovr", average="macro"), abs=EXACT
        )
    assert metrics.accuracy(labels, p) == pytest.approx(accuracy_score(labels, p.argmax(1)), abs=EXACT)
    assert (
        metrics.confusion(labels, p).tolist() == confusion_matrix(labels, p.argmax(1), labels=range(n_classes)).tolist()
    )
    clipped = p.clip(metrics.MIN_PROBABILITY)
    expected = -np.log(clipped[np.arange(len(labels)), labels]).mean()
    assert metrics.log_loss(labels, p) == pytest.approx(expected, abs=EXACT)
    if p.min() > 0:
        assert metrics.log_loss(labels, p) == pytest.approx(log_loss(labels, p, labels=range(n_classes)), abs=EXACT)


@given(predictions())
@settings(max_examples=60, deadline=None)
def test_parity_of_precision_recall_and_brier(case):
    labels, p = case
    classes = range(p.shape[1])
    for i in classes:
        positive, score = labels == i, p[:, i]
        assert metrics.average_precision(positive, score) == pytest.approx(
            average_precision_score(positive, score), abs=EXACT
        )
        precision, recall, _ = precision_recall_curve(positive, score)
        np.testing.assert_allclose(
            metrics.precision_recall_curve(positive, score), [recall[::-1], precision[::-1]], atol=EXACT
        )
    np.testing.assert_allclose(metrics.recall(labels, p), recall_score(labels, p.argmax(1), average=None), atol=EXACT)
    expected = sum(brier_score_loss(labels == i, p[:, i]) for i in classes)
    assert metrics.brier_score(labels, p) == pytest.approx(expected, abs=EXACT)


@given(predictions())
@settings(max_examples=60, deadline=None)
def test_parity_of_risk_and_coverage(case):
    """One minus the risk is the precision of "this prediction is correct" at the threshold."""
    labels, p = case
    correct, confidence = p.argmax(1) == labels, p.max(1)
    coverage, risk = metrics.risk_coverage_curve(correct, confidence)
    precision, _, thresholds = precision_recall_curve(correct | ~correct, confidence)  # its distinct thresholds
    precision = [correct[confidence >= t].mean() for t in thresholds[::-1]]
    np.testing.assert_allclose(1 - risk, precision, atol=EXACT)
    np.testing.assert_allclose(coverage, [(confidence >= t).mean() for t in thresholds[::-1]], atol=EXACT)
    area = np.mean([1 - correct[confidence >= c].mean() for c in confidence])
    assert bootstrap.scalar_metrics(labels, p)["aurc"] == pytest.approx(area, abs=EXACT)


@given(predictions())
@settings(max_examples=100, deadline=None)
def test_scalars_of_the_bootstrap_are_the_metrics(case):
    labels, p = case
    scalars = bootstrap.scalar_metrics(labels, p)
    assert all(np.isfinite(value) for value in scalars.values())
    single = {
        "accuracy": metrics.accuracy,
        "nll": metrics.log_loss,
        "brier": metrics.brier_score,
        "auc": metrics.macro_auc,
    }
    for name, metric in single.items():
        assert scalars[name] == pytest.approx(metric(labels, p), abs=EXACT)
    for i, (auc, recall) in enumerate(zip(metrics.class_auc(labels, p), metrics.recall(labels, p), strict=True)):
        average = metrics.average_precision(labels == i, p[:, i])
        assert [scalars[f"{name}_{i}"] for name in ("auc", "recall", "average_precision")] == pytest.approx(
            [auc, recall, average], abs=EXACT
        )


def test_reliability_has_the_bins_of_scikit_learn_where_no_confidence_is_tied():
    g = np.random.default_rng(0)
    labels, p = np.arange(300) % 3, g.dirichlet([1, 1, 1], 300)
    confidence, accuracy = metrics.reliability(labels, p)[:, :2].T
    correct = p.argmax(1) == labels
    expected = calibration_curve(correct, p.max(1), n_bins=metrics.ECE_BINS, strategy="quantile")
    np.testing.assert_allclose([accuracy, confidence], expected, atol=EXACT)


@pytest.mark.parametrize("labels", [[0, 1, 2], [2, 0, 1]])
def test_three_images_and_ties(labels):
    for p in (np.full((3, 3), 1 / 3), np.eye(3)[labels], np.eye(3)):
        summary = metrics_with_intervals(np.array(labels), p, ["no", "sphere", "vort"], resamples=20)
        assert np.isfinite([summary[name]["value"] for name in ("accuracy", "nll", "brier", "ece", "aurc")]).all()
