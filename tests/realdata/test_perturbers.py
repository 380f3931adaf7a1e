"""The search finds the subhalo that PyAutoLens simulated, and none in a smooth lens of it."""

import numpy as np
import pytest

from darklens import Observation, Scene, find_perturbers

pytestmark = pytest.mark.realdata


def test_the_subhalo_of_pyautolens_is_found(realdata):
    folder = realdata / "autolens" / "subhalo" / "mass_sie__subhalo_nfw__source_sersic"
    observation = Observation.read(folder, pixel_scale=0.05)
    search = find_perturbers(observation, Scene.from_yaml("sie-shear"))
    (halo,) = search.perturbers
    assert search.detected and search.delta_chi2 > 100
    assert np.hypot(halo.x, halo.y - 1.601) < 0.1
    assert halo.log10_mass == pytest.approx(10.0, abs=0.3)


def test_a_smooth_lens_of_pyautolens_has_no_perturber(realdata):
    folder = realdata / "autolens" / "no_lens_light" / "mass_sie__source_sersic"
    observation = Observation.read(folder, pixel_scale=0.1)
    search = find_perturbers(observation, Scene.from_yaml("sie-shear"))
    assert not search.detected and not search.message and search.delta_chi2 < search.threshold
