import numpy as np
import pytest

from darklens.errors import InputError
from darklens.evaluation import metrics


def sample(n=3000, skill=1.0, seed=0):
    g = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    logits = g.normal(size=(n, 3)) + skill * np.eye(3)[labels]
    p = np.exp(logits)
    return labels, p / p.sum(1, keepdims=True)


def test_the_studys_metric_is_what_its_notebooks_counted():
    labels, p = sample(300)
    predicted = p.argmax(1)
    for i, value in enumerate(metrics.legacy_auc(labels, p)):
        positive = np.array([label == i and label == said for label, said in zip(labels, predicted, strict=True)])
        wins = [(a > b) + (a == b) / 2 for a in p[positive, i] for b in p[~positive, i]]
        assert value == pytest.approx(np.mean(wins), abs=1e-12)


def test_chance_scores_087_on_the_studys_metric_and_half_on_the_honest_one():
    labels, p = sample(30_000, skill=0.0)
    assert np.mean(metrics.legacy_auc(labels, p)) == pytest.approx(0.87, abs=0.015)
    assert metrics.macro_auc(labels, p) == pytest.approx(0.5, abs=0.01)


def test_the_studys_metric_is_undefined_where_nothing_of_a_class_is_right():
    labels, p = np.array([0, 1, 2]), np.tile([0.5, 0.3, 0.2], (3, 1))
    assert metrics.legacy_auc(labels, p)[1:] == [None, None]


def test_calibration_error_of_known_cases():
    labels = np.arange(1000) % 2
    sure = np.tile([1.0, 0.0], (1000, 1))
    assert metrics.calibration_error(labels, sure) == pytest.approx(0.5)
    assert metrics.calibration_error(np.zeros(1000, dtype=int), sure) == 0
    bins = metrics.reliability(*sample(1000))
    assert bins[:, 2].sum() == 1000 and bins[:, 2].max() - bins[:, 2].min() <= 1
    assert (np.diff(bins[:, 0]) >= 0).all()


@pytest.mark.parametrize(
    ("labels", "p", "sentence"),
    [
        (np.array([], dtype=int), np.zeros((0, 3)), "no images"),
        (np.array([0, 1]), np.full((3, 3), 1 / 3), "do not match"),
        (np.array([0, 1, 1]), np.full((3, 3), 1 / 3), "Class 2 has no image"),
        (np.array([0, 1, 3]), np.full((3, 3), 1 / 3), "from 0 to 2"),
        (np.array([0, 1, 2]), np.full((3, 3), np.nan), "finite"),
        (np.array([0, 1, 2]), np.full((3, 3), 0.5), "sum to one"),
    ],
)
def test_undefined_cases_get_a_sentence(labels, p, sentence):
    with pytest.raises(InputError, match=sentence):
        metrics.check(labels, p)
