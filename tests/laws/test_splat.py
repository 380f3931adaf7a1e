"""Laws of delensing: light is conserved, gradients are right, and it undoes the simulator's lensing."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from darklens import populations
from darklens.physics import light, splat
from darklens.physics.grid import Grid
from darklens.physics.profiles import shear, sis
from darklens.physics.raytrace import source_plane
from darklens.simulate.render import render
from darklens.simulate.truth import draw

FLUX = 1e-5  # relative
N = 12
GRID = Grid(n_pixels=N, pixel_scale=0.1)


def positions(seed, spread):
    g = torch.Generator().manual_seed(seed)
    return tuple((torch.rand(2, N, N, generator=g, dtype=torch.float64) * 2 - 1) * spread for _ in range(2))


@given(seed=st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_light_that_stays_inside_is_conserved(seed):
    image = torch.rand(2, 3, N, N, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    beta_x, beta_y = positions(seed, 0.5)
    total, weight = splat.bilinear(image.float(), beta_x.float(), beta_y.float(), GRID)
    torch.testing.assert_close(total.sum((2, 3)).double(), image.sum((2, 3)), rtol=FLUX, atol=0)
    torch.testing.assert_close(weight.sum((1, 2, 3)), torch.full((2,), float(N * N)), rtol=FLUX, atol=0)


def test_the_light_alone_is_the_same_to_the_last_bit():
    image = torch.rand(2, 1, N, N, generator=torch.Generator().manual_seed(1))
    beta_x, beta_y = (p.float() for p in positions(2, 0.7))
    assert torch.equal(splat.summed(image, beta_x, beta_y, GRID), splat.bilinear(image, beta_x, beta_y, GRID)[0])


def test_light_that_leaves_is_lost_and_does_not_wrap():
    image = torch.ones(1, 1, N, N)
    far = torch.full((1, N, N), 5.0)
    for x, y in ((far, far), (-far, far), (far, -far), (torch.zeros_like(far), far)):
        total, weight = splat.bilinear(image, x, y, GRID)
        assert not total.any() and not weight.any()
        assert not splat.overwrite(image, x, y, GRID).any()


def test_without_deflection_the_image_stays():
    image = torch.rand(2, 1, N, N, dtype=torch.float64)
    x, y = (c.expand(2, N, N) for c in GRID.coordinates(dtype=torch.float64))
    for moved in (
        splat.bilinear(image, x, y, GRID)[0],
        splat.normalised(image, x, y, GRID),
        splat.overwrite(image, x, y, GRID),
        splat.gather(image, x, y, GRID),
    ):
        torch.testing.assert_close(moved, image, rtol=0, atol=1e-12)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_the_splat_is_the_adjoint_of_bilinear_sampling(seed):
    g = torch.Generator().manual_seed(seed)
    image, other = (torch.rand(2, 1, N, N, generator=g, dtype=torch.float64) for _ in range(2))
    beta_x, beta_y = positions(seed, 0.7)  # some light leaves
    sampled = splat.gather(other, beta_x, beta_y, GRID)
    put_down, _ = splat.bilinear(image, beta_x, beta_y, GRID)
    assert float((put_down * other).sum()) == pytest.approx(float((image * sampled).sum()), rel=1e-10)


def test_gradients_with_respect_to_light_and_positions():
    image = torch.rand(1, 1, N, N, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    beta_x, beta_y = (p[:1] for p in positions(4, 0.5))
    for operation in (lambda *a: splat.bilinear(*a, GRID)[0], lambda *a: splat.normalised(*a, GRID)):
        inputs = [v.clone().requires_grad_() for v in (image, beta_x, beta_y)]
        assert torch.autograd.gradcheck(operation, inputs, eps=1e-7, atol=1e-4)


class TestOverwrite:
    def test_the_last_pixel_in_raster_order_wins_every_time(self):
        image = torch.rand(2, 2, N, N, generator=torch.Generator().manual_seed(0))
        beta_x, beta_y = (p.float() for p in positions(1, 0.3))
        expected = torch.zeros_like(image)
        column, row = (GRID.to_pixels(b).round().long() for b in (beta_x, beta_y))
        for b in range(2):
            for y in range(N):
                for x in range(N):
                    expected[b, :, row[b, y, x], column[b, y, x]] = image[b, :, y, x]
        for _ in range(5):
            assert torch.equal(splat.overwrite(image, beta_x, beta_y, GRID), expected)

    def test_only_winners_receive_a_gradient(self):
        image = torch.rand(1, 1, N, N, requires_grad=True)
        offset = 0.2 * GRID.pixel_scale
        beta_x, beta_y = (torch.full((1, N, N), offset, requires_grad=True) for _ in range(2))
        splat.overwrite(image, beta_x, beta_y, GRID).sum().backward()
        winner = torch.zeros(1, N, N, dtype=torch.bool)
        winner[..., -1, -1] = True
        assert torch.equal(image.grad[0], winner.float())
        # The winner's share of its source pixel falls as 1 - |dx| with the distance from that pixel's centre.
        share = 1 - (GRID.to_pixels(torch.tensor(offset)) - GRID.to_pixels(torch.tensor(offset)).round()).abs()
        away = torch.sign(GRID.to_pixels(torch.tensor(offset)) - GRID.to_pixels(torch.tensor(offset)).round())
        slope = -away * share / GRID.pixel_scale * image.detach()[0, 0, -1, -1]
        for gradient in (beta_x.grad, beta_y.grad):
            torch.testing.assert_close(gradient[winner], slope[None])
            assert not gradient[~winner].any()


@pytest.mark.parametrize("index", range(4))
def test_with_the_true_lens_the_splat_recovers_the_simulated_source(index):
    # Wide enough that no light is lost, and without the PSF, which delensing does not undo.
    population = populations.get("common-test-i-isotropic", ["psf.sigma=0.001", "field.n_pixels=200"])
    truth = draw(population, 5, [3 * index])
    image = render(population, truth, dtype=torch.float64)[:, None]
    p = {name: torch.tensor(column)[:, None, None] for name, column in truth.items() if column.ndim == 1}
    grid = population.field.grid
    x, y = grid.coordinates(dtype=torch.float64)
    beta_x, beta_y = source_plane(
        x,
        y,
        [sis.deflection(x, y, theta_E=p["theta_E"]), shear.deflection(x, y, gamma1=p["gamma1"], gamma2=p["gamma2"])],
    )
    source = light.sersic(
        x - p["source_x"],
        y - p["source_y"],
        amplitude=p["source_amplitude"],
        R_e=p["source_R_e"],
        n=p["source_n"],
        q=p["source_q"],
        angle=p["source_angle"],
        b=light.sersic_b(p["source_n"]),
    )
    _, weight = splat.bilinear(image, beta_x, beta_y, grid)
    lit = (weight[0, 0] > 0.5).numpy()
    recovered = splat.normalised(image, beta_x, beta_y, grid)
    assert correlation(recovered[0, 0].numpy()[lit], source[0].numpy()[lit]) >= 0.99

    # The trap: sampling the image at beta lenses it a second time.
    relensed = splat.gather(image, beta_x, beta_y, grid)
    assert correlation(relensed[0, 0].numpy()[lit], source[0].numpy()[lit]) < 0.5


def correlation(a, b):
    return float(np.corrcoef(a, b)[0, 1])
