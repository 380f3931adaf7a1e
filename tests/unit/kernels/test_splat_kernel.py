"""The kernel of the splat against physics/splat.py."""

import pytest
import torch
from kernels import must_build

from darklens.kernels import splat_sum
from darklens.physics import splat
from darklens.physics.grid import Grid

pytestmark = pytest.mark.skipif(not must_build(), reason="no g++, or a processor without AVX2")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    usual = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(usual)


def test_sums_have_the_bits_of_the_splat_and_its_gradients(threads):
    grid = Grid(n_pixels=21, pixel_scale=0.05)
    image = torch.rand(3, 2, 21, 21, requires_grad=True)
    beta = [(torch.rand(3, 21, 21) * 1.3 - 0.65).requires_grad_() for _ in range(2)]
    with torch.no_grad():
        for positions, axis in zip(beta, grid.coordinates(), strict=True):
            positions[0, :2] = axis[:2]  # on the grid
        beta[0][1, 0, :3] = torch.tensor([torch.nan, torch.inf, 1e30])
    expected = splat.summed(image, *beta, grid)
    result = splat_sum.summed(image, *(grid.to_pixels(positions) for positions in beta))
    assert torch.equal(result, expected)
    weights = torch.randn(result.shape)
    gradients, usual = (torch.autograd.grad(total, [image, *beta], weights) for total in (result, expected))
    for gradient, exact in zip(gradients, usual, strict=True):
        finite = exact.isfinite()
        torch.testing.assert_close(gradient[finite], exact[finite], rtol=1e-4, atol=1e-4)


def test_bits_do_not_depend_on_the_number_of_threads():
    image, column, row = (torch.rand(3, *shape, 40, 40).requires_grad_() for shape in ((1,), (), ()))
    usual, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            total = splat_sum.summed(image, 40 * column, 40 * row)
            results.append([total.detach(), *torch.autograd.grad(total.square().sum(), [image, column, row])])
    finally:
        torch.set_num_threads(usual)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_it_applies_neither_to_other_types_nor_under_a_trace():
    image, position = torch.rand(1, 1, 8, 8), torch.rand(1, 8, 8)
    assert splat_sum.summed(image.double(), position, position) is None
    assert splat_sum.summed(image, position.double(), position) is None
    traced = torch.jit.trace(lambda x: x if splat_sum.summed(x, position, position) is None else -x, image)
    assert torch.equal(traced(image), image)
