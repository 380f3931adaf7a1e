"""Laws of the source, the grid, the detector and the distances."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from darklens import rng
from darklens.physics import light, optics
from darklens.physics.cosmology import point_mass_theta_E
from darklens.physics.grid import Grid


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


def test_photon_counts_have_poisson_moments_and_do_not_depend_on_the_batch():
    rate = torch.full((3, 60, 60), 7.0)
    counts = optics.poisson_counts(rate, [rng.generator(1, "noise", i) for i in range(3)])
    alone = optics.poisson_counts(rate[2:], [rng.generator(1, "noise", 2)])
    assert np.array_equal(counts[2], alone[0])
    assert not np.array_equal(counts[0], counts[1])
    assert counts.mean() == pytest.approx(7.0, abs=5 * math.sqrt(7 / counts.size))
    assert counts.var() == pytest.approx(7.0, rel=0.06)


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
