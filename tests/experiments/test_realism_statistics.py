"""The image statistics of experiments/realism.py, on images whose answer is known."""

import numpy as np
import pytest
from scipy import stats

from experiments import realism

N = 150
X, Y = realism.coordinates(N)
RADIUS = np.hypot(X, Y)


def batch(*images):
    return np.stack(images)


def ellipse(q, degrees, *, x=0.0, y=0.0, sigma=0.6):
    angle = np.radians(degrees)
    along = (X - x) * np.cos(angle) + (Y - y) * np.sin(angle)
    across = (Y - y) * np.cos(angle) - (X - x) * np.sin(angle)
    return np.exp(-(along**2 + (across / q) ** 2) / (2 * sigma**2))


def ring(radius, width=0.1):
    return np.exp(-((RADIUS - radius) ** 2) / (2 * width**2))


def minmax(counts):
    low, high = counts.min((1, 2), keepdims=True), counts.max((1, 2), keepdims=True)
    return ((counts - low) / (high - low)).astype(np.float32)


@pytest.fixture(scope="module")
def photons():
    """Counts of four rings of different brightness over a sky of 10."""
    g = np.random.default_rng(1)
    rate = 10 + np.array([300, 500, 700, 900])[:, None, None] * ring(1.3)
    return g.poisson(rate).astype(float)


@pytest.fixture(scope="module")
def white():
    """Sixteen images of nothing but a sky of 10 counts."""
    return np.random.default_rng(2).poisson(10, (16, N, N)).astype(float)


def test_second_moments_give_axis_ratio_and_angle_of_an_ellipse():
    cases = [(0.4, 0), (0.5, 30), (0.8, -75), (0.6, 88)]
    images = batch(*(ellipse(q, angle, x=0.2, y=-0.3) for q, angle in cases))
    np.testing.assert_allclose(realism.axis_ratio(images), [q for q, _ in cases], rtol=2e-3)
    np.testing.assert_allclose(realism.elongation_angle(images), [angle for _, angle in cases], atol=0.1)


def test_a_mirrored_image_has_the_opposite_angle():
    images = batch(ellipse(0.5, 20))
    np.testing.assert_allclose(realism.elongation_angle(images[:, ::-1]), [-20], atol=0.1)
    np.testing.assert_allclose(realism.elongation_angle(images.transpose(0, 2, 1)), [70], atol=0.1)


def test_radius_and_width_of_rings():
    images = batch(ring(0.9), ring(1.6))
    # The area of a ring grows outwards, which moves its mean radius by width^2 / radius.
    np.testing.assert_allclose(realism.ring_radius(images), [0.9 + 0.01 / 0.9, 1.6 + 0.01 / 1.6], rtol=1e-3)
    np.testing.assert_allclose(realism.ring_width(images), [0.1, 0.1], rtol=0.02)


def test_faint_light_does_not_move_the_ring():
    images = batch(ring(1.2), ring(1.2) + 0.05 * (RADIUS < 2.5))
    with_halo = realism.ring_radius(realism.ring_of(images))
    assert with_halo[1] == pytest.approx(with_halo[0], rel=5e-3)
    assert realism.ring_radius(images)[1] > with_halo[0] + 0.1


def test_ring_of_removes_scale_and_level():
    image = ring(1.2)
    ours = realism.ring_of(batch(image, 7 * image + 3))
    np.testing.assert_allclose(ours[0], ours[1], atol=1e-12)
    assert ours.max() == 1 and (ours[ours > 0] > realism.FAINTEST).all() and (ours == 0).mean() > 0.5


def test_centroid_offset_is_where_the_light_is():
    images = batch(ellipse(1, 0), ellipse(1, 0, x=0.3, y=-0.4))
    np.testing.assert_allclose(realism.centroid_offset(images), [0, 0.5], atol=1e-3)


def test_concentration_of_a_disc_and_of_a_ring():
    disc, thin = (RADIUS < 2).astype(float), ring(1.5, width=0.05)
    values = realism.concentration(batch(disc, thin))
    assert values[0] == pytest.approx(5 * np.log10(np.sqrt(0.8 / 0.2)), abs=0.03)
    assert 0 < values[1] < 0.4


def test_effective_area_of_a_disc_is_the_area_at_any_brightness():
    disc = (RADIUS < 1.5).astype(float)
    np.testing.assert_allclose(realism.effective_area(batch(disc, 40 * disc)), np.pi * 1.5**2, rtol=0.01)


def test_asymmetry_is_none_for_a_ring_half_for_one_of_two_and_all_for_one_spot():
    west, east = ellipse(1, 0, x=-1.2, sigma=0.15), ellipse(1, 0, x=1.2, sigma=0.15)
    values = realism.asymmetry(batch(ring(1.2), west + east / 3, west))
    np.testing.assert_allclose(values, [0, 0.5, 1], atol=1e-6)


def test_wiggle_sees_a_kink_and_not_an_offset_or_elongated_ring():
    azimuth = np.arctan2(Y, X)
    smooth = np.exp(-((RADIUS - 1.3 - 0.1 * np.cos(2 * azimuth) - 0.1 * np.cos(azimuth)) ** 2) / 0.02)
    wavy = np.exp(-((RADIUS - 1.3 - 0.05 * np.cos(8 * azimuth)) ** 2) / 0.02)
    values = realism.ring_wiggle(batch(smooth, wavy))
    # Averaging over a sector lowers mode 8 by sinc(8 / 48).
    assert values[1] == pytest.approx(0.05 / np.sqrt(2) * np.sinc(8 / realism.SECTORS), rel=0.03)
    assert values[0] < 0.05 * values[1]


def test_slope_of_a_power_law_field():
    g = np.random.default_rng(3)
    frequency = np.hypot(np.fft.fftfreq(N)[:, None], np.fft.rfftfreq(N))
    frequency[0, 0] = 1
    for slope in (-2, -4):
        field = np.fft.irfft2(np.fft.rfft2(g.normal(size=(8, N, N))) * frequency ** (slope / 2))
        assert realism.power_slope(field).mean() == pytest.approx(slope, abs=0.1)


def test_counts_come_back_exactly(photons):
    np.testing.assert_array_equal(realism.counts_of(minmax(photons)), photons)


def test_counts_of_rounded_images_do_not_come_back(photons):
    rounded = (np.floor(minmax(photons) * 256).clip(max=255) + 0.5) / 256
    assert (realism.counts_of(rounded).max((1, 2)) != photons.max((1, 2))).all()


def test_statistics_of_counts(photons):
    np.testing.assert_array_equal(realism.peak_counts(photons), photons.max((1, 2)))
    np.testing.assert_array_equal(realism.distinct_values(photons), [len(np.unique(image)) for image in photons])
    expected = np.array([300, 500, 700, 900]) * ring(1.3).sum()
    np.testing.assert_allclose(realism.total_counts(photons), expected, rtol=0.02)


def test_signal_to_noise_grows_with_the_root_of_the_exposure():
    image = 10 + 1000 * ring(1.3)
    once, four_times = realism.signal_to_noise(batch(image, 4 * image))
    assert four_times == pytest.approx(2 * once, rel=1e-6)


def test_photon_noise_is_white_with_variance_equal_to_the_mean(white):
    for statistic, expected, scatter in [
        (realism.sky_mean, 10, 0.19),
        (realism.sky_variance, 1, 0.06),
        (realism.sky_correlation, 0, 0.03),
        (realism.white_power, 1, 0.014),
    ]:
        values = statistic(white)
        # sky_mean takes the darker half of four corners, 0.17 below their mean.
        bias = -0.17 if statistic is realism.sky_mean else 0
        assert values.mean() == pytest.approx(expected + bias, abs=4 * scatter / 4), statistic.__name__
        assert 0.4 * scatter < values.std() < 2 * scatter, statistic.__name__


def test_smoothed_or_gained_noise_is_not_photon_noise(white):
    smoothed = (white + np.roll(white, 1, axis=1)) / 2
    assert (realism.sky_correlation(smoothed) > 0.15).all()
    assert (realism.white_power(smoothed) < 0.6).all()
    assert (realism.sky_variance(2 * white) > 1.6).all()


def test_measure_gives_the_same_for_an_image_alone_and_in_a_batch(photons):
    stored = minmax(photons)
    together, alone = realism.measure(stored), realism.measure(stored[2:3])
    assert list(together) == list(alone) == [s.name for s in realism.STATISTICS]
    for name, values in together.items():
        assert values.shape == (4,) and np.isfinite(values).all()
        assert alone[name][0] == pytest.approx(values[2], rel=1e-9, abs=1e-12), name


def test_ring_statistics_survive_rounding_to_256_levels():
    rate = 10 + 700 * batch(*(ring(r) * (1 + 0.3 * X / RADIUS) for r in (1.0, 1.2, 1.4, 1.6)))
    stored = minmax(np.random.default_rng(4).poisson(rate).astype(float))
    shifts = realism.rounding_shifts(stored)
    assert set(shifts) == {s.name for s in realism.STATISTICS if not s.exact_only}
    assert 0 < shifts["ring_radius"] < 0.01


def test_anderson_darling_agrees_with_a_direct_integral():
    u = np.array([0.1, 0.15, 0.4, 0.8, 0.83])
    t = (np.arange(2_000_000) + 0.5) / 2_000_000
    empirical = np.searchsorted(u, t, side="right") / len(u)
    assert realism.anderson_darling(u) == pytest.approx(
        len(u) * ((empirical - t) ** 2 / (t * (1 - t))).mean(), rel=1e-3
    )


@pytest.mark.parametrize("test", [realism.kuiper, realism.watson])
def test_circular_tests_do_not_depend_on_where_the_circle_is_cut(test):
    u = np.random.default_rng(5).random(17) * 0.6
    assert test((u + 0.37) % 1) == pytest.approx(test(u), rel=1e-9)
    assert test(u) > test(np.random.default_rng(6).random(17))


def test_p_values_are_uniform_when_both_samples_are_alike_and_small_when_not():
    g = np.random.default_rng(7)
    for test in (realism.anderson_darling, realism.kuiper, realism.watson):
        p = []
        for _ in range(200):
            simulated, real = g.normal(size=300), g.normal(size=60)
            p.append(realism.tail_probability(test, realism.positions(real, simulated), 300))
        assert stats.kstest(p, "uniform").pvalue > 1e-3, test.__name__
        shifted = realism.positions(g.normal(1, 0.5, size=60), g.normal(size=300))
        assert realism.tail_probability(test, shifted, 300) < 1e-3, test.__name__


def test_holm_by_hand():
    np.testing.assert_allclose(realism.holm([0.01, 0.04, 0.03, 0.5]), [0.04, 0.09, 0.09, 0.5])


def test_compare_takes_circular_tests_for_angles_alone():
    g = np.random.default_rng(8)
    by_name = {s.name: s for s in realism.STATISTICS}
    # One cluster across the cut at 90 degrees, in both samples.
    real, simulated = (((g.normal(90, 5, n) + 90) % 180) - 90 for n in (40, 4000))
    angle = realism.compare(by_name["elongation_angle"], "no", real, simulated)
    assert angle["supremum_test"]["name"] == "Kuiper" and angle["quadratic_test"]["p"] > 1e-3
    radius = realism.compare(by_name["ring_radius"], "no", real + 30, simulated)
    assert radius["quadratic_test"]["name"] == "Anderson-Darling" and radius["quadratic_test"]["p"] < 1e-3
