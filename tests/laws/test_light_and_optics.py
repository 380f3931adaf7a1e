"""Laws of the source, the grid, the detector and the distances."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from astropy import units
from astropy.cosmology import FlatLambdaCDM
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from scipy.special import gammainc, gammaincc, ndtr
from scipy.stats import chi2 as chi2_distribution
from scipy.stats import poisson

from darklens import rng
from darklens.physics import light, optics
from darklens.physics.cosmology import nfw_angles, point_mass_theta_E
from darklens.physics.grid import Grid
from darklens.units import ARCSEC_PER_RADIAN


def tensor(value):
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.parametrize("n", [0.7, 1.0, 1.5, 4.0])
def test_half_of_the_light_lies_within_the_effective_radius(n):
    r = torch.logspace(-6, 4, 200_001, dtype=torch.float64)
    one = tensor(1.0)
    brightness = light.sersic(
        r,
        torch.zeros_like(r),
        amplitude=one,
        R_e=one,
        n=tensor(n),
        q=one,
        angle=tensor(0.0),
        b=light.sersic_b(tensor(n)),
    )
    flux = torch.cumulative_trapezoid(brightness * r, r)
    inside = float(flux[torch.searchsorted(r, one) - 1] / flux[-1])
    assert inside == pytest.approx(0.5, abs=2e-4)
    total = light.sersic_total(R_e=one, n=tensor(n), b=light.sersic_b(tensor(n)))
    assert float(2 * math.pi * flux[-1]) == pytest.approx(float(total), rel=1e-5)


@given(e=st.floats(0.0, 0.7), angle=st.floats(-3, 3), n=st.floats(0.6, 5), R_e=st.floats(0.1, 2))
@settings(max_examples=25, deadline=None)
def test_slopes_of_a_profile_are_its_automatic_derivatives(e, angle, n, R_e):
    x, y = Grid(n_pixels=9, pixel_scale=0.31).coordinates(dtype=torch.float64)
    at = {"x": x + 0.07, "y": y - 0.03, "e1": e * math.cos(2 * angle), "e2": e * math.sin(2 * angle)}
    at |= {"ln_R_e": math.log(R_e), "ln_n": math.log(n)}
    at = {name: torch.as_tensor(value, dtype=torch.float64).expand_as(x).clone() for name, value in at.items()}

    def brightness(names, values):
        p = at | dict(zip(names, values, strict=True))
        e = (p["e1"] ** 2 + p["e2"] ** 2 + 1e-30).sqrt()
        shape = {"q": (1 - e) / (1 + e), "angle": torch.atan2(p["e2"], p["e1"]) / 2, "n": p["ln_n"].exp()}
        R_e, b = p["ln_R_e"].exp(), light.sersic_b(shape["n"])
        return light.sersic(p["x"], p["y"], amplitude=tensor(3.0), R_e=R_e, b=b, **shape)

    own = {name: at[name] for name in ("x", "y", "e1", "e2")}
    shape = {"R_e": at["ln_R_e"].exp(), "n": at["ln_n"].exp()}
    found, slopes = light.sersic_slopes(**own, **shape, amplitude=tensor(3.0), b=light.sersic_b, by=list(at))
    torch.testing.assert_close(found, brightness([], []), rtol=1e-9, atol=1e-12)
    for name in at:
        if e > 0.01 or name not in ("e1", "e2"):  # the reference has no direction where light is round
            _, expected = torch.func.jvp(
                lambda v, name=name: brightness([name], [v]), (at[name],), (torch.ones_like(x),)
            )
            torch.testing.assert_close(slopes[name], expected, rtol=1e-7, atol=1e-9)


@given(q=st.floats(0.3, 1.0), angle=st.floats(-3, 3))
@settings(max_examples=10, deadline=None)
def test_flattening_and_turning_keep_the_flux(q, angle):
    x, y = Grid(n_pixels=300, pixel_scale=0.05).coordinates(dtype=torch.float64)
    b = light.sersic_b(tensor(1.0))
    flux = [
        float(
            light.sersic(
                x, y, amplitude=tensor(1.0), R_e=tensor(0.5), n=tensor(1.0), q=tensor(ratio), angle=tensor(turn), b=b
            ).sum()
        )
        for ratio, turn in ((1.0, 0.0), (q, angle))
    ]
    assert flux[1] == pytest.approx(flux[0], rel=3e-3)


def test_the_cusp_has_a_finite_gradient():
    x = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    one = tensor(1.0)
    value = light.sersic(
        x, x, amplitude=one, R_e=one, n=tensor(4.0), q=one, angle=tensor(0.0), b=light.sersic_b(tensor(4.0))
    )
    value.sum().backward()
    assert torch.isfinite(value).all() and torch.isfinite(x.grad).all()


class TestGrid:
    def test_convention(self):
        x, y = Grid(n_pixels=4, pixel_scale=0.5).coordinates()
        assert x[0].tolist() == [-0.75, -0.25, 0.25, 0.75]
        assert y[:, 0].tolist() == [-0.75, -0.25, 0.25, 0.75]
        assert x[0, 0] == x[3, 0] and y[0, 0] == y[0, 3]

    @given(n=st.integers(1, 200), scale=st.floats(0.01, 1))
    @settings(max_examples=20, deadline=None)
    def test_pixels_to_angles_and_back(self, n, scale):
        grid = Grid(n_pixels=n, pixel_scale=scale)
        x, _ = grid.coordinates(dtype=torch.float64)
        torch.testing.assert_close(grid.to_pixels(x[0]), torch.arange(n, dtype=torch.float64), rtol=0, atol=1e-9)

    def test_sub_pixels_share_their_pixel(self):
        grid = Grid(n_pixels=3, pixel_scale=0.1)
        coarse, fine = grid.coordinates(dtype=torch.float64)[0], grid.coordinates(supersample=4, dtype=torch.float64)[0]
        torch.testing.assert_close(optics.integrate_pixels(fine[None], 4)[0], coarse, rtol=0, atol=1e-12)

    @pytest.mark.parametrize(("n", "scale"), [(0, 0.1), (5, 0.0), (5, -1.0), (5, float("nan"))])
    def test_impossible_grids_are_refused(self, n, scale):
        with pytest.raises(ValueError, match=r"n_pixels|pixel_scale"):
            Grid(n_pixels=n, pixel_scale=scale)


class TestPSF:
    image = torch.rand(2, 40, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    @given(sigma=st.floats(0.3, 3.0), truncate=st.floats(2.0, 5.0))
    @settings(max_examples=20, deadline=None)
    def test_separable_is_scipy_and_is_the_full_kernel(self, sigma, truncate):
        kernel = optics.gaussian_psf(sigma=sigma, truncate=truncate)
        found = optics.convolve_separable(self.image, kernel)
        expected = gaussian_filter(self.image[1].numpy(), sigma, mode="nearest", truncate=truncate)
        np.testing.assert_allclose(found[1].numpy(), expected, rtol=0, atol=1e-12)
        full = optics.convolve(self.image, kernel[:, None] * kernel[None])
        torch.testing.assert_close(full, found, rtol=0, atol=1e-12)

    def test_an_asymmetric_kernel_moves_light_its_own_way(self):
        spot = torch.zeros(1, 9, 9)
        spot[0, 4, 4] = 1
        kernel = torch.arange(15.0).reshape(5, 3)
        assert torch.equal(optics.convolve(spot, kernel)[0, 2:7, 3:6], kernel)

    def test_flux_is_conserved_away_from_the_edge(self):
        spot = torch.zeros(1, 41, 41, dtype=torch.float64)
        spot[0, 20, 20] = 3.0
        assert float(optics.convolve_separable(spot, optics.gaussian_psf(sigma=2.0)).sum()) == pytest.approx(
            3.0, rel=1e-12
        )

    def test_bad_kernels_are_refused(self):
        with pytest.raises(ValueError, match="odd"):
            optics.convolve(self.image, torch.ones(4, 3, dtype=torch.float64))
        with pytest.raises(ValueError, match="sigma"):
            optics.gaussian_psf(sigma=0.0)


def test_pixel_integration_converges_at_second_order():
    grid = Grid(n_pixels=8, pixel_scale=0.5)
    results = []
    for s in (2, 4, 8, 64):
        x, y = grid.coordinates(supersample=s, dtype=torch.float64)
        results.append(optics.integrate_pixels(torch.exp(-(x**2) - 2 * y**2)[None], s))
    errors = [float((r - results[-1]).abs().max()) for r in results[:-1]]
    assert all(1.8 < math.log2(a / b) < 2.2 for a, b in pairwise(errors))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spread", [1.0, 1.7])
def test_photon_counts_are_the_exact_quantile_of_their_rate(dtype, spread):
    g = torch.Generator().manual_seed(int(10 * spread))
    rate = (4 * 10 ** (torch.rand(1, 300_000, generator=g, dtype=torch.float64) ** 2 * 4)).to(dtype)
    w = (spread * torch.randn(rate.shape, generator=g, dtype=dtype)).clamp(-6.5, 6.5)
    k = optics.poisson_counts(rate, w, lambda row: rng.generator(0, "unused", row))
    k, rate, w = (v.double().numpy() for v in (k, rate, w))
    # P(X <= k) reaches Phi(w) and P(X <= k - 1) does not; each tail is compared with its own.
    reached = np.where(w < 0, gammaincc(k + 1, rate) >= ndtr(w), gammainc(k + 1, rate) <= ndtr(-w))
    before = np.maximum(k, 1)
    too_many = np.where(w < 0, gammaincc(before, rate) >= ndtr(w), gammainc(before, rate) <= ndtr(-w)) & (k > 0)
    assert reached.all() and not too_many.any()


@pytest.mark.parametrize("rate", [0.0, 0.02, 1.3, 3.99, 4.01, 10.0, 700.0])
def test_photon_counts_follow_the_poisson_distribution(rate):
    n = 200_000
    w = torch.randn(n, generator=torch.Generator().manual_seed(7))
    rates = torch.full((1, n), rate)
    counts = optics.poisson_counts(rates, w[None], lambda row: rng.generator(0, "small", row))[0].numpy()
    k = np.arange(counts.max() + 2)
    expected, found = n * poisson.pmf(k, rate), np.bincount(counts.astype(int), minlength=len(k))
    tested = expected > 10
    chi2 = float(((found - expected)[tested] ** 2 / expected[tested]).sum())
    assert chi2 <= chi2_distribution.isf(1e-4, tested.sum())
    assert found[~tested].sum() <= expected[~tested].sum() + 5 * math.sqrt(expected[~tested].sum() + 1)


def test_the_poisson_expansion_stays_within_its_error():
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(30):
        for rate in (4.0, 7.5, 30.0, 900.0):
            for w in (-1.9, -0.7, 0.0, 0.4, 1.5, 3.0, 4.5):
                x = mpmath.findroot(
                    lambda x, rate=rate, w=w: mpmath.gammainc(x, rate, mpmath.inf, regularized=True) - mpmath.ncdf(w),
                    rate + math.sqrt(rate) * w + (1 + w * w / 2) / 3,
                    tol=1e-20,
                )
                counts, margin, _ = optics.poisson_expansion(
                    torch.tensor([rate], dtype=torch.float64), torch.tensor([w], dtype=torch.float64)
                )
                error = (0.01 + 0.004 * w**2 + 0.03 * w**4) / rate**2
                # margin = value - counts - error
                assert abs(float(counts + margin) + error - float(x)) <= error + 1e-12, (rate, w)


class TestCosmology:
    def test_einstein_radius_of_a_galaxy_mass(self):
        assert point_mass_theta_E(mass=1e12, z_lens=0.5, z_source=1.0) == pytest.approx(1.6645, abs=1e-3)

    def test_the_earlier_simulators_distances(self):
        legacy = point_mass_theta_E(mass=1e12, z_lens=0.5, z_source=1.0, legacy_distances=True)
        assert legacy == pytest.approx(1.2815, abs=1e-3)

    @given(mass=st.floats(1e6, 1e13))
    @settings(max_examples=10, deadline=None)
    def test_it_grows_with_the_root_of_the_mass(self, mass):
        ratio = point_mass_theta_E(mass=mass, z_lens=0.3, z_source=2.0) / point_mass_theta_E(
            mass=1e10, z_lens=0.3, z_source=2.0
        )
        assert ratio == pytest.approx(math.sqrt(mass / 1e10), rel=1e-12)

    @pytest.mark.parametrize(("mass", "z_lens", "z_source"), [(1e12, 1.0, 0.5), (0.0, 0.5, 1.0), (1e12, -0.5, 1.0)])
    def test_impossible_arrangements_are_refused(self, mass, z_lens, z_source):
        with pytest.raises(ValueError, match=r"behind|positive"):
            point_mass_theta_E(mass=mass, z_lens=z_lens, z_source=z_source)

    @given(
        mass=st.floats(1e6, 1e13),
        concentration=st.floats(3, 30),
        z_lens=st.floats(0.1, 0.9),
        H0=st.floats(60, 80),
        Om0=st.floats(0.2, 0.4),
    )
    @settings(max_examples=10, deadline=None)
    def test_a_halo_holds_its_mass_within_r200_and_deflects_by_what_is_projected(
        self, mass, concentration, z_lens, H0, Om0
    ):
        universe = {"z_lens": z_lens, "z_source": 1.5, "H0": H0, "Om0": Om0}
        R_s, alpha_Rs = nfw_angles(mass=mass, concentration=concentration, **universe)
        cosmology = FlatLambdaCDM(H0=H0, Om0=Om0)
        r200 = R_s * concentration / ARCSEC_PER_RADIAN * cosmology.angular_diameter_distance(z_lens)
        density = mass * units.M_sun / (4 / 3 * math.pi * r200**3)
        assert float(density / cosmology.critical_density(z_lens)) == pytest.approx(200, rel=1e-3)  # astropy's G
        fraction = (1 - math.log(2)) / (math.log(1 + concentration) - concentration / (1 + concentration))
        within_R_s = point_mass_theta_E(mass=mass * fraction, **universe)
        assert alpha_Rs * R_s == pytest.approx(within_R_s**2, rel=1e-12)

    def test_many_haloes_are_their_members(self):
        mass, concentration = np.array([[1e7], [1e10]]), np.array([5.0, 10.0, 20.0])
        together = nfw_angles(mass=mass, concentration=concentration, z_lens=0.5, z_source=1.0)
        alone = nfw_angles(mass=1e10, concentration=20.0, z_lens=0.5, z_source=1.0)
        for many, one in zip(together, alone, strict=True):
            assert many.shape == (2, 3) and many.dtype == np.float64
            assert many[1, 2] == pytest.approx(float(one), rel=1e-14)

    @pytest.mark.parametrize(
        ("mass", "concentration", "z_lens", "z_source"),
        [
            (1e9, 10.0, 1.0, 0.5),
            (np.array([1e9, 0.0]), 10.0, 0.5, 1.0),
            (1e9, np.array([10.0, -1.0]), 0.5, 1.0),
            (math.nan, 10.0, 0.5, 1.0),
            (1e9, 10.0, 0.0, 1.0),
        ],
    )
    def test_impossible_haloes_are_refused(self, mass, concentration, z_lens, z_source):
        with pytest.raises(ValueError, match=r"behind|positive"):
            nfw_angles(mass=mass, concentration=concentration, z_lens=z_lens, z_source=z_source)


@pytest.mark.parametrize("shape", [(1, 9, 9), (2, 7, 7), (1, 1, 1)])
def test_pixels_of_a_size_that_is_no_multiple_lose_no_rows_unsaid(shape):
    with pytest.raises(ValueError, match="cannot be divided"):
        optics.integrate_pixels(torch.ones(shape), 2)
