import json
from itertools import pairwise

import numpy as np
import pytest

from darklens import populations
from darklens.data.store import Store
from darklens.evaluation import parameters
from darklens.evaluation.intervals import bootstrap_logit_interval, metric_with_interval, wilson_interval
from darklens.evaluation.parameters import Parameter, parameters_of, signal_to_noise
from darklens.evaluation.strata import detection_limit, equal_count_bins, stratify
from darklens.simulate.generate import generate
from darklens.simulate.truth import draw

CLASSES = ["no", "sphere", "vort"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    chosen = populations.get("common-test-i", ["field.n_pixels=16"])
    return generate(chosen, tmp_path_factory.mktemp("s") / "store", n_per_class=60, seed=3)


def detector(limit, n=3000, seed=0):
    """A system that finds sphere from about a mass on, and knows the other classes."""
    g = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    mass = 10 ** g.uniform(6, 10, n)
    seen = g.random(n) < 1 / (1 + np.exp(-4 * (np.log10(mass) - np.log10(limit))))
    said = np.where((labels == 1) & ~seen, 0, labels)
    p = np.eye(3)[said] * 0.9 + 0.1 / 3
    return labels, p, Parameter("largest point mass", "solar masses", np.where(labels == 1, mass, np.nan), "sphere")


def test_the_detection_limit_is_found():
    (found,) = stratify(*detector(1e8)[:2], CLASSES, [detector(1e8)[2]])
    half, most = found["limits"]
    assert (half["recall"], most["recall"]) == (0.5, 0.9)
    assert half["ci95"][0] < 1e8 < half["ci95"][1] and half["ci95"][1] / half["ci95"][0] < 2.5
    exact = 1e8 * 10 ** (np.log(9) / 4)  # where the logistic curve is at 90 %
    assert most["ci95"][0] < exact < most["ci95"][1]
    assert found["false_alarms"]["value"] == 0
    rates = [row["recall"]["sphere"]["value"] for row in found["bins"]]
    assert len(rates) == 10 and rates[0] < 0.1 and rates[-1] > 0.95
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(("limit", "reached"), [(1e3, "below the smallest"), (1e14, "above the largest")])
def test_a_limit_that_the_images_do_not_reach_is_none(limit, reached):
    labels, p, mass = detector(limit)
    (found,) = stratify(labels, p, CLASSES, [mass])
    assert {limit["reached"] for limit in found["limits"]} == {reached}
    assert all(limit["value"] is None for limit in found["limits"])


def test_limits_cover_the_truth():
    at, n = 10.0 ** np.arange(6, 11), np.full(5, 100)
    truth = np.array([0.1, 0.3, 0.7, 0.9, 1.0])  # crosses a half between 1e7 and 1e8, in the middle of the logarithm
    g = np.random.default_rng(0)
    held = 0
    for seed in range(60):
        low, high = detection_limit(at, g.binomial(n, truth), n, 0.5, seed=seed)["ci95"]
        held += low <= 10**7.5 <= high
    assert held >= 52  # 57 expected


def test_bins_hold_equal_numbers_and_equal_values_stay_together():
    values = np.random.default_rng(0).normal(size=407)
    values[::8] = np.nan
    parts = equal_count_bins(values)
    assert sum(map(len, parts)) == np.isfinite(values).sum() and max(map(len, parts)) - min(map(len, parts)) <= 1
    assert all(values[a].max() < values[b].min() for a, b in pairwise(parts))
    assert [len(part) for part in equal_count_bins(np.repeat([1.0, 2.0, 3.0], 100))] == [100, 100, 100]
    assert equal_count_bins(np.arange(39.0)) == []


def test_parameters_are_what_was_drawn(store):
    found = {p.name: p for p in parameters_of(store)}
    expected = ["shear", "theta_E", "source offset", "largest point mass", "line mass", "signal-to-noise ratio"]
    assert not set(expected) - set(found)
    assert "ellipticity" not in found and "exposure" not in found  # the same for all images
    population = populations.get("common-test-i", ["field.n_pixels=16"])
    truth = draw(population, 3, range(len(store)))
    np.testing.assert_allclose(found["shear"].values, np.hypot(truth["gamma1"], truth["gamma2"]), rtol=1e-6)
    for name, owner in (("largest point mass", "sphere"), ("line mass", "vort")):
        own = store.labels == CLASSES.index(owner)
        assert found[name].of_class == owner and found[name].is_mass
        assert np.isfinite(found[name].values).tolist() == own.tolist()
    mass = found["largest point mass"].values[store.labels == 1]
    assert mass.min() > 1e6 and 1e9 < mass.max() < 1e10


def test_masses_are_fractions_of_the_whole_lens(tmp_path):
    """A population of one mass gives just that mass, though the smooth lens has lost what the points have."""
    population = populations.get(
        "common-test-i", ["field.n_pixels=16", "classes.sphere.mass={kind: constant, value: 5.0e+9}"]
    )
    made = generate(population, tmp_path / "s", n_per_class=20, seed=1)
    (mass,) = parameters._largest_masses(made, parameters._class_of_column(made))
    np.testing.assert_allclose(mass.values[made.labels == 1], 5e9, rtol=1e-5)


def test_signal_to_noise_is_that_of_light_over_the_sky(tmp_path):
    g = np.random.default_rng(0)
    light = np.zeros((64, 64))
    light[20:40, 20:40] = 5.0
    images = (light + g.normal(size=(20, 1, 64, 64))).astype(np.float32)

    class Images(Store):
        def __init__(self):
            self.index = type("Index", (), {"n_pixels": 64})()

        def __len__(self):
            return len(images)

        def images(self, indices):
            return images[list(indices)]

    found = signal_to_noise(Images())
    assert found.mean() == pytest.approx(np.sqrt((light**2).sum()), rel=0.03)


def test_strata_of_a_store_are_json_and_imported_images_have_none(store):
    p = np.random.default_rng(0).dirichlet([1, 1, 1], len(store))
    found = stratify(store.labels, p, CLASSES, parameters_of(store))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    for entry in found:
        shown = [entry["class"]] if entry["class"] else CLASSES
        assert all(list(row["recall"]) == shown and row["n"] >= 20 for row in entry["bins"])
    store.index.__dict__["population"] = None
    assert parameters_of(store) == []


EVEN = np.full((30, 3), 1 / 3)


class TestBounds:
    def test_wilson_is_scipys(self):
        from scipy.stats import binomtest

        for hits, n in ((0, 5), (3, 7), (250, 250), (40, 93)):
            low, high = binomtest(hits, n).proportion_ci(method="wilson")
            assert wilson_interval(hits / n, n) == pytest.approx([low, high], abs=1e-12)

    def test_intervals_stay_inside_the_range_and_around_the_value(self):
        labels = np.arange(30) % 3
        drawn = np.random.default_rng(0).normal(0.99, 0.05, 500)
        low, high = metric_with_interval("auc", 0.99, drawn, labels, EVEN)["ci95"]
        assert 0 < low < 0.99 < high < 1
        low, high = bootstrap_logit_interval("nll", 0.01, drawn, labels)
        assert 0 < low < 0.01 < high
        assert 1 < metric_with_interval("brier", 1.5, drawn, labels, EVEN)["ci95"][1] < 2

    def test_what_never_changes_is_its_own_interval_but_a_fraction_is_not(self):
        labels, drawn = np.arange(30) % 3, np.ones(100)
        assert metric_with_interval("auc", 1.0, drawn, labels, EVEN)["ci95"] == [1.0, 1.0]
        assert metric_with_interval("accuracy", 1.0, drawn, labels, EVEN)["ci95"][0] == pytest.approx(0.886, abs=1e-3)
        assert metric_with_interval("recall_1", 1.0, drawn, labels, EVEN)["ci95"][0] == pytest.approx(0.722, abs=1e-3)
        assert metric_with_interval("risk_at_0.5", 0.0, drawn, labels, EVEN)["ci95"][1] == pytest.approx(
            0.204, abs=1e-3
        )
