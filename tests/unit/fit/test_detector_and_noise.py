"""The detector of a fit agrees with the simulator, and its noise with photon counts in any storage format."""

import math

import mpmath
import numpy as np
import pytest
import torch

from darklens import populations
from darklens.fit.detector import Detector
from darklens.fit.fitter import block_means, fitter_of
from darklens.fit.noise import MASKED_EXPOSURE, Noise, quantisation_steps, relative_exposure
from darklens.fit.smooth import SmoothLens
from darklens.kernels import smooth_fit
from darklens.simulate.batch import simulate_batch


@pytest.mark.parametrize("changes", [[], ["field.supersample=3"]])
def test_binned_crop_equals_the_binned_whole_image(changes):
    population = populations.get("common-test-i", ["field.n_pixels=60", *changes])
    lens = SmoothLens(population)
    _, truth = simulate_batch(population, 1, [0, 3])
    parameters = lens.from_truth(truth)
    detector = Detector(population, crop=40, block=2)
    observed = detector.observe(lens.scene(parameters, detector.x, detector.y).brightness)
    whole = lens.images(parameters)
    torch.testing.assert_close(observed, detector.combine(whole), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(detector.combine(whole), block_means(whole[:, 10:50, 10:50], 20))
    assert (detector.n_pixels, detector.pixel_scale, detector.area) == (20, 0.1, 4)


def test_observe_wider_equals_a_detector_with_that_psf():
    population = populations.get("common-test-i", ["psf.known=false"])
    detector = Detector(population, crop=96, block=2)
    _, truth = simulate_batch(population, 1, [0, 3])
    lens = SmoothLens(population)
    light = lens.scene(lens.from_truth(truth), detector.x, detector.y).brightness
    for ln_width in (-0.2, 0.0, 0.2):
        sigma = population.psf.sigma * math.exp(ln_width)
        truncate = population.psf.truncate * math.exp(-ln_width)  # the same radius in pixels
        other = Detector(
            populations.get("common-test-i", [f"psf.sigma={sigma}", f"psf.truncate={truncate}"]), crop=96, block=2
        )
        observed, slope = detector.observe_wider(light[:, None], torch.full((2,), ln_width))
        torch.testing.assert_close(observed[:, 0], other.observe(light), rtol=0, atol=1e-3 * float(observed.max()))
        step = 1e-3
        ahead, behind = (
            detector.observe_wider(light[:, None], torch.full((2,), ln_width + s))[0] for s in (step, -step)
        )
        torch.testing.assert_close(
            slope, ((ahead - behind) / (2 * step))[:, 0], rtol=0, atol=2e-3 * float(observed.max())
        )


def smooth_lenses(n):
    """Return the fitter of common-test-i, Poisson counts of n smooth lenses, their expectation, and their gain."""
    fitter = fitter_of("common-test-i")
    population = fitter.population
    _, truth = simulate_batch(population, 8, range(0, 3 * n, 3))
    expected = fitter.lens.images(fitter.lens.from_truth(truth)) + population.noise.sky
    counts = torch.poisson(expected, generator=torch.Generator().manual_seed(3))
    gain = torch.tensor([[0.0, float(population.noise.sky)]]).expand(n, 2)
    return fitter, counts, expected, gain


def test_deviance_of_the_true_model_follows_chi2_and_is_minimal():
    fitter, counts, expected, gain = smooth_lenses(8)
    pixels, noise = fitter.on_fine(counts, None)
    model = fitter.fine.combine(expected)
    deviance = noise.deviance(pixels, model, gain)
    n = pixels[0].numel()
    assert float((deviance / n).mean()) == pytest.approx(1, abs=3 * (2 / n / 8) ** 0.5 + 0.01)
    for factor in (0.98, 1.02):
        assert bool((noise.deviance(pixels, model * factor, gain) > deviance).all())
    chi2 = ((pixels - model) ** 2 * noise.weight(model, gain)).sum((1, 2))
    torch.testing.assert_close(chi2, deviance, rtol=0.03, atol=0)


def counts_at(depth, expected, *, seed=5):
    """Photon counts of a relative exposure, divided by it."""
    return torch.poisson(expected * depth, generator=torch.Generator().manual_seed(seed)) / depth


@pytest.mark.parametrize("depth", [0.25, 0.5, 2.0, 4.0])
def test_another_exposure_is_estimated_from_the_noise(depth):
    _, _, expected, gain = smooth_lenses(8)
    for unit in (1.0, 0.01):
        scaled = gain + torch.tensor([math.log(unit), 0.0])
        scaled[:, 1] *= unit
        estimated = relative_exposure(counts_at(depth, expected) * unit, scaled, 10.0)
        torch.testing.assert_close(estimated, torch.full((8,), depth), rtol=0.2, atol=0)
        assert float(estimated.mean()) == pytest.approx(depth, rel=0.1)


def test_the_exposure_of_the_population_is_exactly_one_and_so_are_noises_that_no_exposure_explains():
    _, counts, expected, gain = smooth_lenses(8)
    smooth = torch.nn.functional.avg_pool2d(counts[:, None], 3, stride=1, padding=1)[:, 0]  # correlated noise
    twice_the_sky = torch.poisson(expected + 10, generator=torch.Generator().manual_seed(1)) - 10
    spikes = counts.clone()
    spikes[:, ::15, ::11] += 500.0
    for images in (counts, counts_at(1.2, expected), smooth, twice_the_sky, spikes, expected, torch.zeros_like(counts)):
        assert bool((relative_exposure(images, gain, 10.0) == 1).all())


def test_a_known_exposure_is_not_estimated_again_and_masked_pixels_do_not_matter():
    _, _, expected, gain = smooth_lenses(4)
    known = torch.ones_like(expected)
    known[:, :75] = 0.5
    images = torch.where(known < 1, counts_at(0.5, expected), counts_at(1.0, expected, seed=6))
    assert bool((relative_exposure(images, gain, 10.0, known) == 1).all())
    known[:, :, 60:90] = MASKED_EXPOSURE
    images[:, :, 60:90] = 1e6 * torch.rand(4, 150, 30)
    assert bool((relative_exposure(images, gain, 10.0, known) == 1).all())


def test_noise_follows_the_exposure_map():
    fitter, _, expected, gain = smooth_lenses(6)
    exposure = torch.linspace(1.5, 0.5, 150).expand(expected.shape)
    counts = torch.poisson(expected * exposure, generator=torch.Generator().manual_seed(4))
    pixels, noise = fitter.on_fine(counts / exposure, exposure.contiguous())
    ratio = noise.deviance(pixels, fitter.fine.combine(expected), gain) / pixels[0].numel()
    assert float(ratio.mean()) == pytest.approx(1, abs=0.05)


def test_quantisation_steps_are_measured_only_in_quantised_images():
    _, counts, _, _ = smooth_lenses(4)
    low, high = counts.amin((1, 2), keepdim=True), counts.amax((1, 2), keepdim=True)
    images = (counts - low) / (high - low)
    torch.testing.assert_close(1 / quantisation_steps(images), (high - low)[:, 0, 0], rtol=1e-3, atol=0)
    torch.testing.assert_close(
        1 / quantisation_steps((images * 255).round() / 255), torch.full((4,), 255.0), rtol=1e-3, atol=0
    )
    assert not quantisation_steps(
        images + 1e-3 * torch.rand(images.shape, generator=torch.Generator().manual_seed(0))
    ).any()


def test_extra_variance_is_that_of_rounding_and_read_noise_and_zero_for_counts():
    fitter, counts, expected, gain = smooth_lenses(8)
    g = torch.Generator().manual_seed(5)
    coarse = 4.0
    images = {"counts": counts, "rounded": (counts / coarse).round() * coarse}
    images["read noise"] = counts + 3 * torch.randn(counts.shape, generator=g)
    expected_extra = {"counts": 0.0, "rounded": coarse**2 / 12, "read noise": 9.0}
    for name, image in images.items():
        pixels, noise = fitter.on_fine(image, None)
        model = fitter.fine.combine(expected)
        # `quantisation_steps` takes images scaled to 0..1; `with_extra` takes the step in image units.
        low, high = image.amin((1, 2), keepdim=True), image.amax((1, 2), keepdim=True)
        step = quantisation_steps((image - low) / (high - low)) * (high - low)[:, 0, 0]
        extra = noise.with_extra(pixels, model, gain, step).extra
        assert float(extra.mean()) == pytest.approx(expected_extra[name], abs=0.15 * expected_extra[name] + 1e-3)


@pytest.mark.parametrize("depth", [0.1, 1.0, 10.0])
def test_a_step_of_one_photon_is_not_rounding_at_any_exposure(depth):
    fitter, _, expected, gain = smooth_lenses(4)
    counts = torch.poisson(expected * depth, generator=torch.Generator().manual_seed(6))
    pixels, noise = fitter.on_fine(counts / depth, torch.full_like(counts, depth))
    step = torch.full((4,), 1 / depth)
    assert noise.with_extra(pixels, fitter.fine.combine(expected), gain, step).extra.tolist() == [0.0] * 4


def test_noise_that_is_not_poisson_is_estimated_from_the_image():
    fitter = fitter_of(populations.get("deeplense-model-i"))
    images, _ = simulate_batch(fitter.population, 1, [0])
    images = torch.from_numpy(images)[:, 0]
    pixels, noise = fitter.on_fine(images, None)
    weight = noise.weight(pixels, torch.zeros(1, 2))
    assert noise.sky is None and weight.shape == pixels.shape and bool((weight > 0).all())
    assert isinstance(noise.with_extra(pixels, pixels, torch.zeros(1, 2), torch.zeros(1)), Noise)


@pytest.fixture(params=["kernels", "torch"])
def backend(request, monkeypatch):
    """The deviance of the C++ kernels where they can be built, and that of torch."""
    if request.param == "torch":
        monkeypatch.setattr(smooth_fit.Photons, "deviance", lambda *_: None)


@pytest.mark.parametrize("peak", [1e2, 1e4, 1e6, 1e9, 1e12, 1e15])
@pytest.mark.parametrize("difference", [0.0, 1e-6, 1e-3, 0.3])
def test_deviance_is_exact_and_never_negative_where_its_terms_cancel(backend, peak, difference):
    generator = np.random.default_rng(0)
    fitter = fitter_of("common-test-i")
    model = torch.from_numpy(generator.random((1, 16, 16)).astype(np.float32))
    images = model * (1 + difference * torch.from_numpy(generator.normal(size=(1, 16, 16)).astype(np.float32)))
    area, sky = fitter.fine.area, fitter.population.noise.sky
    noise = Noise(sky, area, torch.ones(1, 1, 1), torch.zeros(1), torch.zeros(1, 1, 1))
    gain = torch.tensor([[-math.log(peak / area), 0.0]])
    deviance = float(noise.deviance(images, model, gain)[0])
    scale = math.exp(float(gain[0, 0]))
    counts, rate = (area * (v[0].double().numpy() / scale + sky) for v in (images, model))
    with mpmath.workdps(40):
        terms = ((mpmath.mpf(n), mpmath.mpf(r)) for n, r in zip(counts.clip(0).ravel(), rate.ravel(), strict=True))
        expected = float(sum(2 * (r - n + (n * mpmath.log(n / r) if n else 0)) for n, r in terms))
    assert deviance >= 0
    assert deviance == pytest.approx(expected, rel=2e-2, abs=1e-4 * model.numel())
