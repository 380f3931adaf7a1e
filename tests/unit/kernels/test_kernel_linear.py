"""The linear layer of many weights against exact arithmetic of what bfloat16 keeps."""

import pytest
import torch
from kernels import must_have_tiles
from torch import nn

from darklens.kernels import linear
from darklens.kernels.linear import WideLinear, wide

pytestmark = pytest.mark.skipif(not must_have_tiles(), reason="no g++, or a processor without a matrix unit")


@pytest.fixture(autouse=True)
def every_size(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(linear, "_FEWEST_WEIGHTS", 1)


def kept(x):
    """Return what bfloat16 keeps of numbers, exactly."""
    return x.to(torch.bfloat16).double()


@pytest.mark.parametrize("images", [1, 15, 16, 33, 64])
@pytest.mark.parametrize(("inputs", "outputs"), [(32, 32), (544, 96), (1600, 64)])
def test_products_are_those_of_rounded_numbers(images, inputs, outputs):
    layer, x = WideLinear(inputs, outputs), torch.randn(images, inputs).requires_grad_()
    gradient = torch.randn(images, outputs).to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        y = wide(layer, x)
    assert y.dtype == torch.bfloat16
    d_x, d_weight, d_bias = torch.autograd.grad(y, [x, layer.weight, layer.bias], gradient)
    exact, its = kept(x), gradient.double()
    torch.testing.assert_close(y.double(), exact @ kept(layer.weight).T + layer.bias.double(), rtol=5e-3, atol=5e-3)
    torch.testing.assert_close(d_x.double(), its @ kept(layer.weight), rtol=5e-3, atol=2e-2)
    torch.testing.assert_close(d_weight.double(), its.T @ exact, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(d_bias.double(), its.sum(0), rtol=5e-3, atol=5e-2)


def test_the_same_bits_with_any_number_of_threads():
    layer, x, usual, found = WideLinear(1600, 96), torch.randn(20, 1600).requires_grad_(), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with torch.autocast("cpu", torch.bfloat16):
                y = wide(layer, x)
            found.append([y, *torch.autograd.grad(y.float().square().sum(), [x, layer.weight])])
    finally:
        torch.set_num_threads(usual)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_pytorchs_products_go_on_in_the_same_threads():
    """Both set the shapes of tiles."""
    layer, x = WideLinear(1600, 96), torch.randn(20, 1600)
    a, b = torch.randn(100, 70).to(torch.bfloat16), torch.randn(70, 90).to(torch.bfloat16)
    alone = a @ b
    with torch.autocast("cpu", torch.bfloat16):
        first = wide(layer, x)
        for _ in range(3):
            assert torch.equal(a @ b, alone)
            assert torch.equal(wide(layer, x), first)


def test_where_it_does_not_apply_the_layer_is_pytorchs(monkeypatch):
    layer, x = WideLinear(64, 32), torch.randn(4, 64)
    plain = nn.Linear(64, 32)
    plain.load_state_dict(layer.state_dict())
    assert wide(layer, x) is None  # float32
    assert torch.equal(layer(x), plain(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert wide(WideLinear(60, 32), torch.randn(4, 60)) is None
        assert wide(layer, torch.randn(65, 64)) is None
        assert wide(layer.eval(), x) is None
        monkeypatch.setattr(linear, "_FEWEST_WEIGHTS", 2**20)
        assert torch.equal(layer.train()(x), plain(x))
