import numpy as np
import pytest

from darklens import populations
from darklens.doctor.statistics import STATISTICS, measure
from darklens.simulate.batch import simulate_batch

SCALE = 0.05
NAMES = [s.name for s in STATISTICS]


def of(image, name, pixel_scale=SCALE):
    return measure(np.asarray(image, dtype=np.float32)[None, None], pixel_scale=pixel_scale)[0, NAMES.index(name)]


def plane(n=100):
    axis = (np.arange(n) - (n - 1) / 2) * SCALE
    return np.meshgrid(axis, axis)


def ring(radius, *, offset=0.0, n=100):
    """An SIS' ring about a source offset in x: r(phi) = radius + offset cos phi."""
    x, y = plane(n)
    return 100 * np.exp(-(((np.hypot(x, y) - radius - offset * np.cos(np.arctan2(y, x))) / 0.1) ** 2))


@pytest.mark.parametrize("offset", [0.0, 0.3])
def test_the_radius_of_a_ring_does_not_depend_on_the_source_position(offset):
    for radius in (1.2, 1.2 * 1.02):
        assert of(ring(radius, offset=offset), "ring radius") == pytest.approx(radius, rel=0.01)
    ratio = of(ring(1.224, offset=offset), "ring radius") / of(ring(1.2, offset=offset), "ring radius")
    assert ratio == pytest.approx(1.02, abs=0.002)


def test_scale_and_offset_of_the_brightness_do_not_change_the_ring_radius():
    noisy = ring(1.2) + np.random.default_rng(0).normal(0, 2, (100, 100))
    assert of(3e-3 * noisy + 7, "ring radius") == pytest.approx(of(noisy, "ring radius"), rel=1e-4)
    assert of(noisy, "ring radius", 0.1) == pytest.approx(2 * of(noisy, "ring radius"))


def test_the_ring_radius_of_simulated_lenses_follows_theta_E():
    population = populations.get("common-test-i")
    images, truth = simulate_batch(population, 3, range(0, 180, 3))
    radius = measure(images, pixel_scale=SCALE)[:, NAMES.index("ring radius")]
    assert np.corrcoef(radius, truth["theta_E"])[0, 1] > 0.95


def test_flux_and_peak_are_above_the_sky_and_levels_are_those_of_the_file():
    image = ring(1.2)
    assert of(image + 5, "total flux") == pytest.approx(image.sum(), rel=1e-3)
    assert of(image + 5, "peak brightness") == pytest.approx(100, rel=0.15)
    assert of(image + 5, "border level") == pytest.approx(5, abs=0.01)
    assert of(image + 5, "smallest pixel") == pytest.approx(5, abs=0.01)
    assert of(image + 5, "largest pixel") == pytest.approx(image.max() + 5)
    assert of(image.round(), "fraction of zeros") == pytest.approx((image.round() == 0).mean())


def test_noise_is_that_of_the_sky_not_of_the_light():
    image = ring(1.2) + np.random.default_rng(1).normal(0, 2, (100, 100))
    assert of(image, "noise level") == pytest.approx(2, rel=0.05)


def test_the_step_of_counts_and_of_scaled_counts():
    counts = np.random.default_rng(2).poisson(10 + ring(1.2)).astype(float)
    top = np.ptp(counts)
    assert of(counts, "step between values") == pytest.approx(1, rel=1e-3)
    assert of((counts - counts.min()) / top, "step between values") == pytest.approx(1 / top, rel=1e-3)
    assert of(counts + np.random.default_rng(3).random(counts.shape), "step between values") == 0


def test_shape_of_an_ellipse():
    x, y = plane()
    wide = 100 * np.exp(-((x / 0.8) ** 2 + (y / 0.4) ** 2))
    expected = (0.8**2 - 0.4**2) / (0.8**2 + 0.4**2)
    assert of(wide, "elongation") == pytest.approx(expected, rel=1e-3)
    assert of(wide, "stretch along x") == pytest.approx(expected, rel=1e-3)
    assert of(wide.T, "stretch along x") == pytest.approx(-expected, rel=1e-3)
    moved = 100 * np.exp(-(((x - 0.5) / 0.4) ** 2 + ((y + 0.2) / 0.4) ** 2))
    assert of(moved, "offset of the light") == pytest.approx(np.hypot(0.5, 0.2), rel=1e-3)
    assert of(moved, "elongation") == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("n", [5, 9, 64])
def test_images_without_light_give_finite_statistics(n):
    spot = np.zeros((n, n))
    spot[n // 2, n // 2] = 1
    for image in (np.zeros((n, n)), np.full((n, n), 3.0), spot):
        assert np.isfinite([of(image, name) for name in NAMES]).all()
