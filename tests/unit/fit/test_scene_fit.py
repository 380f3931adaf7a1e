"""Fits of scenes to hostile observations: extreme units, single wild pixels, and images that determine nothing."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from darklens.errors import ConfigError, InputError
from darklens.fit import perturbers, scene_starts
from darklens.fit.perturbers import find_perturbers
from darklens.fit.scene_fit import _alternatives, _best_of, _distinct, fit
from darklens.fit.scene_solver import Solver, data_of
from darklens.scene import PSF, SIE, Detector, Observation, PhotonNoise, Scene, Sersic

N, SCALE, NOISE = 24, 0.15, 0.02
SCENE = Scene([SIE(centre_x=0.0, centre_y=0.0)], [Sersic(n=1.0, e1=0.0, e2=0.0, core=0.01)])
TRUTH = {"sie.theta_E": 1.0, "sie.e1": 0.1, "sie.e2": 0.05}
TRUTH |= {"source.R_e": 0.2, "source.centre_x": 0.1, "source.centre_y": 0.05}
KERNEL = PSF.gaussian(fwhm=0.3, pixel_scale=SCALE).kernel.numpy()
LIGHT = SCENE.image(TRUTH, {"source.amplitude": 1.0}, Detector((N, N), SCALE, PSF.image(KERNEL, pixel_scale=SCALE)))
IMAGE = LIGHT + np.random.default_rng(0).normal(0, NOISE, (N, N))
NOISE_MAP = np.full((N, N), NOISE)
PHOTONS = PhotonNoise(0.01, 40.0)


def observed(image=IMAGE, noise=NOISE_MAP, psf=KERNEL):
    return Observation.of(image, noise_map=noise, pixel_scale=SCALE, psf=psf)


@pytest.fixture(scope="module", autouse=True)
def _few_draws():
    """Start fits of this small scene from few draws, and searches from one peak."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scene_starts, "_DRAWS", 1200)
        for name, value in (("_PEAKS", 1), ("_CONTINUED", 1), ("_COARSE_STEPS", 3), ("_FINE_STEPS", 5)):
            patch.setattr(perturbers, name, value)
        yield


@pytest.fixture(scope="module")
def reference():
    return fit(observed(), SCENE)


def counted(seed, photons=PHOTONS):
    """An image with the noise of a background and an exposure."""
    image = np.random.default_rng(seed).poisson(LIGHT * PHOTONS.exposure) / PHOTONS.exposure
    image = image + np.random.default_rng(seed).normal(0, PHOTONS.background_rms, (N, N))
    return Observation.of(image, photon_noise=photons, pixel_scale=SCALE, psf=KERNEL)


def test_photon_noise_is_that_of_the_model():
    photons, exact = PHOTONS, PHOTONS.noise_map(LIGHT)
    totals = {"model": [], "image": []}
    for seed in range(3):
        observation = counted(seed)
        image = observation.image
        result, biased = fit(observation, SCENE), fit(observed(image, photons.noise_map(image)), SCENE)
        best = fit(observed(image, exact), SCENE)
        np.testing.assert_allclose(result.observation.noise_map, photons.noise_map(result.model), rtol=1e-6)
        assert result.chi2 == pytest.approx(best.chi2, rel=0.05)
        assert result.theta_E == pytest.approx(best.theta_E, abs=0.5 * best.errors["sie.theta_E"])
        totals["model"].append(result.model.sum() / best.model.sum() - 1)
        totals["image"].append(biased.model.sum() / best.model.sum() - 1)
    assert abs(np.mean(totals["model"])) < 0.2 * abs(np.mean(totals["image"]))


def test_an_exposure_map_of_one_value_is_a_uniform_exposure():
    exposure_map = PhotonNoise(PHOTONS.background_rms, np.full((N, N), PHOTONS.exposure))
    uniform, mapped = fit(counted(0), SCENE), fit(counted(0, exposure_map), SCENE)
    np.testing.assert_allclose(mapped.observation.noise_map, uniform.observation.noise_map, rtol=1e-6)
    assert mapped.chi2 == pytest.approx(uniform.chi2, rel=1e-6)
    assert mapped.parameters == pytest.approx(uniform.parameters, rel=1e-5, abs=1e-6)


def test_the_photon_noise_follows_unit_cut_and_rows():
    exposure = np.linspace(10, 90, N * N).reshape(N, N)
    observation = Observation.of(IMAGE, photon_noise=PhotonNoise(NOISE, exposure), pixel_scale=SCALE)
    for other in (observation.scaled(8.0), observation.cut(1.0)):
        again = other.with_noise_of(other.image)
        np.testing.assert_allclose(again.noise_map, other.noise_map)
    flipped = Observation.of(
        IMAGE[::-1], photon_noise=PhotonNoise(NOISE, exposure[::-1]), pixel_scale=SCALE, flip_rows=True
    )
    np.testing.assert_allclose(flipped.noise_map, observation.noise_map)
    np.testing.assert_allclose(flipped.with_noise_of(IMAGE).noise_map, observation.noise_map)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either noise_map or photon_noise"),
        ({"noise_map": NOISE, "photon_noise": PhotonNoise(0.1, 3.0)}, "either noise_map or photon_noise"),
        ({"photon_noise": PhotonNoise(0.0, 3.0)}, "must be positive"),
        ({"photon_noise": PhotonNoise(0.1, 0.0)}, "must be positive"),
        ({"photon_noise": PhotonNoise(0.1, np.ones((3, 3)))}, "different sizes"),
    ],
)
def test_wrong_noise_is_one_sentence(options, message):
    with pytest.raises(InputError, match=message):
        Observation.of(IMAGE, pixel_scale=SCALE, **options)


@pytest.mark.parametrize("factor", [2.0**-10, 1e-40, 1e40])
def test_the_unit_of_the_image_changes_the_amplitudes_alone(reference, factor):
    result = fit(observed(IMAGE * factor, NOISE_MAP * factor), SCENE)
    assert result.parameters == pytest.approx(reference.parameters, rel=1e-3, abs=1e-4)
    assert result.errors == pytest.approx(reference.errors, rel=0.01)
    assert result.amplitudes["source.amplitude"] == pytest.approx(
        factor * reference.amplitudes["source.amplitude"], rel=1e-3
    )
    assert result.chi2 == pytest.approx(reference.chi2, rel=1e-4)
    np.testing.assert_allclose(result.model / factor, reference.model, atol=1e-3 * LIGHT.max())
    np.testing.assert_array_equal(result.observation.image, IMAGE * factor)
    if factor == 2.0**-10:
        assert result.parameters == reference.parameters and result.errors == reference.errors


def test_the_unit_of_the_image_does_not_change_a_search(reference):
    factor = 2.0**-130
    first, scaled = (
        find_perturbers(r.observation, SCENE, result=r, perturber="point")
        for r in (reference, reference.scaled(factor))
    )
    assert scaled.perturbers[0].parameters == first.perturbers[0].parameters
    assert scaled.delta_chi2 == first.delta_chi2
    np.testing.assert_array_equal(scaled.gains.gain, first.gains.gain)
    np.testing.assert_array_equal(scaled.best.model, first.best.model * factor)


def test_a_gaussian_wider_than_any_image_is_not_made():
    with pytest.raises(InputError, match="too wide for pixels"):
        PSF.gaussian(fwhm=1e9, pixel_scale=SCALE)


def wild(plane, value):
    changed = plane.copy()
    changed[10, 12] = value
    return changed


@pytest.mark.parametrize(
    ("image", "noise"),
    [
        *((wild(IMAGE, value), NOISE_MAP) for value in (1e25, -1e25, 1e300)),
        *((IMAGE, wild(NOISE_MAP, value)) for value in (1e-30, 1e-300, 1e30)),
    ],
)
def test_one_wild_pixel_is_left_out(image, noise):
    observation = observed(image, noise)
    assert observation.changes == ("1 pixels left out",) and not observation.used[10, 12]
    assert bool(torch.isfinite(data_of(observation.scaled(1 / observation.unit)).weights).all())


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((N, N)), "exceeds the noise of the image; the image has no significant light; not determined by"),
        (IMAGE - LIGHT, "no significant light"),
    ],
)
def test_an_image_that_determines_nothing_has_warnings_and_no_errors_of_zero(image, words):
    result = fit(observed(image), SCENE)
    assert words in "; ".join(result.warnings)
    assert all(error > 0 or math.isnan(error) for error in result.errors.values())
    assert not find_perturbers(result.observation, SCENE, result=result).detected


@pytest.mark.parametrize(
    ("psf", "image", "words"),
    [
        (KERNEL * 1e300, IMAGE, "divide them by their sum"),
        (KERNEL * 1e-300, IMAGE, "divide them by their sum"),
        (KERNEL[3:4, 3:4], np.ones((1, 1)), "1 of 1 pixels remain"),
        *((KERNEL, image, "nowhere above 0.001 times the noise") for image in (IMAGE * 1e-29, IMAGE * 1e-6)),
        (KERNEL, np.ones((1, 500)), "is larger than the image"),
    ],
)
def test_what_no_fit_can_use_is_one_sentence(psf, image, words):
    with pytest.raises(InputError, match=words):
        observed(image, np.full(image.shape, NOISE), psf)


def test_a_printed_fit_has_one_line_for_each_value_and_for_each_warning(reference):
    lines = str(replace(reference, converged=False)).splitlines()
    assert len(lines) == len(reference.parameters) + len(reference.amplitudes) + 2
    name, value, plus_minus, error = lines[0].replace("= ", "").split()
    assert float(value) == pytest.approx(reference.parameters[name], rel=1e-5) and plus_minus == "+-"
    assert float(error) == pytest.approx(reference.errors[name], rel=0.1)
    assert lines[-2].startswith("chi2 per pixel") and lines[-1] == "warning: not converged"


def test_another_einstein_radius_that_fits_almost_as_well_is_a_warning(reference):
    scene = reference.scene
    internal = scene.internal(
        scene.pack(reference.parameters | {"sie.theta_E": torch.tensor([1.2, 1.0, 1.21, 0.8, 0.5])})
    )
    data = data_of(reference.observation.scaled(1 / reference.observation.unit))
    solver = Solver(scene, reference.observation.detector())
    state = solver.state(internal.float(), data.repeated(5))
    state.deviance = torch.tensor([1100.0, 1000.0, 1005.0, 1024.0, 1026.0])
    rows = _distinct(scene, state, data)
    assert rows == [1, 2, 3, 4]
    alternatives = _alternatives(scene, state, rows, 1000)
    assert [round(other.theta_E, 2) for other in alternatives] == [1.21, 0.8]
    assert [other.excess for other in alternatives] == [5.0, 24.0]
    assert alternatives[1].parameters["sie.theta_E"] == alternatives[1].theta_E
    warning = replace(reference, alternatives=alternatives).warnings[-1]
    assert warning == "theta_E = 0.8 fits almost as well: its chi2 is 24 higher"
    if_poor = _alternatives(scene, state, rows, 800)  # 1.25 per pixel
    assert [round(other.theta_E, 2) for other in if_poor] == [1.21, 0.8, 0.5]


def test_a_fit_from_other_starts_that_is_almost_as_good_is_an_alternative(reference):
    n = reference.n_pixels
    best = replace(reference, chi2=1.3 * n)
    other = replace(reference, chi2=1.4 * n, parameters=reference.parameters | {"sie.theta_E": 0.8})
    far, same = replace(other, chi2=1.5 * n), replace(reference, chi2=1.4 * n)
    found = _best_of([other, best])
    assert found.theta_E == reference.theta_E
    assert [(a.theta_E, round(a.excess / n, 6)) for a in found.alternatives] == [(0.8, 0.1)]
    assert found.alternatives[0].parameters == other.parameters
    assert not _best_of([best, far]).alternatives and not _best_of([same, best]).alternatives


def test_lens_light_of_a_fixed_shape_is_fitted():
    light = Sersic(R_e=0.3, n=1.0, e1=0.0, e2=0.0, centre_x=0.0, centre_y=0.0, core=0.01)
    scene = Scene(SCENE.mass, SCENE.source, light)
    detector = Detector((N, N), SCALE, PSF.image(KERNEL, pixel_scale=SCALE))
    image = scene.image(TRUTH, {"source.amplitude": 1.0, "light.amplitude": 2.0}, detector)
    result = fit(observed(image + np.random.default_rng(0).normal(0, NOISE, (N, N))), scene)
    assert result.amplitudes["light.amplitude"] == pytest.approx(2.0, rel=0.02)
    assert result.theta_E == pytest.approx(1.0, rel=0.01)


def test_a_compiled_fit_on_another_device_is_one_sentence():
    with pytest.raises(ConfigError, match="runs on the CPU, not on cuda"):
        fit(observed(), SCENE, device="cuda", compiled=True)
