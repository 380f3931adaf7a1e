import json

import numpy as np
import pytest

from darklens import rng
from darklens.errors import InputError
from darklens.evaluation import intervals, metrics
from darklens.evaluation.compare import compare, to_markdown
from darklens.evaluation.intervals import difference_over_seeds, paired_difference, scalars
from darklens.evaluation.judged import Judged, System
from darklens.evaluation.summary import summarise

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
    weights = np.concatenate(list(intervals.multiplicities(labels, 0, 60)))
    resampled = intervals.bootstrap(labels, p, seed=0, resamples=60)
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
    found = intervals.scalars(labels, p)
    assert found["auc"] == pytest.approx(metrics.macro_auc(labels, p), abs=1e-12)
    assert found["auc_1"] == pytest.approx(metrics.class_auc(labels, p)[1], abs=1e-12)
    assert found["ece"] == pytest.approx(metrics.calibration_error(labels, p), abs=1e-12)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    truth = metrics.macro_auc(*sample(60_000, seed=99))
    covered = 0
    for seed in range(60):
        labels, p = sample(150, seed=seed)
        low, high = intervals.interval(intervals.bootstrap(labels, p, resamples=200)["auc"])
        covered += low <= truth <= high
    assert covered >= 50  # 57 expected


def test_a_system_does_not_differ_from_itself_and_a_better_one_does():
    labels, good = sample(600, skill=2.0)
    _, poor = sample(600, skill=0.5, seed=1)
    same = intervals.paired_difference(labels, good, good, resamples=100)
    assert same["auc"] == {"value": 0.0, "ci95": [0.0, 0.0], "p": 1.0}
    better = intervals.paired_difference(labels, good, poor, resamples=100)
    assert better["auc"]["value"] > 0.1 and better["auc"]["ci95"][0] > 0 and better["auc"]["p"] < 0.05


def test_pairing_narrows_the_interval():
    labels, p = sample(600)
    nearly = 0.95 * p + 0.05 * rng.generator(0).dirichlet([1, 1, 1], 600)
    paired = intervals.paired_difference(labels, p, nearly, resamples=200)["auc"]["ci95"]
    alone = intervals.interval(intervals.bootstrap(labels, p, resamples=200)["auc"])
    assert paired[1] - paired[0] < (alone[1] - alone[0]) / 2


def test_the_summary_is_json_with_values_inside_their_intervals():
    labels, p = sample(300)
    summary = summarise(labels, p, CLASSES, resamples=200)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    fixed = {"accuracy", "auc", "classes", "confusion", "ece", "legacy_auc", "n", "nll"}
    assert set(summary) == fixed | {"aurc", "average_precision", "brier", "recall", "risk_at_coverage"}
    by_class = [summary[name] for name in ("auc", "recall", "average_precision")]
    assert all(sorted(found) == ["macro", "no", "sphere", "vort"] for found in by_class)
    for metric in (*(summary[name] for name in ("accuracy", "nll", "brier", "aurc")), *by_class[0].values()):
        assert metric["ci95"][0] <= metric["value"] <= metric["ci95"][1]
    assert np.sum(summary["confusion"]) == summary["n"] == 300
    assert summarise(labels, p, CLASSES, resamples=200) == summary
    assert summarise(labels, p, CLASSES, resamples=200, seed=1) != summary


def test_three_images_are_enough():
    summary = summarise(np.arange(3), np.full((3, 3), 1 / 3), CLASSES, resamples=20)
    assert summary["auc"]["macro"]["value"] == 0.5


def judged(name, skill, sha="x"):
    labels, p = sample(300, skill=skill, seed=int(skill * 10))
    rest = {
        "model": {"recipe": name, "parameters": 10},
        "data": {"population": "test", "sha256": sha},
        "provenance": {"train_images": 1, "train_seconds": 1.0},
    }
    own = Judged(name, {**summarise(labels, p, CLASSES, resamples=50), **rest}, labels, p)
    return System(name, (own,))


def test_a_comparison_names_the_better_system():
    comparison = compare([judged("good", 2.0), judged("poor", 0.5), judged("chance", 0.0)])
    assert [(d["first"], d["second"]) for d in comparison["differences"]] == [
        ("good", "poor"),
        ("good", "chance"),
        ("poor", "chance"),
    ]
    assert comparison["differences"][0]["auc"]["macro"]["ci95"][0] > 0
    table = to_markdown(comparison)
    assert table.count("| good | ") == 1 and "| good - poor | +0." in table
    json.dumps(comparison, allow_nan=False)


def test_other_images_cannot_be_compared():
    with pytest.raises(InputError, match="a and b were evaluated on different images"):
        compare([judged("a", 1.0), judged("b", 1.0, sha="y")])
    with pytest.raises(InputError, match="at least two evaluations"):
        compare([judged("a", 1.0)])


class TestDifferenceOverSeeds:
    def trainings(self, quality, n=300, count=3):
        g = np.random.default_rng(int(quality * 100))
        labels = np.arange(n) % 3
        made = []
        for _ in range(count):
            logits = g.normal(size=(n, 3)) + quality * np.eye(3)[labels]
            made.append(np.exp(logits) / np.exp(logits).sum(1, keepdims=True))
        return labels, made

    def test_it_finds_the_mean_difference_and_an_interval_around_it(self):
        labels, good = self.trainings(2.0)
        _, poor = self.trainings(1.0)
        found = difference_over_seeds(labels, good, poor, seed=1)["auc"]
        each = [scalars(labels, a)["auc"] - scalars(labels, b)["auc"] for a, b in zip(good, poor, strict=True)]
        assert found["value"] == pytest.approx(np.mean(each))
        assert 0 < found["ci95"][0] < found["value"] < found["ci95"][1]
        assert found["p"] <= 0.01

    def test_one_training_each_is_the_paired_bootstrap(self):
        labels, good = self.trainings(2.0, count=1)
        _, poor = self.trainings(1.5, count=1)
        alone = paired_difference(labels, good[0], poor[0], seed=1)["auc"]
        found = difference_over_seeds(labels, good, poor, seed=1)["auc"]
        assert found["ci95"] == pytest.approx(alone["ci95"])
        assert (found["value"], found["p"]) == pytest.approx((alone["value"], alone["p"]))

    def test_seeds_that_disagree_widen_the_interval(self):
        labels, good = self.trainings(2.0)
        _, poor = self.trainings(1.0)
        same = difference_over_seeds(labels, [good[0]] * 2, [poor[0]] * 2)["auc"]["ci95"]
        mixed = difference_over_seeds(labels, [good[0], poor[0]], [poor[0], good[0]])["auc"]["ci95"]
        assert mixed[1] - mixed[0] > 2 * (same[1] - same[0])

    def test_trainings_must_pair_up(self):
        labels, good = self.trainings(2.0)
        with pytest.raises(InputError, match="3 trainings cannot be paired with 2"):
            difference_over_seeds(labels, good, good[:2])
