import json
from itertools import pairwise

import numpy as np
import pytest

from darklens import populations
from darklens.data.store import Store
from darklens.evaluation.parameters import (
    Parameter,
    _class_of_column,
    _largest_masses,
    parameters_of,
    signal_to_noise,
)
from darklens.evaluation.strata import detection_limit, equal_count_bins, stratify
from darklens.simulate.generate import generate
from darklens.simulate.truth import draw

CLASSES = ["no", "sphere", "vort"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    chosen = populations.get("common-test-i", ["field.n_pixels=16"])
    return generate(chosen, tmp_path_factory.mktemp("s") / "store", n_per_class=60, seed=3)


def detector(limit, n=3000, seed=0):
    """Predictions that detect sphere above about a mass, with the other classes always correct."""
    g = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    mass = 10 ** g.uniform(6, 10, n)
    detected = g.random(n) < 1 / (1 + np.exp(-4 * (np.log10(mass) - np.log10(limit))))
    predicted = np.where((labels == 1) & ~detected, 0, labels)
    p = np.eye(3)[predicted] * 0.9 + 0.1 / 3
    return labels, p, Parameter("largest point mass", "solar masses", np.where(labels == 1, mass, np.nan), "sphere")


def test_the_detection_limit_is_measured():
    (stratum,) = stratify(*detector(1e8)[:2], CLASSES, [detector(1e8)[2]])
    half, high = stratum["limits"]
    assert (half["recall"], high["recall"]) == (0.5, 0.9)
    assert half["ci95"][0] < 1e8 < half["ci95"][1] and half["ci95"][1] / half["ci95"][0] < 2.5
    exact = 1e8 * 10 ** (np.log(9) / 4)  # where the logistic curve is at 90 %
    assert high["ci95"][0] < exact < high["ci95"][1]
    assert stratum["false_alarms"]["value"] == 0
    rates = [row["recall"]["sphere"]["value"] for row in stratum["bins"]]
    assert len(rates) == 10 and rates[0] < 0.1 and rates[-1] > 0.95
    json.dumps(stratum, allow_nan=False)


@pytest.mark.parametrize(("limit", "reached"), [(1e3, "below the smallest"), (1e14, "above the largest")])
def test_a_limit_outside_the_masses_of_the_images_is_none(limit, reached):
    labels, p, mass = detector(limit)
    (stratum,) = stratify(labels, p, CLASSES, [mass])
    assert {limit["reached"] for limit in stratum["limits"]} == {reached}
    assert all(limit["value"] is None for limit in stratum["limits"])


@pytest.mark.sweep
def test_intervals_of_the_limit_have_the_stated_coverage():
    mass, n = 10.0 ** np.arange(6, 11), np.full(5, 100)
    truth = np.array([0.1, 0.3, 0.7, 0.9, 1.0])  # crosses a half between 1e7 and 1e8, in the centre of the logarithm
    g = np.random.default_rng(0)
    covered = 0
    for seed in range(60):
        low, high = detection_limit(mass, g.binomial(n, truth), n, 0.5, seed=seed)["ci95"]
        covered += low <= 10**7.5 <= high
    assert covered >= 52  # 57 expected


def test_bins_have_equal_numbers_of_images_and_equal_values_share_a_bin():
    values = np.random.default_rng(0).normal(size=407)
    values[::8] = np.nan
    parts = equal_count_bins(values)
    assert sum(map(len, parts)) == np.isfinite(values).sum() and max(map(len, parts)) - min(map(len, parts)) <= 1
    assert all(values[a].max() < values[b].min() for a, b in pairwise(parts))
    assert [len(part) for part in equal_count_bins(np.repeat([1.0, 2.0, 3.0], 100))] == [100, 100, 100]
    assert equal_count_bins(np.arange(39.0)) == []


def test_parameters_equal_the_truth(store):
    parameters = {p.name: p for p in parameters_of(store)}
    expected = ["shear", "theta_E", "source offset", "largest point mass", "line mass", "signal-to-noise ratio"]
    assert not set(expected) - set(parameters)
    assert "ellipticity" not in parameters and "exposure" not in parameters  # the same for all images
    population = populations.get("common-test-i", ["field.n_pixels=16"])
    truth = draw(population, 3, range(len(store)))
    np.testing.assert_allclose(parameters["shear"].values, np.hypot(truth["gamma1"], truth["gamma2"]), rtol=1e-6)
    for name, of_class in (("largest point mass", "sphere"), ("line mass", "vort")):
        members = store.labels == CLASSES.index(of_class)
        assert parameters[name].of_class == of_class and parameters[name].is_mass
        assert np.isfinite(parameters[name].values).tolist() == members.tolist()
    mass = parameters["largest point mass"].values[store.labels == 1]
    assert mass.min() > 1e6 and 1e9 < mass.max() < 1e10


def test_masses_are_fractions_of_the_total_lens_mass(tmp_path):
    """The mass of the points is recovered although the smooth lens was reduced by it."""
    population = populations.get(
        "common-test-i", ["field.n_pixels=16", "classes.sphere.mass={kind: constant, value: 5.0e+9}"]
    )
    made = generate(population, tmp_path / "s", n_per_class=20, seed=1)
    (mass,) = _largest_masses(made, _class_of_column(made))
    np.testing.assert_allclose(mass.values[made.labels == 1], 5e9, rtol=1e-5)


def test_signal_to_noise_is_that_of_light_above_the_sky(tmp_path):
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

    ratio = signal_to_noise(Images())
    assert ratio.mean() == pytest.approx(np.sqrt((light**2).sum()), rel=0.03)


def test_strata_of_a_store_are_json_and_imported_images_have_none(store):
    p = np.random.default_rng(0).dirichlet([1, 1, 1], len(store))
    strata = stratify(store.labels, p, CLASSES, parameters_of(store))
    assert json.loads(json.dumps(strata, allow_nan=False)) == strata
    for entry in strata:
        classes = [entry["class"]] if entry["class"] else CLASSES
        assert all(list(row["recall"]) == classes and row["n"] >= 20 for row in entry["bins"])
    store.index.__dict__["population"] = None
    assert parameters_of(store) == []
