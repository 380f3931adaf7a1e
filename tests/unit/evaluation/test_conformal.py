"""Prediction sets: the quantile is exact, and fresh images are covered as often as stated."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from darklens.calibration import softmax
from darklens.evaluation import conformal

LEVELS = st.integers(1, 99).map(lambda percent: Fraction(percent, 100))


def simulated(n, seed, *, sharpness=2.0):
    """Labels and the probabilities of a classifier that is right more often than not, and too sure."""
    g = np.random.default_rng(seed)
    labels = g.integers(0, 3, n)
    return softmax(3 * (np.eye(3)[labels] * sharpness + g.normal(0, 1, (n, 3)))), labels


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60), LEVELS)
def test_the_quantile_is_the_smallest_score_with_enough_scores_at_or_below_it(scores, level):
    scores, needed = np.array(scores), math.ceil((len(scores) + 1) * level)
    found = conformal.quantile(scores, float(level))
    if needed > len(scores):
        assert found == math.inf
    else:
        assert found in scores and (scores <= found).sum() >= needed and (scores < found).sum() < needed


def test_nine_of_nine_are_needed_for_nine_tenths_and_eight_are_too_few():
    assert conformal.quantile(np.arange(9.0), 0.9) == 8
    assert conformal.quantile(np.arange(8.0), 0.9) == math.inf


def test_scores_by_hand():
    p = np.array([[0.2, 0.7, 0.1]])
    np.testing.assert_allclose(conformal.lac_scores(p), [[0.8, 0.3, 0.9]])
    np.testing.assert_allclose(conformal.aps_scores(p), [[0.9, 0.7, 1.0]])
    np.testing.assert_allclose(conformal.aps_scores(p, np.array([0.5])), [[0.8, 0.35, 0.95]])


@pytest.mark.parametrize("level", [0.9, 0.95])
def test_fresh_images_are_covered_as_often_as_stated(level):
    found = {kind: [] for kind in ("lac", "lac_by_class", "aps", "aps_whole")}
    for repetition in range(60):
        fitted = conformal.fit_sets(*simulated(300, 2 * repetition), level, seed=repetition)
        p, labels = simulated(1000, 2 * repetition + 1)
        for kind, members in conformal.prediction_sets(p, fitted, seed=repetition + 1000).items():
            found[kind].append(conformal.coverage(members, labels))
    mean = {kind: np.mean(values) for kind, values in found.items()}
    for kind in ("lac", "lac_by_class", "aps"):
        assert abs(mean[kind] - level) < 0.012, mean
    assert mean["aps_whole"] > level - 0.01


def test_each_class_is_covered_by_its_own_threshold_where_one_for_all_is_unfair():
    g = np.random.default_rng(0)

    def unfair(n):
        labels = np.arange(n) % 3
        return softmax(np.eye(3)[labels] * np.array([0.5, 2, 4])[labels][:, None] + g.normal(0, 0.7, (n, 3))), labels

    fitted = conformal.fit_sets(*unfair(3000), 0.9)
    p, labels = unfair(6000)
    row = conformal.summarise_sets(p, labels, (fitted,))[0]
    assert min(row["lac"]["coverage_by_class"]) < 0.8
    assert all(0.88 < value < 0.92 for value in row["lac_by_class"]["coverage_by_class"])


def test_whole_sums_leave_no_set_empty_and_too_few_images_leave_every_class_in():
    p, labels = simulated(500, 1)
    assert conformal.prediction_sets(p, conformal.fit_sets(p, labels, 0.9))["aps_whole"].any(1).all()
    few = conformal.fit_sets(p[:5], labels[:5], 0.9)
    assert all(found.all() for kind, found in conformal.prediction_sets(p, few).items())


def test_sizes_and_empty_sets_are_counted():
    p = np.array([[0.9, 0.1, 0.0], [0.4, 0.35, 0.25]])
    thresholds = conformal.ConformalThresholds(level=0.9, lac=0.5, lac_by_class=(1, 1, 1), aps=1.0, aps_whole=1.0)
    found = conformal.summarise_sets(p, np.array([0, 1]), (thresholds,))[0]["lac"]
    assert found["mean_size"] == 0.5 and found["empty"] == 0.5 and found["coverage"] == 0.5
