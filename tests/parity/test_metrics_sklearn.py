"""Our metrics equal scikit-learn's, ties and tiny samples included."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss, roc_auc_score, roc_curve

from darklens.evaluation import metrics

EXACT = 1e-9


@st.composite
def judged(draw):
    n_classes = draw(st.integers(2, 4))
    n = draw(st.integers(n_classes, 40))
    g = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = g.permutation(np.concatenate([np.arange(n_classes), g.integers(0, n_classes, n - n_classes)]))
    # Few distinct values, so that ties are common; zeros and ones occur.
    raw = g.integers(0, draw(st.sampled_from([2, 4, 1000])), (n, n_classes)).astype(float)
    raw[raw.sum(1) == 0] = 1
    return labels, raw / raw.sum(1, keepdims=True)


@given(judged())
@settings(max_examples=150, deadline=None)
def test_parity(case):
    labels, p = case
    n_classes = p.shape[1]
    metrics.check(labels, p)
    for i in range(n_classes):
        assert metrics.class_auc(labels, p)[i] == pytest.approx(roc_auc_score(labels == i, p[:, i]), abs=EXACT)
        ours = np.array(metrics.roc_curve(labels == i, p[:, i]))
        theirs = np.array(roc_curve(labels == i, p[:, i], drop_intermediate=False)[:2])
        np.testing.assert_allclose(ours, theirs, atol=EXACT)
    if n_classes > 2:
        assert metrics.macro_auc(labels, p) == pytest.approx(
            roc_auc_score(labels, p, multi_class="ovr", average="macro"), abs=EXACT
        )
    assert metrics.accuracy(labels, p) == pytest.approx(accuracy_score(labels, p.argmax(1)), abs=EXACT)
    assert (
        metrics.confusion(labels, p).tolist() == confusion_matrix(labels, p.argmax(1), labels=range(n_classes)).tolist()
    )
    clipped = p.clip(metrics.SMALLEST_PROBABILITY)
    expected = -np.log(clipped[np.arange(len(labels)), labels]).mean()
    assert metrics.log_loss(labels, p) == pytest.approx(expected, abs=EXACT)
    if p.min() > 0:
        assert metrics.log_loss(labels, p) == pytest.approx(log_loss(labels, p, labels=range(n_classes)), abs=EXACT)
