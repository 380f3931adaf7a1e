"""Metrics of reconstructions, against scikit-image and on images of known noise."""

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from darklens.data.noise_estimate import noise_variance
from darklens.evaluation.intervals import means_with_intervals
from darklens.evaluation.metrics import reconstruction_metrics


def rings_in_counts(sky, n_images=8, n=100):
    """Photon counts of a smooth ring, and their expectation, both scaled by the counts' extremes."""
    axis = torch.arange(n) - (n - 1) / 2
    radius = torch.hypot(axis[:, None], axis[None])
    expected = (sky + 150 * torch.exp(-(((radius - 25) / 5) ** 2))).expand(n_images, 1, n, n)
    counts = torch.poisson(expected, generator=torch.Generator().manual_seed(0))
    low, high = counts.amin((1, 2, 3), keepdim=True), counts.amax((1, 2, 3), keepdim=True)
    return (counts - low) / (high - low), (expected - low) / (high - low), expected / (high - low) ** 2


@pytest.mark.parametrize("sky", [10, 30, 300])
def test_the_noise_of_photon_counts_is_estimated_from_the_image(sky):
    images, _, variance = rings_in_counts(sky)
    ratio = noise_variance(images) / variance
    assert float(ratio.mean()) == pytest.approx(1, abs=0.06)
    assert float(ratio[..., :15, :].mean()) == pytest.approx(1, abs=0.06)


def test_chi2_is_one_for_the_noise_free_image_zero_for_a_copy_and_large_for_a_constant():
    images, expected, _ = rings_in_counts(10)
    assert reconstruction_metrics(expected, images)["chi2_per_pixel"].mean() == pytest.approx(1, abs=0.05)
    assert reconstruction_metrics(images + 0, images)["chi2_per_pixel"].max() == 0
    assert reconstruction_metrics(torch.full_like(images, 0.2), images)["chi2_per_pixel"].min() > 5


def test_an_image_without_noise_or_light_gives_no_nan():
    flat = torch.zeros(2, 1, 40, 40)
    assert np.isfinite(reconstruction_metrics(flat + 0.1, flat)["chi2_per_pixel"]).all()


def test_psnr_and_ssim_equal_those_of_scikit_image():
    images, expected, _ = rings_in_counts(10, n_images=3)
    metrics = reconstruction_metrics(expected, images)
    for i in range(3):
        pair = expected[i, 0].double().numpy(), images[i, 0].double().numpy()
        assert metrics["psnr_db"][i] == pytest.approx(peak_signal_noise_ratio(*pair, data_range=1), rel=1e-5)
        settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        # The mean of scikit-image leaves out a border, its map does not.
        same = structural_similarity(*pair, data_range=1, full=True, **settings)[1].mean()
        assert metrics["ssim"][i] == pytest.approx(same, abs=1e-3)


def test_the_summary_is_a_mean_with_an_interval_around_it():
    values = np.random.default_rng(0).normal(5, 1, 400)
    mean = means_with_intervals({"a": values}, seed=1)["a"]
    low, high = mean["ci95"]
    assert mean["value"] == pytest.approx(values.mean()) and low < mean["value"] < high
    assert high - low == pytest.approx(4 * 1 / 20, rel=0.15)
