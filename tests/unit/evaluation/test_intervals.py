import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from darklens import rng
from darklens.errors import InputError
from darklens.evaluation import bootstrap, metrics
from darklens.evaluation.bootstrap import BootstrapMetrics, scalar_metrics
from darklens.evaluation.compare import compare, to_markdown
from darklens.evaluation.intervals import (
    _ReliabilityBins,
    bootstrap_logit_interval,
    calibration_error_interval,
    metric_with_interval,
    metrics_with_intervals,
    skewed_mean_interval,
    wilson_interval,
)
from darklens.evaluation.runs import EvaluationRun, SystemRuns, group_runs

CLASSES = ["no", "sphere", "vort"]


def sample(n, skill=1.0, seed=0):
    g = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    p = np.exp(g.normal(size=(n, 3)) + skill * np.eye(3)[labels])
    return labels, p / p.sum(1, keepdims=True)


def test_a_resample_is_the_metric_of_the_repeated_images():
    labels, p = sample(120)
    p = np.round(p, 1) + 1e-9
    p /= p.sum(1, keepdims=True)  # ties
    weights = np.concatenate(list(bootstrap.multiplicities(labels, 0, 60)))
    resampled = bootstrap.bootstrap(labels, p, seed=0, resamples=60)
    for row in (0, 17, 59):
        # Sorted by confidence as the bins are, so that equal confidences fall into the same bins.
        again = np.repeat(np.arange(120), weights[row])
        assert np.bincount(labels[again]).tolist() == [40, 40, 40]
        assert resampled["auc"][row] == pytest.approx(metrics.macro_auc(labels[again], p[again]), abs=1e-12)
        assert resampled["accuracy"][row] == pytest.approx(metrics.accuracy(labels[again], p[again]), abs=1e-12)
        assert resampled["nll"][row] == pytest.approx(metrics.log_loss(labels[again], p[again]), abs=1e-12)
        assert resampled["ece"][row] == pytest.approx(metrics.calibration_error(labels[again], p[again]), abs=1e-12)


def test_unweighted_scalars_are_the_plain_metrics():
    labels, p = sample(500)
    scalars = bootstrap.scalar_metrics(labels, p)
    assert scalars["auc"] == pytest.approx(metrics.macro_auc(labels, p), abs=1e-12)
    assert scalars["auc_1"] == pytest.approx(metrics.class_auc(labels, p)[1], abs=1e-12)
    assert scalars["ece"] == pytest.approx(metrics.calibration_error(labels, p), abs=1e-12)


@pytest.mark.sweep
@pytest.mark.parametrize("skill", [1.0, 3.0])
def test_intervals_have_the_stated_coverage(skill):
    """At skill 3 percentile intervals cover the AUC in about 83 % (`python -m experiments coverage`)."""
    truth = scalar_metrics(*sample(60_000, skill=skill, seed=99))
    names, covered = ("auc", "auc_1", "average_precision_2", "recall_0", "accuracy", "brier"), Counter()
    for seed in range(100):
        labels, p = sample(150, skill=skill, seed=seed)
        values, resampled = scalar_metrics(labels, p), bootstrap.bootstrap(labels, p, resamples=200)
        for name in names:
            low, high = metric_with_interval(name, values[name], resampled[name], labels, p)["ci95"]
            covered[name] += low <= truth[name] <= high
    assert all(covered[name] >= 87 for name in names), covered  # 95 expected, 2.2 the standard deviation


@pytest.mark.sweep
@pytest.mark.parametrize("sharpness", [1.0, 2.0])
def test_the_interval_of_the_calibration_error_covers_zero_and_large_errors(sharpness):
    """Bootstrap percentiles never cover an error of zero."""

    def predictions(n, seed):
        labels, p = sample(n, skill=1.0, seed=seed)
        p = p**sharpness  # at 1 the classifier is calibrated
        return labels, p / p.sum(1, keepdims=True)

    truth = metrics.calibration_error(*predictions(300_000, 99))
    assert truth < 0.004 if sharpness == 1 else truth > 0.1
    intervals = [metric_with_interval("ece", 0.0, np.zeros(1), *predictions(300, seed))["ci95"] for seed in range(100)]
    assert sum(low <= truth <= high for low, high in intervals) >= 87
    assert all(0 <= low < high < truth + 0.2 for low, high in intervals)


def test_the_interval_of_the_calibration_error_narrows_with_images_and_exists_for_three():
    few, many = (calibration_error_interval(*sample(n, seed=5)) for n in (300, 30_000))
    assert many[1] - many[0] < (few[1] - few[0]) / 3
    low, high = calibration_error_interval(np.arange(3), np.full((3, 3), 1 / 3))
    assert 0 <= low <= high <= 1
    certain = calibration_error_interval(np.arange(300) % 3, np.eye(3)[np.arange(300) % 3])
    assert certain[0] == 0 and certain[1] < 0.05


@pytest.mark.parametrize("error", [0.0, 0.001, 0.03, 0.2])
def test_the_most_likely_gaps_have_the_requested_error(error):
    measured = _ReliabilityBins.of(*sample(300), 15)
    gaps = measured.gaps_of(error)
    assert measured.error(gaps) == pytest.approx(error, abs=1e-12)

    def chi2(candidate):
        return ((measured.gap - candidate) ** 2 / measured.variance).sum()

    g = np.random.default_rng(0)
    for _ in range(100):
        other = np.abs(gaps + g.normal(size=15) * 0.01)
        other *= error / measured.error(other) * np.sign(measured.gap)
        assert chi2(gaps) <= chi2(other) + 1e-9


def test_a_risk_above_a_quantile_of_the_confidence_has_a_smaller_effective_sample_size():
    labels, p = sample(300, skill=1.5)
    risk, resampled = scalar_metrics(labels, p)["risk_at_0.5"], bootstrap.bootstrap(labels, p)["risk_at_0.5"]
    low, high = metric_with_interval("risk_at_0.5", risk, resampled, labels, p)["ci95"]
    plain = wilson_interval(risk, 150)
    assert low < plain[0] < risk < plain[1] < high
    nothing = metric_with_interval("risk_at_0.5", 0.0, np.zeros(9), labels, p)["ci95"]
    assert nothing == wilson_interval(0.0, 150)


def test_the_interval_of_a_skewed_mean_is_longer_towards_the_tail_and_symmetric_without_skewness():
    g = np.random.default_rng(1)
    symmetric = g.normal(5, 1, 4000)
    symmetric = np.concatenate([symmetric, 10 - symmetric])
    half = 1.96 * symmetric.std() / np.sqrt(8000)
    assert skewed_mean_interval(symmetric) == pytest.approx([5 - half, 5 + half], abs=1e-4)
    low, high = skewed_mean_interval(skew := g.exponential(size=50) ** 2)
    assert high - skew.mean() > 1.5 * (skew.mean() - low) and low > 0
    assert skewed_mean_interval(np.full(4, 0.5)) == [0.5, 0.5] and skewed_mean_interval(np.ones(1)) == [1.0, 1.0]


EVEN = np.full((30, 3), 1 / 3)


class TestMetricIntervals:
    def test_wilson_intervals_equal_those_of_scipy(self):
        from scipy.stats import binomtest

        for hits, n in ((0, 5), (3, 7), (250, 250), (40, 93)):
            low, high = binomtest(hits, n).proportion_ci(method="wilson")
            assert wilson_interval(hits / n, n) == pytest.approx([low, high], abs=1e-12)

    def test_intervals_stay_inside_the_range_and_around_the_value(self):
        labels = np.arange(30) % 3
        resampled = np.random.default_rng(0).normal(0.99, 0.05, 500)
        low, high = metric_with_interval("auc", 0.99, resampled, labels, EVEN)["ci95"]
        assert 0 < low < 0.99 < high < 1
        low, high = bootstrap_logit_interval("nll", 0.01, resampled, labels)
        assert 0 < low < 0.01 < high
        assert 1 < metric_with_interval("brier", 1.5, resampled, labels, EVEN)["ci95"][1] < 2

    def test_a_metric_that_no_resample_changes_is_its_interval_but_a_fraction_is_not(self):
        labels, resampled = np.arange(30) % 3, np.ones(100)
        assert metric_with_interval("auc", 1.0, resampled, labels, EVEN)["ci95"] == [1.0, 1.0]
        assert metric_with_interval("accuracy", 1.0, resampled, labels, EVEN)["ci95"][0] == pytest.approx(
            0.886, abs=1e-3
        )
        assert metric_with_interval("recall_1", 1.0, resampled, labels, EVEN)["ci95"][0] == pytest.approx(
            0.722, abs=1e-3
        )
        assert metric_with_interval("risk_at_0.5", 0.0, resampled, labels, EVEN)["ci95"][1] == pytest.approx(
            0.204, abs=1e-3
        )


def paired_difference(labels, first, second, *, seed=0, resamples=bootstrap.RESAMPLES):
    """Return the difference of two systems, given the probabilities of their trainings."""
    a, b = ([BootstrapMetrics.of(labels, p, seed=seed, resamples=resamples) for p in ps] for ps in (first, second))
    return bootstrap.difference(a, b, paired=True, seed=seed)


def test_a_system_does_not_differ_from_itself_and_a_better_one_does():
    labels, good = sample(600, skill=2.0)
    _, poor = sample(600, skill=0.5, seed=1)
    same = paired_difference(labels, [good], [good], resamples=100)
    assert same["auc"] == {"value": 0.0, "ci95": [0.0, 0.0], "p": 1.0}
    better = paired_difference(labels, [good], [poor], resamples=100)
    assert better["auc"]["value"] > 0.1 and better["auc"]["ci95"][0] > 0 and better["auc"]["p"] < 0.05


def test_pairing_narrows_the_interval():
    labels, p = sample(600)
    nearly = 0.95 * p + 0.05 * rng.generator(0).dirichlet([1, 1, 1], 600)
    paired = paired_difference(labels, [p], [nearly], resamples=200)["auc"]["ci95"]
    alone = bootstrap.percentile_interval(bootstrap.bootstrap(labels, p, resamples=200)["auc"])
    assert paired[1] - paired[0] < (alone[1] - alone[0]) / 2


def test_the_summary_is_json_with_values_inside_their_intervals():
    labels, p = sample(300)
    summary = metrics_with_intervals(labels, p, CLASSES, resamples=200)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    fixed = {"accuracy", "auc", "classes", "confusion", "ece", "legacy_auc", "n", "nll"}
    assert set(summary) == fixed | {"aurc", "average_precision", "brier", "recall", "risk_at_coverage"}
    by_class = [summary[name] for name in ("auc", "recall", "average_precision")]
    assert all(sorted(metric) == ["macro", "no", "sphere", "vort"] for metric in by_class)
    for metric in (*(summary[name] for name in ("accuracy", "nll", "brier", "aurc")), *by_class[0].values()):
        assert metric["ci95"][0] <= metric["value"] <= metric["ci95"][1]
    assert np.sum(summary["confusion"]) == summary["n"] == 300
    assert metrics_with_intervals(labels, p, CLASSES, resamples=200) == summary
    assert metrics_with_intervals(labels, p, CLASSES, resamples=200, seed=1) != summary


def test_three_images_are_enough():
    summary = metrics_with_intervals(np.arange(3), np.full((3, 3), 1 / 3), CLASSES, resamples=20)
    assert summary["auc"]["macro"]["value"] == 0.5


def single_run(name, skill, sha="x"):
    labels, p = sample(300, skill=skill, seed=int(skill * 10))
    rest = {
        "model": {"recipe": name, "parameters": 10},
        "data": {"population": "test", "sha256": sha},
        "provenance": {"train_images": 1, "train_seconds": 1.0},
    }
    run = EvaluationRun(name, {**metrics_with_intervals(labels, p, CLASSES, resamples=50), **rest}, labels, p)
    return SystemRuns(name, (run,))


def test_a_comparison_names_the_better_system():
    comparison = compare([single_run("good", 2.0), single_run("poor", 0.5), single_run("chance", 0.0)])
    assert [(d["first"], d["second"]) for d in comparison["differences"]] == [
        ("good", "poor"),
        ("good", "chance"),
        ("poor", "chance"),
    ]
    assert comparison["differences"][0]["auc"]["macro"]["ci95"][0] > 0
    table = to_markdown(comparison)
    assert table.count("| good | ") == 1 and "| good - poor | +0." in table
    json.dumps(comparison, allow_nan=False)
    first = comparison["differences"][0]
    assert first["over"] == "images" and first["delong"]["macro"]["p"] < 0.001
    assert first["mcnemar"][0]["p"] < 0.01 and first["mcnemar"][0]["first_only"] > first["mcnemar"][0]["second_only"]
    alone = metrics_with_intervals(*sample(300, skill=2.0, seed=20), CLASSES)
    assert comparison["systems"][0]["auc"] == alone["auc"] and comparison["systems"][0]["brier"] == alone["brier"]


def training(recipe, seed, skill, sha256="r"):
    """One training, evaluated on the same images as all others; its errors depend on the seed."""
    labels, _ = sample(300)
    g = np.random.default_rng(int(1000 * skill) + (seed or 0))
    p = np.exp(g.normal(size=(300, 3)) + skill * np.eye(3)[labels])
    p /= p.sum(1, keepdims=True)
    rest = {
        "model": {"recipe": recipe, "recipe_sha256": sha256, "parameters": 10},
        "data": {"population": "test", "sha256": "x"},
        "training_data": {"population": "test", "seed": 1, "sha256": "t", "n": 900},
        "provenance": {"train_images": 1, "train_seconds": 1.0 + (seed or 0), "seed": seed},
    }
    return EvaluationRun(recipe, {**metrics_with_intervals(labels, p, CLASSES, resamples=20), **rest}, labels, p)


def grouped(*trainings):
    return group_runs(trainings, [Path(f"run{i}/test") for i in range(len(trainings))])


class TestSeveralSeeds:
    def test_trainings_that_differ_only_in_their_seed_are_one_system(self):
        systems = grouped(training("a", 1, 1.0), training("b", 0, 2.0), training("a", 0, 1.0))
        assert [(s.name, s.seeds) for s in systems] == [("a", (0, 1)), ("b", (0,))]

    @pytest.mark.parametrize(("seed", "sha256"), [(0, "r"), (1, "s"), (None, "r")])
    def test_other_trainings_of_one_recipe_are_separate_systems_named_by_folder(self, seed, sha256):
        systems = grouped(training("a", 0, 1.0), training("a", seed, 1.0, sha256=sha256), training("b", 0, 1.0))
        assert [s.name for s in systems] == ["a (run0/test)", "a (run1/test)", "b"]

    def test_seeds_alone_are_compared_with_each_other(self):
        assert [s.seeds for s in grouped(training("a", 0, 1.0), training("a", 1, 1.0))] == [(0,), (1,)]

    def test_the_comparison_is_over_images_and_seeds(self):
        first, second = [training("a", k, 2.0) for k in range(3)], [training("b", k, 1.0) for k in range(3)]
        comparison = compare(grouped(*first, *second))
        difference, system = comparison["differences"][0], comparison["systems"][0]
        expected = paired_difference(
            first[0].labels, [t.probabilities for t in first], [t.probabilities for t in second]
        )
        assert difference["auc"]["macro"] == expected["auc"] and difference["brier"] == expected["brier"]
        assert difference["over"] == "images and seeds" and difference["paired_seeds"]
        assert [test["seeds"] for test in difference["mcnemar"]] == [[0, 0], [1, 1], [2, 2]]
        assert system["seeds"] == [0, 1, 2] and system["provenance"]["train_seconds"] == 2.0
        assert system["auc"]["macro"]["value"] == pytest.approx(np.mean(system["auc"]["macro"]["by_seed"]))
        table = to_markdown(comparison)
        assert "| 0, 1, 2 |" in table and "images and trainings" in table

    def test_systems_of_unequal_numbers_of_seeds_are_resampled_independently(self):
        comparison = compare(grouped(*(training("a", k, 2.0) for k in range(3)), training("b", 7, 1.0)))
        difference = comparison["differences"][0]
        assert not difference["paired_seeds"] and difference["mcnemar"] == []
        assert difference["auc"]["macro"]["ci95"][0] > 0
        assert to_markdown(comparison).count("| - |") == 1


def test_other_images_cannot_be_compared():
    with pytest.raises(InputError, match="a and b were evaluated on different images"):
        compare([single_run("a", 1.0), single_run("b", 1.0, sha="y")])
    with pytest.raises(InputError, match="at least two evaluations"):
        compare([single_run("a", 1.0)])


class TestDifferenceOfSystems:
    def trainings(self, quality, n=300, count=3):
        g = np.random.default_rng(int(quality * 100))
        labels = np.arange(n) % 3
        made = []
        for _ in range(count):
            logits = g.normal(size=(n, 3)) + quality * np.eye(3)[labels]
            made.append(np.exp(logits) / np.exp(logits).sum(1, keepdims=True))
        return labels, made

    def test_it_is_the_mean_difference_with_an_interval_around_it(self):
        labels, good = self.trainings(2.0)
        _, poor = self.trainings(1.0)
        difference = paired_difference(labels, good, poor, seed=1, resamples=300)["auc"]
        each = [
            scalar_metrics(labels, a)["auc"] - scalar_metrics(labels, b)["auc"] for a, b in zip(good, poor, strict=True)
        ]
        assert difference["value"] == pytest.approx(np.mean(each))
        assert 0 < difference["ci95"][0] < difference["value"] < difference["ci95"][1]
        assert difference["p"] <= 0.01

    def test_one_training_each_is_the_paired_bootstrap(self):
        labels, good = self.trainings(2.0, count=1)
        _, poor = self.trainings(1.5, count=1)
        a, b = (bootstrap.bootstrap(labels, p, seed=1, resamples=300)["auc"] for p in (good[0], poor[0]))
        difference = paired_difference(labels, good, poor, seed=1, resamples=300)["auc"]
        assert difference["ci95"] == pytest.approx(bootstrap.percentile_interval(a - b))
        assert difference["p"] == pytest.approx(2 * (min((a <= b).sum(), (a >= b).sum()) + 1) / 301)

    def test_seeds_that_disagree_widen_the_interval(self):
        labels, good = self.trainings(2.0)
        _, poor = self.trainings(1.0)
        both, swapped = [good[0], poor[0]], [poor[0], good[0]]
        same = paired_difference(labels, [good[0]] * 2, [poor[0]] * 2, resamples=300)["auc"]["ci95"]
        mixed = paired_difference(labels, both, swapped, resamples=300)["auc"]["ci95"]
        assert mixed[1] - mixed[0] > 2 * (same[1] - same[0])

    def test_trainings_must_pair_up(self):
        labels, good = self.trainings(2.0)
        with pytest.raises(InputError, match="3 trainings cannot be paired with 2"):
            paired_difference(labels, good, good[:2], resamples=2)
