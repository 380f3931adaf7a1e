"""Prediction sets have the stated coverage on new images, and selective classification keeps the guaranteed risk."""

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
    """Probabilities of an overconfident classifier, and the true labels."""
    g = np.random.default_rng(seed)
    labels = g.integers(0, 3, n)
    return softmax(3 * (np.eye(3)[labels] * sharpness + g.normal(0, 1, (n, 3)))), labels


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60), LEVELS)
def test_the_quantile_is_the_smallest_score_with_enough_scores_at_or_below_it(scores, level):
    scores, needed = np.array(scores), math.ceil((len(scores) + 1) * level)
    quantile = conformal.quantile(scores, float(level))
    if needed > len(scores):
        assert quantile == math.inf
    else:
        assert quantile in scores and (scores <= quantile).sum() >= needed and (scores < quantile).sum() < needed


def test_a_level_of_90_per_cent_needs_nine_scores():
    assert conformal.quantile(np.arange(9.0), 0.9) == 8
    assert conformal.quantile(np.arange(8.0), 0.9) == math.inf


def test_scores_by_hand():
    p = np.array([[0.2, 0.7, 0.1]])
    np.testing.assert_allclose(conformal.lac_scores(p), [[0.8, 0.3, 0.9]])
    np.testing.assert_allclose(conformal.aps_scores(p), [[0.9, 0.7, 1.0]])
    np.testing.assert_allclose(conformal.aps_scores(p, np.array([0.5])), [[0.8, 0.35, 0.95]])


@pytest.mark.parametrize("level", [0.9, 0.95])
def test_new_images_have_the_stated_coverage(level):
    coverage = {kind: [] for kind in ("lac", "lac_by_class", "aps", "aps_whole")}
    for repetition in range(60):
        fitted = conformal.fit_sets(*simulated(300, 2 * repetition), level, seed=repetition)
        p, labels = simulated(1000, 2 * repetition + 1)
        for kind, members in conformal.prediction_sets(p, fitted, seed=repetition + 1000).items():
            coverage[kind].append(conformal.coverage(members, labels))
    mean = {kind: np.mean(values) for kind, values in coverage.items()}
    for kind in ("lac", "lac_by_class", "aps"):
        assert abs(mean[kind] - level) < 0.012, mean
    assert mean["aps_whole"] > level - 0.01


def test_class_conditional_sets_cover_each_class_where_a_common_threshold_does_not():
    g = np.random.default_rng(0)

    def unequal(n):
        labels = np.arange(n) % 3
        return softmax(np.eye(3)[labels] * np.array([0.5, 2, 4])[labels][:, None] + g.normal(0, 0.7, (n, 3))), labels

    fitted = conformal.fit_sets(*unequal(3000), 0.9)
    p, labels = unequal(6000)
    row = conformal.summarise_sets(p, labels, (fitted,))[0]
    assert min(row["lac"]["coverage_by_class"]) < 0.8
    assert all(0.88 < value < 0.92 for value in row["lac_by_class"]["coverage_by_class"])


def test_deterministic_sets_are_never_empty_and_too_few_images_give_full_sets():
    p, labels = simulated(500, 1)
    assert conformal.prediction_sets(p, conformal.fit_sets(p, labels, 0.9))["aps_whole"].any(1).all()
    few = conformal.fit_sets(p[:5], labels[:5], 0.9)
    assert all(sets.all() for sets in conformal.prediction_sets(p, few).values())


def test_sizes_and_empty_sets_are_counted():
    p = np.array([[0.9, 0.1, 0.0], [0.4, 0.35, 0.25]])
    thresholds = conformal.ConformalThresholds(level=0.9, lac=0.5, lac_by_class=(1, 1, 1), aps=1.0, aps_whole=1.0)
    row = conformal.summarise_sets(p, np.array([0, 1]), (thresholds,))[0]["lac"]
    assert row["mean_size"] == 0.5 and row["empty"] == 0.5 and row["coverage"] == 0.5


def predictions(n, seed):
    """Overconfident predictions: their confidence, and whether they are correct, wrong at (1 - confidence)^0.7."""
    g = np.random.default_rng(seed)
    confidence = 1 - 0.6 * g.random(n) ** 3
    return confidence, g.random(n) > (1 - confidence) ** 0.7


def true_risks(thresholds):
    confidence, correct = predictions(200_000, 10**6)
    return np.array([1 - correct[confidence >= threshold].mean() for threshold in thresholds])


@pytest.mark.sweep
@pytest.mark.parametrize("risk", [0.05, 0.1])
def test_the_risk_is_kept_in_19_of_20_samples_and_most_samples_give_a_threshold(risk):
    violated, guaranteed, runs = 0, 0, 300
    grid = np.linspace(0.4, 0.999, 200)
    risks = true_risks(grid)
    for run in range(runs):
        confidence, correct = predictions(800, 2 * run)
        candidates = conformal.candidate_thresholds(predictions(800, 2 * run + 1)[0], 800, risk=risk, certainty=0.95)
        threshold = conformal.fit_selective(confidence, correct, candidates, risk=risk).confidence
        if threshold is not None:
            guaranteed += 1
            violated += np.interp(threshold, grid, risks) > risk
    assert violated / runs <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / runs)
    assert guaranteed > 0.8 * runs


def test_too_few_images_give_no_guarantee():
    assert conformal.min_images(0.01, 0.95) == 299
    few = np.ones(298), np.ones(298, dtype=bool)
    assert conformal.fit_selective(*few, np.zeros(1), risk=0.01).confidence is None
    enough = np.ones(299), np.ones(299, dtype=bool)
    assert conformal.fit_selective(*enough, np.zeros(1), risk=0.01).confidence == 0
    none = conformal.candidate_thresholds(np.zeros(0), 0, risk=0.01, certainty=0.95)
    assert conformal.fit_selective(np.zeros(0), np.zeros(0, dtype=bool), none, risk=0.01).confidence is None


def test_thresholds_are_tested_from_the_strictest():
    candidates = conformal.candidate_thresholds(predictions(800, 0)[0], 800, risk=0.05, certainty=0.95)
    assert (np.diff(candidates) < 0).all() and candidates[-1] == 0 and candidates[0] > 0.9


def test_accepted_images_and_their_errors_are_counted():
    p, labels = np.array([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6]]), np.array([0, 1, 1])
    kept = conformal.SelectiveThreshold(risk=0.05, certainty=0.95, confidence=0.7)
    none = conformal.SelectiveThreshold(risk=0.01, certainty=0.95, confidence=None)
    first, second = conformal.summarise_selective(p, labels, (kept, none))
    assert first["accepted"] == pytest.approx(2 / 3) and first["wrong_of_accepted"] == 0.5
    assert second["accepted"] == 0 and second["wrong_of_accepted"] is None
