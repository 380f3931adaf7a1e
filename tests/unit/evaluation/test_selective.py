"""A promised risk is kept as often as promised, and is not promised on too few images."""

import numpy as np
import pytest

from darklens.evaluation import conformal


def drawn(n, seed):
    """Confidence, and whether it was right: wrong with probability (1 - confidence) to the 0.7, so it is too sure."""
    g = np.random.default_rng(seed)
    confidence = 1 - 0.6 * g.random(n) ** 3
    return confidence, g.random(n) > (1 - confidence) ** 0.7


def true_risks(thresholds):
    confidence, right = drawn(200_000, 10**6)
    return np.array([1 - right[confidence >= threshold].mean() for threshold in thresholds])


@pytest.mark.parametrize("risk", [0.05, 0.1])
def test_the_risk_is_kept_in_19_of_20_draws_and_most_thresholds_are_useful(risk):
    broken, promised, runs = 0, 0, 300
    grid = np.linspace(0.4, 0.999, 200)
    risks = true_risks(grid)
    for run in range(runs):
        confidence, right = drawn(800, 2 * run)
        tried = conformal.candidate_thresholds(drawn(800, 2 * run + 1)[0], 800, risk=risk, certainty=0.95)
        found = conformal.fit_selective(confidence, right, tried, risk=risk).confidence
        if found is not None:
            promised += 1
            broken += np.interp(found, grid, risks) > risk
    assert broken / runs <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / runs)
    assert promised > 0.8 * runs


def test_too_few_images_promise_nothing():
    assert conformal.min_images(0.01, 0.95) == 299
    few = np.ones(298), np.ones(298, dtype=bool)
    assert conformal.fit_selective(*few, np.zeros(1), risk=0.01).confidence is None
    enough = np.ones(299), np.ones(299, dtype=bool)
    assert conformal.fit_selective(*enough, np.zeros(1), risk=0.01).confidence == 0
    none = conformal.candidate_thresholds(np.zeros(0), 0, risk=0.01, certainty=0.95)
    assert conformal.fit_selective(np.zeros(0), np.zeros(0, dtype=bool), none, risk=0.01).confidence is None


def test_thresholds_are_tried_from_the_strictest():
    tried = conformal.candidate_thresholds(drawn(800, 0)[0], 800, risk=0.05, certainty=0.95)
    assert (np.diff(tried) < 0).all() and tried[-1] == 0 and tried[0] > 0.9


def test_what_is_accepted_is_counted():
    p, labels = np.array([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6]]), np.array([0, 1, 1])
    kept = conformal.SelectiveThreshold(risk=0.05, certainty=0.95, confidence=0.7)
    none = conformal.SelectiveThreshold(risk=0.01, certainty=0.95, confidence=None)
    first, second = conformal.summarise_selective(p, labels, (kept, none))
    assert first["accepted"] == pytest.approx(2 / 3) and first["wrong_of_accepted"] == 0.5
    assert second["accepted"] == 0 and second["wrong_of_accepted"] is None
