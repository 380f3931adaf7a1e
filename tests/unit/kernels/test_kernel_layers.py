"""The kernels against PyTorch's layers: results, gradients and running statistics."""

import copy

import pytest
import torch
from kernels import must_build
from torch import nn

from darklens.kernels import layers, light, products
from darklens.kernels.calls import Windows
from darklens.models.resnet_simple import NormalisedConv, ResNetSimple, ResNetSimpleConfig
from darklens.physics import splat
from darklens.physics.grid import Grid
from darklens.training.normalisation import _OverAll

pytestmark = pytest.mark.skipif(not must_build(), reason="no g++, or a processor without AVX2")

WINDOWS = [Windows(2, 2, 0), Windows(3, 2, 1)]
SIZES = [(2, 2), (5, 4), (12, 12), (13, 15), (73, 73), (37, 70)]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    usual = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(usual)


def maps(n, channels, height, width, dtype=torch.float32):
    # Far from 0, where sums of squares would cancel.
    x = 20 + torch.randn(n, channels, height, width) * torch.rand(channels, 1, 1)
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def batch_norm(channels, **settings):
    """Return a normalisation with scales of both signs and one of 0."""
    norm = nn.BatchNorm2d(channels, **settings)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(channels))
        norm.weight[3] = 0
        norm.bias.copy_(torch.randn(channels))
    return norm


def outcome(result, leaves, norm, gradient):
    """Return what a layer made, its gradients, and its running statistics."""
    gradients = torch.autograd.grad(result, [*leaves, norm.weight, norm.bias], gradient.to(result.dtype))
    return [result.detach(), *gradients, norm.running_mean, norm.running_var]


def in_double(norm):
    return copy.deepcopy(norm).double()


def away(found, expected):
    """Return the root mean square of the differences, by the size of what is expected."""
    return [
        float((a.double() - b).square().mean().sqrt() / b.abs().max().clamp_min(1e-30))
        for a, b in zip(found, expected, strict=True)
    ]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("windows", WINDOWS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.bfloat16, 4e-3)])
def test_normalisation_maximum_and_relu(size, windows, dtype, tolerance, threads):
    x, norm = maps(3, 32, *size, dtype), batch_norm(32)
    ours, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    other = in_double(norm)
    result = layers.pooled(norm, ours, windows)
    expected = torch.relu(nn.functional.max_pool2d(other(exact), *windows))
    gradient = torch.randn(expected.shape).to(dtype)
    found = outcome(result, [ours], norm, gradient)
    assert result.dtype == dtype and result.is_contiguous(memory_format=torch.channels_last)
    assert max(away(found, outcome(expected, [exact], other, gradient.double()))) < tolerance
    assert norm.num_batches_tracked == other.num_batches_tracked == 1


@pytest.mark.parametrize("size", [(1, 2), (13, 15), (16, 16)])
@pytest.mark.parametrize("activate", [True, False])
@pytest.mark.parametrize("with_other", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.bfloat16, 4e-3)])
def test_normalisation_sum_and_relu(size, activate, with_other, dtype, tolerance, threads):
    x, norm = maps(3, 48, *size, dtype), batch_norm(48, momentum=None)
    leaves = [x.clone().requires_grad_()]
    leaves += [(maps(3, 48, *size, dtype) - 20).requires_grad_()] if with_other else []
    exact, other = [leaf.detach().double().requires_grad_() for leaf in leaves], in_double(norm)
    for _ in range(2):  # the mean over batches
        result = layers.normalised(norm, leaves[0], leaves[1] if with_other else None, activate=activate)
        expected = other(exact[0]) + (exact[1] if with_other else 0)
    expected = torch.relu(expected) if activate else expected
    gradient = torch.randn(expected.shape).to(dtype)
    found = outcome(result, leaves, norm, gradient)
    assert result.dtype == dtype
    assert max(away(found, outcome(expected, exact, other, gradient.double()))) < tolerance


@pytest.mark.parametrize("size", [(2, 2), (5, 4), (13, 15), (48, 48), (75, 73)])
@pytest.mark.parametrize("inputs", [1, 2])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.bfloat16, 2e-2)])
def test_the_first_layer(size, inputs, dtype, tolerance, threads):
    images, norm = torch.rand(3, inputs, *size), batch_norm(32)
    conv = nn.Conv2d(inputs, 32, 5, padding=2, bias=False)
    exact_conv, other = copy.deepcopy(conv).double(), in_double(norm)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        result = layers.first_layer(conv, norm, images, Windows())
    expected = torch.relu(nn.functional.max_pool2d(other(exact_conv(images.double())), 2))
    gradient = torch.randn(expected.shape).to(dtype)
    found = outcome(result, [conv.weight], norm, gradient)
    assert result.dtype == dtype
    assert max(away(found, outcome(expected, [exact_conv.weight], other, gradient.double()))) < tolerance


def test_the_first_layer_leaves_images_that_learn_to_pytorch():
    conv, norm = nn.Conv2d(1, 32, 5, padding=2, bias=False), batch_norm(32)
    images = torch.rand(2, 1, 8, 8)
    assert layers.first_layer(conv, norm, images, Windows()) is not None
    assert layers.first_layer(conv, norm, images.requires_grad_(), Windows()) is None


@pytest.mark.parametrize("windows", WINDOWS)
def test_of_equal_values_the_first_learns_as_in_pytorch(windows):
    x = torch.randn(4, 16, 11, 11).round(decimals=0)
    x, norm = x.contiguous(memory_format=torch.channels_last), batch_norm(16)
    gradients = []
    for layer in (
        lambda values: layers.pooled(norm, values, windows),
        lambda values: torch.relu(nn.functional.max_pool2d(norm(values), *windows)),
    ):
        leaf = x.clone().requires_grad_()
        result = layer(leaf)
        gradients.append(torch.autograd.grad(result.square().sum(), [leaf, norm.weight, norm.bias]))
    for ours, usual in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, usual, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", ["NCHW", "cut", "gradient repeated"])
def test_values_in_any_order(layout):
    x, norm = torch.randn(2, 16, 12, 14), batch_norm(16)
    expected = layers.pooled(norm, x, Windows())
    if layout == "cut":
        x = torch.cat([x, x], 3)[..., :14]
    leaf = x.requires_grad_()
    result = layers.pooled(norm, leaf, Windows())
    torch.testing.assert_close(result, expected, rtol=0, atol=0)
    gradient = torch.ones(()).expand(result.shape) if layout == "gradient repeated" else torch.randn(result.shape)
    found = torch.autograd.grad(result, leaf, gradient)[0]
    usual = torch.autograd.grad(torch.relu(nn.functional.max_pool2d(norm(leaf), 2)), leaf, gradient)[0]
    torch.testing.assert_close(found, usual, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("inputs", "outputs", "kernel", "stride", "padding", "size"),
    [(32, 48, 3, 2, 1, 9), (32, 48, 3, 2, 1, 10), (32, 16, 1, 2, 0, 7), (64, 64, 3, 1, 1, 4), (32, 32, 5, 3, 0, 5)],
)
def test_convolutions_as_products(inputs, outputs, kernel, stride, padding, size, threads):
    conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding, bias=False)
    conv = conv.to(memory_format=torch.channels_last)
    x = torch.randn(2, inputs, size, size).bfloat16().contiguous(memory_format=torch.channels_last)
    found = []
    for convolve in (lambda leaf: products.convolved(conv, leaf), conv):
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            result = convolve(leaf)
        gradient = torch.ones_like(result) + torch.arange(result.shape[-1]) / 4
        found.append([result, *torch.autograd.grad(result, [leaf, conv.weight], gradient.to(result.dtype))])
    assert found[0][2].dtype == torch.float32 and found[0][2].stride() == conv.weight.stride()
    for ours, usual in zip(*found, strict=True):
        assert ours.dtype == usual.dtype
        torch.testing.assert_close(
            ours.float(), usual.float(), rtol=0.02, atol=0.01 * float(usual.detach().abs().max())
        )


def test_light_to_the_bit(threads):
    grid = Grid(n_pixels=21, pixel_scale=0.05)
    image = torch.rand(3, 2, 21, 21, requires_grad=True)
    beta = [(torch.rand(3, 21, 21) * 1.3 - 0.65).requires_grad_() for _ in range(2)]
    with torch.no_grad():
        for own, axis in zip(beta, grid.coordinates(), strict=True):
            own[0, :2] = axis[:2]  # on the grid
        beta[0][1, 0, :3] = torch.tensor([torch.nan, torch.inf, 1e30])
    expected = splat.summed(image, *beta, grid)
    result = light.summed(image, *(grid.to_pixels(own) for own in beta))
    assert torch.equal(result, expected)
    gradient = torch.randn(result.shape)
    found, usual = (torch.autograd.grad(each, [image, *beta], gradient) for each in (result, expected))
    for ours, its in zip(found, usual, strict=True):
        known = its.isfinite()
        torch.testing.assert_close(ours[known], its[known], rtol=1e-4, atol=1e-4)


def test_a_step_has_the_same_bits_with_any_number_of_threads():
    network = ResNetSimple(ResNetSimpleConfig(dropout=0), n_pixels=48, n_classes=3).train()
    images, usual = torch.rand(5, 1, 48, 48), torch.get_num_threads()
    own = [module for module in network.modules() if isinstance(module, NormalisedConv)]
    first, found = own[0], []
    try:
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            result = first(images)
            found.append([result, *torch.autograd.grad(result.square().sum(), list(first.parameters()))])
    finally:
        torch.set_num_threads(usual)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kernel", ["two", "three", "sum", "splat"])
def test_kernels_have_the_same_bits_with_any_number_of_threads(kernel, dtype):
    x, norm, usual, found = maps(5, 32, 37, 31, dtype).requires_grad_(), batch_norm(32), torch.get_num_threads(), []
    image, column, row = (torch.rand(3, *shape, 40, 40).requires_grad_() for shape in ((1,), (), ()))
    run = {
        "two": lambda: layers.pooled(norm, x, WINDOWS[0]),
        "three": lambda: layers.pooled(norm, x, WINDOWS[1]),
        "sum": lambda: layers.normalised(norm, x, x.detach(), activate=True),
        "splat": lambda: light.summed(image, 40 * column, 40 * row),
    }[kernel]
    leaves = [image, column, row] if kernel == "splat" else [x, norm.weight, norm.bias]
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            result = run()
            found.append([result.detach(), *torch.autograd.grad(result.float().square().sum(), leaves)])
    finally:
        torch.set_num_threads(usual)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_what_is_no_number_is_passed_on():
    x, norm = maps(2, 16, 8, 8), batch_norm(16)
    x[0, 5, 3, 3] = torch.nan
    for result in (layers.pooled(norm, x, Windows()), layers.normalised(norm, x, None, activate=True)):
        assert result[:, 5].isnan().all() and result[:, 6].isfinite().all()


class TestPyTorchsLayersServe:
    """Where the kernels do not apply."""

    def none(self, norm, x):
        return layers.pooled(norm, x, Windows()) is None and layers.normalised(norm, x, None, activate=True) is None

    def test_in_evaluation(self):
        assert self.none(batch_norm(16).eval(), maps(2, 16, 8, 8))

    def test_over_several_processes(self):
        assert self.none(_OverAll.like(batch_norm(16)), maps(2, 16, 8, 8))

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
    def test_other_numbers(self, dtype):
        assert self.none(batch_norm(16), maps(2, 16, 8, 8).to(dtype))
        assert self.none(batch_norm(16).to(dtype), maps(2, 16, 8, 8))

    def test_channels_that_do_not_fill_a_register(self):
        assert self.none(batch_norm(20), maps(2, 20, 8, 8))

    def test_a_single_value_a_channel(self):
        assert self.none(batch_norm(16), maps(1, 16, 1, 1))
        with pytest.raises(ValueError, match="more than 1 value"):
            NormalisedConv(16, 16, padding=1).train()(torch.rand(1, 16, 1, 1))

    def test_without_autocast_or_in_evaluation_a_convolution_stays(self):
        conv, x = nn.Conv2d(32, 32, 3, stride=2, bias=False), maps(1, 32, 8, 8)
        assert products.convolved(conv, x) is None
        with torch.autocast("cpu", torch.bfloat16):
            assert products.convolved(conv, x) is not None
            assert products.convolved(conv.eval(), x) is None

    @pytest.mark.parametrize("precision", ["float32", "bfloat16"])
    def test_with_the_same_results(self, monkeypatch, precision):
        network = ResNetSimple(ResNetSimpleConfig(dropout=0), n_pixels=48, n_classes=3).train()
        images, other = torch.rand(8, 1, 48, 48), copy.deepcopy(network)

        def loss_of(one):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
                return one(images).float().square().mean()

        ours = loss_of(network)
        monkeypatch.setattr("darklens.kernels.calls.library", lambda: None)
        usual = loss_of(other)
        tolerance = 1e-5 if precision == "float32" else 0.03
        torch.testing.assert_close(ours, usual, rtol=tolerance, atol=0)
        state, its = network.state_dict(), other.state_dict()
        assert list(state) == list(its)
        for name in state:
            torch.testing.assert_close(state[name], its[name], rtol=tolerance, atol=tolerance, msg=name)
