"""The temperature: its minimum, and what it does to a network that is too sure."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from darklens.calibration import Calibration, softmax
from darklens.evaluation.metrics import calibration_error
from darklens.evaluation.scaling import fit_temperature


def honest(n, seed):
    """Logits whose softmax is the probability of the labels drawn from it."""
    g = np.random.default_rng(seed)
    logits = g.normal(0, 2, (n, 3))
    labels = (softmax(logits).cumsum(1) < g.random(n)[:, None]).sum(1)
    return logits, labels


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
def test_calibration_error_falls_below_two_per_cent(factor):
    logits, labels = honest(20000, 0)
    temperature = fit_temperature(factor * logits[:5000], labels[:5000])
    assert temperature == pytest.approx(factor, rel=0.1)
    p = Calibration(temperature=temperature).probabilities(factor * logits[5000:])
    assert calibration_error(labels[5000:], p) < 0.02
    if factor != 1:
        assert calibration_error(labels[5000:], softmax(factor * logits[5000:])) > 0.05


@given(st.integers(0, 1000), st.floats(0.3, 3))
def test_it_is_the_minimum_of_the_log_loss(seed, factor):
    logits, labels = honest(200, seed)
    found = fit_temperature(factor * logits, labels)
    target = np.full((200, 3), 1 / 201 / 3)
    target[np.arange(200), labels] += 200 / 201
    losses = [-(target * np.log(softmax(factor * logits / (t * found)))).sum() for t in (0.98, 1, 1.02)]
    assert losses[1] == min(losses)


def test_a_few_images_that_are_all_right_do_not_make_it_certain():
    logits = np.eye(3)[np.arange(30) % 3] * 2.0
    p = softmax(logits / fit_temperature(logits, np.arange(30) % 3))
    assert 0.95 < p.max() < 0.985


def test_logits_that_say_nothing_give_a_finite_temperature():
    assert 0.05 <= fit_temperature(np.zeros((30, 3)), np.arange(30) % 3) <= 20
