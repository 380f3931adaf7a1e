"""The search for perturbers: first-order gains, a halo that is found, and a smooth lens that has none."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from darklens.errors import ConfigError
from darklens.fit import false_alarms, perturbers
from darklens.fit.false_alarms import false_alarm_threshold
from darklens.fit.gain_map import gain_map, sensitivity_map
from darklens.fit.perturber_profiles import FreeHaloPerturber, HaloPerturber, Redshifts
from darklens.fit.perturbers import find_perturbers
from darklens.fit.scene_fit import fit
from darklens.fit.scene_solver import Data, Solver
from darklens.scene import PSF, SIE, Detector, Observation, Scene, Sersic, Shear

N, SCALE = 40, 0.1
SMOOTH = Scene([SIE(), Shear()], [Sersic(core=0.01)])
TRUTH = {"sie.theta_E": 1.1, "sie.e1": 0.08, "sie.e2": 0.03, "sie.centre_x": 0.01, "sie.centre_y": 0.0}
TRUTH |= {"shear.gamma1": 0.02, "shear.gamma2": -0.01, "source.R_e": 0.15, "source.n": 1.2}
TRUTH |= {"source.e1": 0.1, "source.e2": 0.0, "source.centre_x": 0.08, "source.centre_y": 0.05}
HALO = {"halo.log10_mass": 9.8, "halo.centre_x": 0.9, "halo.centre_y": 0.75}


def observed(halo: bool, seed: int = 1) -> Observation:
    """A lens with or without a halo of 10^9.8 M_sun near its arc; signal to noise of 100 at the peak."""
    psf = PSF.gaussian(fwhm=0.2, pixel_scale=SCALE)
    scene = Scene([*SMOOTH.mass.profiles, HaloPerturber(name="halo")], SMOOTH.source) if halo else SMOOTH
    values = TRUTH | (HALO if halo else {})
    image = scene.image(values, {"source.amplitude": 1.0}, Detector((N, N), SCALE, psf))
    noise = 0.01 * image.max()
    noisy = image + np.random.default_rng(seed).normal(0, noise, image.shape)
    return Observation.of(noisy, noise_map=noise, psf=psf, pixel_scale=SCALE)


@pytest.fixture(scope="module")
def perturbed():
    """Observation and smooth fit of the lens with a halo."""
    observation = observed(halo=True)
    return observation, fit(observation, SMOOTH)


def test_a_halo_is_found_at_its_position_with_its_mass(perturbed, tmp_path):
    observation, smooth = perturbed
    search = find_perturbers(observation, SMOOTH, result=smooth)
    (halo,) = search.perturbers
    assert search.detected and not search.message and search.delta_chi2 == halo.delta_chi2 > 50
    assert np.hypot(halo.x - HALO["halo.centre_x"], halo.y - HALO["halo.centre_y"]) < 0.1
    assert abs(halo.log10_mass - 9.8) < max(3 * halo.log10_mass_error, 0.1)
    errors = [halo.log10_mass_error, halo.x_error, halo.y_error]
    np.testing.assert_allclose(halo.covariance.diagonal(), np.square(errors), rtol=1e-6)
    assert search.best.chi2 < search.smooth.chi2
    search.plot(tmp_path / "search.png")
    assert (tmp_path / "search.png").read_bytes().startswith(b"\x89PNG")


def test_a_smooth_lens_has_no_detection():
    observation = observed(halo=False)
    search = find_perturbers(observation, SMOOTH, n_max=2)
    assert not search.detected and search.delta_chi2 < search.threshold and len(search.perturbers) <= 1


def test_the_search_is_invariant_under_a_flip_of_the_rows(perturbed):
    observation, smooth = perturbed
    flipped = replace(observation, image=observation.image[::-1].copy())
    mirror = {"sie.e2", "sie.centre_y", "shear.gamma2", "source.e2", "source.centre_y"}
    parameters = {name: -v if name in mirror else v for name, v in smooth.parameters.items()}
    other = replace(smooth, observation=flipped, parameters=parameters, model=smooth.model[::-1].copy())
    first, second = (find_perturbers(r.observation, SMOOTH, result=r) for r in (smooth, other))
    np.testing.assert_allclose(second.gains.gain[::-1], first.gains.gain, rtol=0.02, atol=0.05)
    (one,), (two,) = first.perturbers, second.perturbers
    assert (two.x, two.y) == pytest.approx((one.x, -one.y), abs=0.01)
    assert two.delta_chi2 == pytest.approx(one.delta_chi2, abs=0.5)


class FaintHalo(HaloPerturber):
    """A halo of 10^7 M_sun with the shape of one of 10^9 M_sun, so light that its effect is linear."""

    @property
    def law(self):
        shape = super().law

        def scaled(x, y, *, log10_mass, **constants):
            return tuple(alpha / 100 for alpha in shape(x, y, log10_mass=log10_mass, **constants))

        return scaled


def test_gain_and_error_are_those_of_a_fit_to_first_order(perturbed):
    _, smooth = perturbed
    scene, detector = smooth.scene, smooth.observation.detector()
    gains = gain_map(smooth)
    row, column = np.unravel_index(np.nanargmin(gains.log10_error[0]), gains.gain.shape)
    halo = FaintHalo(log10_mass=9.0, centre_x=float(gains.x[column]), centre_y=float(gains.y[row]))
    image = Scene([*scene.mass.profiles, halo], scene.source).image(smooth.parameters, smooth.amplitudes, detector)
    noise = 1e-3 * smooth.observation.noise_map  # so low that the halo is significant
    observation = replace(smooth.observation, image=image, noise_map=noise)
    expected = gain_map(replace(smooth, observation=observation))
    assert expected.log10_error[0, row, column] == pytest.approx(gains.log10_error[0, row, column] - 3, abs=0.05)
    assert expected.log10_mass[row, column] == pytest.approx(7.0, abs=0.05)
    # The part of chi2 that remains after a fit of the smooth scene is due to the halo.
    data = Data(torch.tensor(image)[None], torch.tensor(observation.weights)[None])
    state = Solver(scene, detector).minimise(scene.internal(scene.pack(smooth.parameters)), data, steps=20)
    assert float(state.chi2[0]) == pytest.approx(expected.gain[row, column], rel=0.1)


@pytest.mark.parametrize("kind", ["point", "line"])
def test_other_perturbers_gain_from_a_halo_too(perturbed, kind):
    observation, smooth = perturbed
    search = find_perturbers(observation, SMOOTH, perturber=kind, result=smooth)
    assert search.delta_chi2 > 30
    assert np.hypot(search.perturbers[0].x - 0.9, search.perturbers[0].y - 0.75) < 0.4


def test_a_bad_fit_gives_no_detection(perturbed):
    observation, smooth = perturbed
    low = replace(observation, noise_map=observation.noise_map / 2)
    search = find_perturbers(low, SMOOTH, result=replace(smooth, observation=low, chi2=4 * smooth.chi2))
    assert not search.detected and "chi2 per pixel" in search.message


def test_a_free_concentration_is_found_with_its_error(perturbed):
    observation, smooth = perturbed
    search = find_perturbers(observation, SMOOTH, perturber="tnfw_free", result=smooth)
    fixed = find_perturbers(observation, SMOOTH, result=smooth)
    (halo,), (other,) = search.perturbers, fixed.perturbers
    assert search.detected and halo.delta_chi2 > other.delta_chi2 - 1
    assert np.hypot(halo.x - other.x, halo.y - other.y) < 0.1
    assert 1 <= halo.parameters["concentration"] <= 1000 and halo.errors["concentration"] > 0


def test_a_mass_at_its_bound_is_no_detection(perturbed, monkeypatch):
    observation, smooth = perturbed
    limited = HaloPerturber.parameters | {"log10_mass": replace(HaloPerturber.parameters["log10_mass"], high=8.8)}
    monkeypatch.setattr(HaloPerturber, "parameters", limited)
    search = find_perturbers(observation, SMOOTH, result=smooth)
    assert search.delta_chi2 > search.threshold and not search.detected
    assert "at a bound: perturber.log10_mass" in search.message


def test_a_joint_fit_worse_than_the_smooth_one_is_said(perturbed, monkeypatch):
    observation, smooth = perturbed
    joint = perturbers._joint_fit
    monkeypatch.setattr(perturbers, "_joint_fit", lambda *a: replace(joint(*a), chi2=smooth.chi2 + 50))
    search = find_perturbers(observation, SMOOTH, result=smooth)
    assert not search.detected and "the joint fit failed" in search.message


def test_interpolation_changes_the_error_of_the_mass_little(perturbed):
    quick, exact = (gain_map(perturbed[1], interpolate=choice) for choice in (True, False))
    difference = (quick.log10_error - exact.log10_error)[:, np.isfinite(exact.gain)]
    assert 0 < np.sqrt((difference**2).mean()) < 0.04


def test_masses_follow_the_concentration_and_redshifts():
    from darklens.physics.cosmology import nfw_angles
    from darklens.physics.profiles import tnfw

    R_s, alpha_Rs = nfw_angles(mass=3e9, concentration=15.0, z_lens=0.3, z_source=0.8)
    halo = HaloPerturber(Redshifts(0.3, 0.8, 15.0))
    x, y = torch.tensor([[0.05, 0.3]], dtype=torch.float64), torch.tensor([[0.1]], dtype=torch.float64)
    values = {"alpha_Rs": torch.tensor(alpha_Rs), "R_s": torch.tensor(R_s), "r_t": torch.tensor(20 * R_s)}
    expected = tnfw.deflection(x, y, **values)
    alpha = halo.law(x, y, log10_mass=torch.tensor([[np.log10(3e9)]]), **halo.constants)
    for a, b in zip(alpha, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=0)
    free = FreeHaloPerturber(Redshifts(0.3, 0.8))
    parameters = {"log10_mass": torch.tensor([[np.log10(3e9)]]), "concentration": torch.tensor([[15.0]])}
    for a, b in zip(free.law(x, y, **parameters, **free.constants), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0)


def test_thresholds_from_simulations_are_cached(perturbed, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    threshold = false_alarm_threshold(perturbed[1], rate=0.5, n=2, seed=3)
    assert threshold.scores[0] <= threshold.low <= threshold.value <= threshold.high <= threshold.scores[1] < 30
    monkeypatch.setattr(false_alarms, "_score", None)
    assert false_alarm_threshold(perturbed[1], rate=0.5, n=2, seed=3) == threshold
    with pytest.raises(ConfigError, match="at least 10 simulations"):
        false_alarm_threshold(perturbed[1], rate=0.1, n=9)


@pytest.mark.parametrize(
    "content",
    [
        *("[1, 2]", "{}", '{"scores": 3}', '{"scores": [1]}', '{"scores": [NaN, 1]}', '{"scores": ["a", "b"]}'),
        *('{"scores": [[1], [2]]}', f'{{"scores": [1, {"9" * 400}]}}', "{", "link", "FIFO", "folder"),
    ],
)
def test_planted_thresholds_are_computed_again(perturbed, tmp_path, monkeypatch, content):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(false_alarms, "_score", lambda *_: 5.0)
    false_alarm_threshold(perturbed[1], rate=0.5, n=2)
    (path,) = (tmp_path / "darklens" / "false-alarms").iterdir()
    path.unlink()
    (tmp_path / "mine").write_text('{"scores": [9, 9]}')
    if content == "link":
        path.symlink_to(tmp_path / "mine")
    elif content == "FIFO":
        os.mkfifo(path)
    elif content == "folder":
        path.mkdir()
    else:
        path.write_text(content)
    assert false_alarm_threshold(perturbed[1], rate=0.5, n=2).scores == (5.0, 5.0)
    assert (tmp_path / "mine").read_text() == '{"scores": [9, 9]}'


def test_thresholds_need_no_cache(perturbed, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(false_alarms, "_score", lambda *_: 5.0)
    assert false_alarm_threshold(perturbed[1], rate=0.5, n=2).value == 5.0


def test_the_sensitivity_is_highest_at_the_arcs(perturbed):
    _, smooth = perturbed
    sensitivity = sensitivity_map(smooth, threshold=25.0)
    row, column = np.unravel_index(np.nanargmin(sensitivity.log10_mass), sensitivity.log10_mass.shape)
    assert abs(np.hypot(sensitivity.x[column], sensitivity.y[row]) - 1.1) < 0.4
    assert 8 < np.nanmin(sensitivity.log10_mass) < 9.8 < np.nanmax(sensitivity.log10_mass)


def test_a_perturber_without_effect_need_not_converge(perturbed, monkeypatch):
    observation, smooth = perturbed
    joint_fit = perturbers._joint_fit
    monkeypatch.setattr(perturbers, "_joint_fit", lambda *words: replace(joint_fit(*words), converged=False))
    for threshold, words in ((1e6, ""), (1.0, "no detection is claimed: not converged")):
        search = find_perturbers(observation, SMOOTH, result=smooth, threshold=threshold)
        assert not search.detected and search.message == words
