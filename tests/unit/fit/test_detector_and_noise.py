"""The detector of a fit sees what the simulator's does; the noise is that of photon counts, however they are stored."""

import math

import pytest
import torch

from darklens import populations
from darklens.fit.detector import Detector
from darklens.fit.fitter import fitter, pooled
from darklens.fit.noise import Noise, steps_of
from darklens.fit.smooth import SmoothLens
from darklens.simulate.batch import simulate_batch


@pytest.mark.parametrize("changes", [[], ["field.supersample=3"]])
def test_blocks_of_a_crop_are_those_of_the_whole_image(changes):
    population = populations.get("common-test-i", ["field.n_pixels=60", *changes])
    lens = SmoothLens(population)
    _, truth = simulate_batch(population, 1, [0, 3])
    parameters = lens.from_truth(truth)
    detector = Detector(population, crop=40, block=2)
    found = detector.observe(lens.scene(parameters, detector.x, detector.y).brightness)
    whole = lens.images(parameters)
    torch.testing.assert_close(found, detector.combine(whole), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(detector.combine(whole), pooled(whole[:, 10:50, 10:50], 20))
    assert (detector.n_pixels, detector.pixel_scale, detector.area) == (20, 0.1, 4)


def test_a_wider_psf_is_that_of_a_detector_with_it():
    population = populations.get("common-test-i", ["psf.known=false"])
    own = Detector(population, crop=96, block=2)
    _, truth = simulate_batch(population, 1, [0, 3])
    lens = SmoothLens(population)
    light = lens.scene(lens.from_truth(truth), own.x, own.y).brightness
    for ln_width in (-0.2, 0.0, 0.2):
        sigma = population.psf.sigma * math.exp(ln_width)
        truncate = population.psf.truncate * math.exp(-ln_width)  # to as many pixels
        other = Detector(
            populations.get("common-test-i", [f"psf.sigma={sigma}", f"psf.truncate={truncate}"]), crop=96, block=2
        )
        found, slope = own.observe_wider(light[:, None], torch.full((2,), ln_width))
        torch.testing.assert_close(found[:, 0], other.observe(light), rtol=0, atol=1e-3 * float(found.max()))
        step = 1e-3
        ahead, behind = (own.observe_wider(light[:, None], torch.full((2,), ln_width + s))[0] for s in (step, -step))
        torch.testing.assert_close(slope, ((ahead - behind) / (2 * step))[:, 0], rtol=0, atol=2e-3 * float(found.max()))


def smooth(n):
    """Return smooth lenses: counts and what is expected of them, blocks on the fine detector, gain and noise."""
    own = fitter("common-test-i")
    population = own.population
    _, truth = simulate_batch(population, 8, range(0, 3 * n, 3))
    expected = own.lens.images(own.lens.from_truth(truth)) + population.noise.sky
    counts = torch.poisson(expected, generator=torch.Generator().manual_seed(3))
    gain = torch.tensor([[0.0, float(population.noise.sky)]]).expand(n, 2)
    return own, counts, expected, gain


def test_the_deviance_is_chi_squared_where_the_model_is_true_and_least_there():
    own, counts, expected, gain = smooth(8)
    pixels, noise = own.on_fine(counts, None)
    model = own.fine.combine(expected)
    deviance = noise.deviance(pixels, model, gain)
    n = pixels[0].numel()
    assert float((deviance / n).mean()) == pytest.approx(1, abs=3 * (2 / n / 8) ** 0.5 + 0.01)
    for factor in (0.98, 1.02):
        assert bool((noise.deviance(pixels, model * factor, gain) > deviance).all())
    chi2 = ((pixels - model) ** 2 * noise.weight(model, gain)).sum((1, 2))
    torch.testing.assert_close(chi2, deviance, rtol=0.03, atol=0)


def test_an_exposure_map_gives_each_pixel_its_noise():
    own, _, expected, gain = smooth(6)
    exposure = torch.linspace(1.5, 0.5, 150).expand(expected.shape)
    counts = torch.poisson(expected * exposure, generator=torch.Generator().manual_seed(4))
    pixels, noise = own.on_fine(counts / exposure, exposure.contiguous())
    ratio = noise.deviance(pixels, own.fine.combine(expected), gain) / pixels[0].numel()
    assert float(ratio.mean()) == pytest.approx(1, abs=0.05)


def test_steps_between_levels_are_found_and_only_where_there_are_any():
    _, counts, _, _ = smooth(4)
    low, high = counts.amin((1, 2), keepdim=True), counts.amax((1, 2), keepdim=True)
    images = (counts - low) / (high - low)
    torch.testing.assert_close(1 / steps_of(images), (high - low)[:, 0, 0], rtol=1e-3, atol=0)
    torch.testing.assert_close(1 / steps_of((images * 255).round() / 255), torch.full((4,), 255.0), rtol=1e-3, atol=0)
    assert not steps_of(images + 1e-3 * torch.rand(images.shape, generator=torch.Generator().manual_seed(0))).any()


def test_rounding_and_read_noise_are_counted_as_noise_and_pure_counts_have_none():
    own, counts, expected, gain = smooth(8)
    g = torch.Generator().manual_seed(5)
    coarse = 4.0
    images = {"counts": counts, "rounded": (counts / coarse).round() * coarse}
    images["read noise"] = counts + 3 * torch.randn(counts.shape, generator=g)
    expected_extra = {"counts": 0.0, "rounded": coarse**2 / 12, "read noise": 9.0}
    for name, image in images.items():
        pixels, noise = own.on_fine(image, None)
        model = own.fine.combine(expected)
        # Between 0 and 1, as `steps_of` takes them; the step is told in the image's own units.
        low, high = image.amin((1, 2), keepdim=True), image.amax((1, 2), keepdim=True)
        step = steps_of((image - low) / (high - low)) * (high - low)[:, 0, 0]
        found = noise.with_extra(pixels, model, gain, step).extra
        assert float(found.mean()) == pytest.approx(expected_extra[name], abs=0.15 * expected_extra[name] + 1e-3)


@pytest.mark.parametrize("depth", [0.1, 1.0, 10.0])
def test_single_photons_of_any_exposure_are_no_rounding(depth):
    own, _, expected, gain = smooth(4)
    counts = torch.poisson(expected * depth, generator=torch.Generator().manual_seed(6))
    pixels, noise = own.on_fine(counts / depth, torch.full_like(counts, depth))
    step = torch.full((4,), 1 / depth)
    assert noise.with_extra(pixels, own.fine.combine(expected), gain, step).extra.tolist() == [0.0] * 4


def test_noise_that_is_not_of_counts_is_estimated_from_the_image():
    own = fitter(populations.get("deeplense-model-i"))
    images, _ = simulate_batch(own.population, 1, [0])
    images = torch.from_numpy(images)[:, 0]
    pixels, noise = own.on_fine(images, None)
    weight = noise.weight(pixels, torch.zeros(1, 2))
    assert noise.sky is None and weight.shape == pixels.shape and bool((weight > 0).all())
    assert isinstance(noise.with_extra(pixels, pixels, torch.zeros(1, 2), torch.zeros(1)), Noise)
