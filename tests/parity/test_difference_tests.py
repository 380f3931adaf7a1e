"""DeLong's and McNemar's tests against direct implementations and scipy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, chi2, norm

from darklens.evaluation.bootstrap import BootstrapMetrics, difference
from darklens.evaluation.metrics import class_auc
from darklens.evaluation.paired_tests import delong_test, mcnemar_test

EXACT = 1e-9


@st.composite
def two_systems(draw):
    n_classes = draw(st.integers(2, 4))
    n = draw(st.integers(2 * n_classes, 40))
    g = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    start = np.repeat(np.arange(n_classes), 2)
    labels = g.permutation(np.concatenate([start, g.integers(0, n_classes, n - len(start))]))
    levels = draw(st.sampled_from([2, 4, 1000]))  # few, so that ties are common

    def probabilities():
        raw = g.integers(0, levels, (n, n_classes)).astype(float)
        raw[raw.sum(1) == 0] = 1
        return raw / raw.sum(1, keepdims=True)

    return labels, probabilities(), probabilities()


def slow_components(positive, scores):
    """All pairs, as DeLong et al. 1988 write them: V10 of each positive, V01 of each negative."""
    pairs = np.array([[1.0 if a > b else 0.5 if a == b else 0.0 for b in scores[~positive]] for a in scores[positive]])
    return pairs.mean(1), pairs.mean(0)


def slow_variance_of_difference(positive, a, b):
    (v10_a, v01_a), (v10_b, v01_b) = slow_components(positive, a), slow_components(positive, b)
    s10, s01 = np.cov([v10_a, v10_b]), np.cov([v01_a, v01_b])
    s = s10 / len(v10_a) + s01 / len(v01_a)
    return s[0, 0] + s[1, 1] - 2 * s[0, 1]


@given(two_systems())
@settings(max_examples=150, deadline=None)
def test_delong_equals_the_sum_over_all_pairs(case):
    labels, a, b = case
    tests = delong_test(labels, [a], [b])
    for i, test in enumerate(tests[:-1]):
        positive = labels == i
        assert test["value"] == pytest.approx(class_auc(labels, a)[i] - class_auc(labels, b)[i], abs=EXACT)
        variance = max(slow_variance_of_difference(positive, a[:, i], b[:, i]), 0)
        assert test["se"] ** 2 == pytest.approx(variance, abs=EXACT)
        if test["se"] > 1e-6:
            assert test["p"] == pytest.approx(2 * norm.sf(abs(test["value"]) / test["se"]), abs=EXACT)
    assert tests[-1]["value"] == pytest.approx(np.mean([test["value"] for test in tests[:-1]]), abs=EXACT)


def sample(n, skill, seed):
    g = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    shared = g.normal(size=(n, 3))

    def probabilities(k):
        p = np.exp(shared + 0.7 * g.normal(size=(n, 3)) + k * np.eye(3)[labels])
        return p / p.sum(1, keepdims=True)

    return labels, probabilities(skill), probabilities(0.8 * skill)


def test_delong_and_the_bootstrap_agree_on_classes_and_on_the_mean():
    labels, a, b = sample(1500, 1.5, 0)
    systems = ([BootstrapMetrics.of(labels, p, resamples=1500)] for p in (a, b))
    exact, resampled = delong_test(labels, [a], [b]), difference(*systems, paired=True)
    for test, name in zip(exact, ["auc_0", "auc_1", "auc_2", "auc"], strict=True):
        low, high = resampled[name]["ci95"]
        assert test["value"] == pytest.approx(resampled[name]["value"], abs=1e-12)
        assert test["ci95"][1] - test["ci95"][0] == pytest.approx(high - low, rel=0.12)
    means = sum(test["se"] for test in exact[:3]) / 3
    assert exact[3]["se"] < means  # an image's contributions to different classes differ


@pytest.mark.sweep
def test_delong_rejects_equal_systems_at_the_stated_rate():
    rejected = 0
    for seed in range(400):
        g = np.random.default_rng(seed)
        labels = np.arange(90) % 3
        a, b = g.dirichlet([1, 1, 1], 90), g.dirichlet([1, 1, 1], 90)
        rejected += delong_test(labels, [a], [b])[-1]["p"] < 0.05
    assert 8 <= rejected <= 34  # 20 expected


def test_trainings_are_averaged_and_a_system_does_not_differ_from_itself():
    labels, a, b = sample(300, 1.0, 1)
    twice, once = delong_test(labels, [a, a], [b]), delong_test(labels, [a], [b])
    assert [test["p"] for test in twice] == pytest.approx([test["p"] for test in once], abs=1e-12)
    same = delong_test(labels, [a], [a])
    assert all(test == {"value": 0.0, "se": 0.0, "ci95": [0.0, 0.0], "p": 1.0} for test in same)


def test_one_image_of_a_class_gives_no_variance():
    tests = delong_test(np.arange(3), [np.eye(3)], [np.full((3, 3), 1 / 3)])
    assert [test["value"] for test in tests] == [0.5] * 4
    assert all(test["p"] is test["se"] is test["ci95"] is None for test in tests)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 5))
@settings(max_examples=100, deadline=None)
def test_mcnemar_is_the_binomial_or_the_corrected_chi2_test(first_only, second_only, both):
    n = first_only + second_only + both + 1
    labels, a, b = np.zeros(n, dtype=int), np.tile([1.0, 0.0], (n, 1)), np.tile([1.0, 0.0], (n, 1))
    b[:first_only] = [0.0, 1.0]
    a[first_only : first_only + second_only] = [0.0, 1.0]
    test = mcnemar_test(labels, a, b)
    discordant = first_only + second_only
    assert (test["first_only"], test["second_only"]) == (first_only, second_only)
    if discordant < 25:
        expected = binomtest(first_only, discordant).pvalue if discordant else 1.0
        assert test["method"] == "exact"
    else:
        expected = chi2.sf(max(abs(first_only - second_only) - 1, 0) ** 2 / discordant, 1)
        assert test["method"] == "chi2"
    assert test["p"] == pytest.approx(expected, abs=EXACT)
