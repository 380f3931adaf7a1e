"""The out-of-distribution score: covariance, thresholds, and separation of shifted images."""

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf

from darklens.calibration import MAX_SCORE
from darklens.data.ring_statistics import ring_statistics
from darklens.evaluation import ood
from darklens.evaluation.metrics import binary_auc


def features_of(n, seed, *, shift=0.0):
    g = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    mix = np.random.default_rng(9).normal(size=(20, 20))
    return (g.normal(size=(n, 20)) + shift) @ mix + 5 * np.eye(3, 20)[labels] + 100, labels


def test_the_covariance_equals_that_of_scikit_learn():
    residuals = np.random.default_rng(0).normal(size=(50, 8)) * np.arange(1, 9)
    expected = LedoitWolf(assume_centered=True).fit(residuals).covariance_
    np.testing.assert_allclose(ood.ledoit_wolf(residuals), expected, rtol=1e-4, atol=1e-4)


def test_images_of_the_distribution_score_about_one_and_shifted_images_more():
    reference = ood.fit(*features_of(2000, 0), 3)
    same, shifted = (reference.scores(features_of(1000, 1, shift=s)[0]) for s in (0, 2))
    assert np.median(same) == pytest.approx(1, abs=0.1)
    assert binary_auc(np.repeat([False, True], 1000), np.concatenate([same, shifted])) > 0.99


def test_thresholds_are_exceeded_by_five_and_one_per_cent():
    reference = ood.fit(*features_of(2000, 0), 3)
    limits = ood.thresholds(reference.scores(features_of(2000, 1)[0]))
    summary = ood.summarise(reference.scores(features_of(4000, 2)[0]), limits)
    assert summary["beyond_p95"] == pytest.approx(0.05, abs=0.015)
    assert summary["beyond_p99"] == pytest.approx(0.01, abs=0.008)
    few = np.array([3.0, 1.0, 2.0])
    assert ood.thresholds(few) == ood.OODThresholds(p95=3.0, p99=3.0)


def test_few_images_constant_features_and_infinite_features_give_finite_scores():
    features = np.random.default_rng(0).normal(size=(6, 30))
    features[:, 3] = 7
    reference = ood.fit(features, np.array([0, 0, 1, 1, 0, 1]), 3)
    assert np.isfinite(reference.scores(features)).all()
    invalid = np.full((3, 30), [[1e300], [np.inf], [np.nan]])
    assert (reference.scores(invalid) == MAX_SCORE).all()


def test_ring_statistics_measure_radius_orientation_and_noise():
    n, axis = 60, torch.linspace(-1, 1, 60, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    disc = (torch.hypot(x, y) < 0.5).double()
    stretched = (torch.hypot(x, 2 * y) < 0.8).double()
    noisy = disc + 0.3 * torch.randn(n, n, generator=torch.Generator().manual_seed(0))
    statistics = ring_statistics(torch.stack([disc, stretched, stretched.T, noisy])[:, None].float())
    assert statistics.shape == (4, 34) and statistics.dtype == torch.float64
    np.testing.assert_allclose(statistics[0, :3], 1, atol=0.02)
    np.testing.assert_allclose(statistics[0, 5:8], 0, atol=1e-6)
    torch.testing.assert_close(statistics[1, 16:24], -statistics[2, 16:24], atol=1e-5, rtol=0)
    assert statistics[1, 16:24].abs().max() > 0.2 and statistics[0, 16:24].abs().max() < 0.05
    assert statistics[3, 33] > statistics[0, 33] + 1
