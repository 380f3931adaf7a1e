from statistics import NormalDist

import numpy as np
import pytest

from darklens import populations
from darklens.doctor.leaks import ALPHA, auc_with_interval, detectable_auc, leaks, normal_scores
from darklens.doctor.statistics import STATISTICS, measure
from darklens.errors import InputError
from darklens.evaluation.metrics import binary_auc
from darklens.simulate.batch import simulate_batch

NAMES = ["a", "b", "c"]


def clean(n, seed=0):
    """Correlated statistics with heavy tails, and random labels."""
    g = np.random.default_rng(seed)
    common = g.normal(size=(n, 1))
    return np.exp(common + g.normal(size=(n, 3))), g.permutation(n) % 3


def significant(values, labels, names=NAMES, **settings):
    return [leak for leak in leaks(values, names, labels, **settings) if leak.is_significant]


@pytest.mark.sweep
def test_the_false_alarm_rate_is_that_of_alpha():
    alarms = sum(bool(significant(*clean(150, seed), permutations=199)) for seed in range(100))
    assert alarms <= 4  # 1 is expected; 5 or more have a probability of 0.3 %


def test_a_shifted_statistic_is_detected_with_its_class_and_direction():
    values, labels = clean(600)
    values[labels == 2, 1] *= 0.3
    strongest = max((leak for leak in significant(values, labels) if leak.by != "all"), key=lambda leak: leak.auc)
    assert (strongest.statistic, strongest.label, strongest.sign, strongest.by) == ("b", 2, -1, "value")
    assert strongest.ci95[0] < strongest.auc < strongest.ci95[1] and strongest.p <= ALPHA
    assert all(leak.statistic in ("b", "all together") for leak in significant(values, labels))


@pytest.mark.parametrize("n", [60, 300])
def test_leaks_above_the_detectable_auc_are_detected_and_weaker_ones_are_not(n):
    """Leaks one standard error of the AUC, a third of its excess, below and above: 16 and 84 % are expected."""
    limit = detectable_auc(clean(n)[1], len(NAMES))
    found = {}
    for excess in (0.67, 1.33):
        shift = np.sqrt(2) * NormalDist().inv_cdf(0.5 + excess * (limit - 0.5))  # of normal values with this AUC
        stores = [clean(n, seed) for seed in range(20)]
        for seed, (values, labels) in enumerate(stores):
            values[:, 0] = np.random.default_rng([seed, 1]).normal(size=n) + shift * (labels == 1)
        found[excess] = sum(bool(significant(values, labels, permutations=199)) for values, labels in stores)
    assert found[0.67] <= 8 and found[1.33] >= 15


def test_a_statistic_of_larger_scatter_is_detected_by_its_extremes():
    values, labels = clean(900)
    values = np.log(values)
    values[labels == 1, 0] *= 2
    strongest = max((leak for leak in significant(values, labels) if leak.by != "all"), key=lambda leak: leak.auc)
    assert (strongest.statistic, strongest.label, strongest.sign, strongest.by) == ("a", 1, 1, "extremes")


def test_the_discriminant_detects_what_no_single_statistic_does():
    g = np.random.default_rng(5)
    labels = np.arange(600) % 3
    common = g.normal(size=600)
    values = np.stack([common, common + 0.05 * (labels == 0) + 0.05 * g.normal(size=600)], axis=1)
    results = significant(values, labels, ["a", "b"])
    assert {leak.by for leak in results} == {"all"}
    assert max(leak.auc for leak in results if leak.label == 0) > 0.7


def test_scores_of_the_discriminant_are_cross_validated():
    g = np.random.default_rng(6)
    aucs = []
    for _ in range(20):
        results = leaks(g.normal(size=(60, 12)), [f"s{i}" for i in range(12)], np.arange(60) % 3, permutations=9)
        aucs += [leak.auc for leak in results if leak.by == "all"]
    assert np.mean(aucs) == pytest.approx(0.5, abs=0.05)


def test_results_do_not_depend_on_units_and_are_reproducible():
    values, labels = clean(200)
    values[labels == 0, 2] *= 1.5
    same = leaks(np.log(values) * 7 - 3, NAMES, labels)
    assert same == leaks(values, NAMES, labels)


def test_constant_statistics_are_left_out_and_a_binary_one_is_detected():
    values, labels = clean(90)
    values[:, 0], values[:, 1] = 4.0, labels == 1
    results = leaks(values, NAMES, labels)
    assert "a" not in {leak.statistic for leak in results}
    strongest = next(leak for leak in results if leak.statistic == "b" and leak.label == 1)
    assert strongest.is_significant and strongest.auc == 1 and strongest.ci95 == (1, 1)
    assert leaks(np.ones((90, 3)), NAMES, labels) == []


def test_too_few_images_are_refused_and_an_absent_class_is_not():
    values, labels = clean(30)
    with pytest.raises(InputError, match="at least two classes of at least 10 images"):
        leaks(values[:12], NAMES, labels[:12])
    assert {leak.label for leak in leaks(values, NAMES, np.where(labels == 1, 0, labels))} == {0, 2}


@pytest.mark.parametrize("seed", range(3))
def test_the_auc_equals_that_of_the_metrics_and_its_variance_is_delongs(seed):
    g = np.random.default_rng(seed)
    member = g.random(80) < 0.4
    score = g.normal(size=80).round(1) + member  # with ties
    auc, (low, high) = auc_with_interval(member, score)
    assert auc == pytest.approx(binary_auc(member, score), abs=1e-12)
    wins = (score[member][:, None] > score[~member]) + 0.5 * (score[member][:, None] == score[~member])
    variance = wins.mean(1).var(ddof=1) / member.sum() + wins.mean(0).var(ddof=1) / (~member).sum()
    width = np.log(high / (1 - high)) - np.log(low / (1 - low))
    assert width / 2 == pytest.approx(1.959964 * np.sqrt(variance) / (auc * (1 - auc)), rel=1e-6)
    assert low < auc < high


def test_normal_scores_share_ties():
    assert normal_scores(np.array([[3.0], [1.0], [2.0], [2.0]]))[:, 0] == pytest.approx(
        [0.8416, -0.8416, 0.0, 0.0], abs=1e-4
    )


def test_a_leak_of_two_per_cent_in_the_ring_radius_is_detected_in_150_images():
    """For a fixed theta_E; a wide prior needs more images, see results/leaks."""
    changes = ("field.n_pixels=72", "lens.theta_E=1.1", "lens.gamma.high=0.05", "source.position.radius.high=0.2")
    smooth = populations.get("common-test-i", changes)
    smooth = smooth.model_copy(update={"classes": dict.fromkeys(smooth.classes, smooth.classes["no"])})
    wider = smooth.model_copy(
        update={
            "lens": smooth.lens.model_copy(
                update={"theta_E": smooth.lens.theta_E.model_copy(update={"value": 1.1 * 1.02})}
            )
        }
    )
    clean_values, planted_values = (
        measure(simulate_batch(population, seed, range(n))[0], pixel_scale=0.05)
        for population, seed, n in ((smooth, 1, 150), (wider, 2, 50))
    )
    names, labels = [s.name for s in STATISTICS], np.arange(150) % 3
    assert not significant(clean_values, labels, names)
    clean_values[labels == 2] = planted_values
    results = significant(clean_values, labels, names)
    assert ("ring radius", 2, 1) in {(leak.statistic, leak.label, leak.sign) for leak in results}
