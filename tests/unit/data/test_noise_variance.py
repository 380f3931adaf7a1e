"""The noise variance that is estimated from an image."""

import numpy as np
import pytest
import torch

from darklens import populations
from darklens.data.noise_estimate import local_mean, noise_response, noise_variance
from darklens.simulate.batch import simulate_batch


def image(peak, width, *, n=96, sky=50.0, seed=0):
    """A galaxy with photon noise, and its variance."""
    y, x = np.mgrid[:n, :n] - n / 2
    expected = sky + peak * np.exp(-np.hypot(x, y) / width)
    counts = np.random.default_rng(seed).poisson(expected)
    return torch.from_numpy(counts.astype(np.float32))[None, None], torch.from_numpy(expected)[None, None]


def test_photon_noise_grows_with_the_brightness():
    pixels, expected = image(200.0, 15.0)
    assert float((noise_variance(pixels) / expected).median()) == pytest.approx(1, abs=0.1)


def test_a_bright_cusp_does_not_leave_faint_pixels_without_noise():
    """Its structure counts as noise of bright pixels, and the line through bright and faint ones falls below zero."""
    population = populations.get("realistic-hst-epl", ["stored=counts"])
    pixels, _ = simulate_batch(population, 7, [12])
    instrument = population.noise.instrument
    sky = instrument.sky_rate / instrument.total_time + (instrument.read_noise / instrument.total_time) ** 2
    assert float(noise_variance(torch.from_numpy(pixels)).amin()) > 0.25 * sky


def test_mean_and_response_are_those_of_two_dimensional_filters():
    images = torch.randn(2, 1, 15, 15, generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(images, [3] * 4, mode="replicate")
    torch.testing.assert_close(local_mean(images), torch.nn.functional.avg_pool2d(padded, 7, stride=1))
    second = torch.tensor([1.0, -2.0, 1.0])
    kernel = (second[:, None] * second / 6)[None, None]
    torch.testing.assert_close(noise_response(images), torch.nn.functional.conv2d(images, kernel) ** 2)
