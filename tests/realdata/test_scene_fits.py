"""Fits of simulated PyAutoLens images and of an HST lens return the Einstein radii of the simulation and of others.

The noise maps of PyAutoLens are made from the noisy image, so chi2 per pixel of the true model is about 1.07 to 1.12.
"""

import pytest

from darklens import Observation, Scene, Sersic, fit

pytestmark = pytest.mark.realdata


def effective(theta_E, q):
    """The effective radius of an isothermal ellipsoid of PyAutoLens."""
    return theta_E * 2 * q**0.5 / (1 + q)


@pytest.mark.parametrize(
    ("folder", "model", "theta_E"),
    [
        ("no_lens_light/mass_sie__source_sersic", "sie-shear", effective(1.6, 0.9)),
        ("with_lens_light/light_sersic_exp__mass_sie__source_sersic", "sie-shear+light", effective(1.6, 0.9)),
    ],
)
def test_lenses_of_pyautolens(realdata, folder, model, theta_E):
    observation = Observation.read(realdata / "autolens" / folder, pixel_scale=0.1, flip_rows=True)
    result = fit(observation, Scene.from_yaml(model))
    assert result.converged and not result.warnings
    assert 1.0 < result.chi2_per_pixel < 1.12
    assert result.theta_E == pytest.approx(theta_E, rel=0.005)


def test_one_component_of_two_component_light_is_a_warning(realdata):
    folder = realdata / "autolens" / "with_lens_light" / "light_sersic_exp__mass_sie__source_sersic"
    observation = Observation.read(folder, pixel_scale=0.1, flip_rows=True).cut(2.5)
    scene = Scene.from_yaml("sie-shear")
    result = fit(observation, Scene(scene.mass, scene.source, [Sersic()]))
    assert any("does not describe the image" in warning for warning in result.warnings)


def test_a_lens_of_slacs_with_two_compact_images(realdata):
    observation = Observation.read(realdata / "slacs" / "J0037-0942", pixel_scale=0.05).cut(2.2)
    result = fit(observation, Scene.from_yaml("sie+mge"))
    assert result.converged and not result.warnings
    assert result.theta_E == pytest.approx(1.53, rel=0.03)
