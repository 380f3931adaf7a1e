"""Convolutions by the matrix unit against PyTorch's in float64, of the same bfloat16 operands."""

import subprocess
from pathlib import Path

import pytest
import torch
from kernels import must_have_tiles
from torch import nn

from darklens.kernels import library as library_module
from darklens.kernels import products
from darklens.kernels.calls import Windows
from darklens.kernels.library import library

pytestmark = pytest.mark.skipif(not must_have_tiles(), reason="no g++, or a processor without a matrix unit")

ROUNDING = 2.0**-8  # of bfloat16, relative
# Images, inputs, outputs, height, width; the kernel's side, stride, padding.
SIZES = [
    (16, 32, 64, 5, 5, 3, 1, 1),
    (15, 64, 32, 7, 6, 3, 1, 1),
    (15, 512, 512, 5, 5, 3, 1, 1),  # more weights than values
    (15, 64, 64, 38, 38, 3, 1, 1),  # rows in parts
    (33, 32, 96, 9, 4, 3, 1, 1),  # three groups of images
    (12, 96, 32, 9, 11, 3, 1, 0),
    (16, 64, 64, 3, 3, 3, 1, 0),
    (16, 32, 32, 1, 2, 3, 1, 1),
    (16, 32, 32, 4, 3, 3, 1, 2),
    (16, 16, 32, 9, 8, 3, 1, 0),  # channels that do not fill a tile
    (16, 80, 48, 37, 40, 3, 1, 1),
    (15, 48, 16, 7, 5, 3, 2, 1),
    (10, 48, 80, 6, 7, 1, 2, 0),
    (15, 64, 128, 38, 19, 3, 2, 1),
    (15, 256, 512, 10, 10, 3, 2, 1),
    (16, 32, 64, 8, 7, 3, 2, 0),
    (16, 32, 32, 2, 1, 3, 2, 2),
    (24, 32, 32, 12, 11, 3, 3, 1),
    (15, 64, 128, 38, 19, 1, 2, 0),
    (32, 96, 64, 5, 10, 1, 3, 0),
]


@pytest.fixture
def threads():
    """How many are set, which comes back."""
    usual = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(usual)


def in_order(*size):
    return torch.randn(size).contiguous(memory_format=torch.channels_last)


def convolution(size):
    """Return a convolution, values and a gradient, all of numbers that bfloat16 has."""
    torch.manual_seed(0)
    images, inputs, outputs, height, width, *square = size
    conv = nn.Conv2d(inputs, outputs, *square, bias=False).to(memory_format=torch.channels_last)
    conv.weight.data = conv.weight.data.bfloat16().float()
    x = in_order(images, inputs, height, width).bfloat16()
    gradient = in_order(images, outputs, *(Windows(*square).over(side) for side in (height, width))).bfloat16()
    return conv, x, gradient


def outcome(conv, x, gradient, convolve=products.convolved):
    """Return the values, and the gradients of x and the weights."""
    leaf = x.detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        result = convolve(conv, leaf)
    return result.detach(), *torch.autograd.grad(result, [leaf, conv.weight], gradient)


def exact(conv, x, gradient):
    leaf, weight = x.double().requires_grad_(), conv.weight.detach().double().requires_grad_()
    result = nn.functional.conv2d(leaf, weight, stride=conv.stride, padding=conv.padding)
    return result.detach(), *torch.autograd.grad(result, [leaf, weight], gradient.double())


def same(found, other):
    return all(torch.equal(a, b) for a, b in zip(found, other, strict=True))


def test_the_matrix_unit_can_be_used():
    assert library().tiles() == 1


@pytest.mark.parametrize("size", SIZES)
def test_values_and_gradients(size):
    operands = convolution(size)
    found, expected = outcome(*operands), exact(*operands)
    for ours, its, share in zip(found, expected, (ROUNDING, ROUNDING, 0), strict=True):
        # Beside one rounding, that of sums in float32.
        allowed = share * its.abs() + 1e-5 * its.abs().max()
        assert ours.shape == its.shape and bool(((ours.double() - its).abs() <= allowed).all())
    assert [each.dtype for each in found] == [torch.bfloat16, torch.bfloat16, torch.float32]
    assert all(each.is_contiguous(memory_format=torch.channels_last) for each in found)


@pytest.mark.parametrize(
    "size", [SIZES[2], SIZES[9], SIZES[10], (32, 64, 96, 12, 9, 3, 1, 1), (15, 64, 64, 38, 20, 3, 1, 0)]
)
def test_the_same_bits_with_any_number_of_threads(size, threads):
    operands, found = convolution(size), []
    for number in (1, 2, 3, 7):
        threads(number)
        found.append(outcome(*operands))
    assert all(same(found[0], other) for other in found[1:])


def test_weights_are_rounded_to_the_nearest():
    conv, x, gradient = convolution((16, 32, 32, 5, 5, 3, 1, 1))
    fine = 1 + torch.rand_like(conv.weight)
    conv.weight.data = fine
    found = outcome(conv, x, gradient)
    conv.weight.data = fine.bfloat16().float()
    assert same(found, outcome(conv, x, gradient))


def test_weights_and_values_in_any_order():
    conv, x, gradient = convolution((16, 32, 32, 5, 5, 3, 1, 1))
    found = outcome(conv, x, gradient)
    conv.weight.data = conv.weight.data.contiguous()
    x = torch.cat([x, x], 3)[..., :5].contiguous()
    assert same(found, outcome(conv, x, gradient.contiguous()))


def test_what_is_no_number_reaches_what_sees_it():
    conv, x, gradient = convolution((16, 32, 32, 6, 6, 3, 1, 1))
    x[3, 5, 0, 0] = torch.nan
    result = outcome(conv, x, gradient)[0]
    assert result[3, :, :2, :2].isnan().all()
    result[3, :, :2, :2] = 0
    assert result.isfinite().all()


def test_weights_take_the_gradient_without_a_copy(monkeypatch):
    conv, x, gradient = convolution((16, 32, 32, 5, 5, 3, 1, 1))
    made, usual = [], products.maps

    def noted(*shape, dtype):
        made.append((result := usual(*shape, dtype=dtype)).data_ptr())  # who held the gradient would have it copied
        return result

    monkeypatch.setattr(products, "maps", noted)
    with torch.autocast("cpu", torch.bfloat16):
        products.convolved(conv, x).backward(gradient)
    assert conv.weight.grad.data_ptr() in made


def test_pytorchs_own_use_of_the_matrix_unit_is_left_alone(threads):
    """It keeps the shapes of tiles in each thread, and does not look whether they are still there."""
    threads(2)
    ours = convolution((12, 64, 64, 9, 9, 3, 1, 1))
    sizes = [(7, 48, 80, 9, 9, 3, 1, 1), (3, 64, 64, 6, 5, 3, 1, 0)]
    others = [convolution(size) for size in sizes]
    matrix = torch.randn(83, 77).bfloat16()
    run = [lambda: outcome(*ours), lambda: (matrix @ matrix.t(),)]
    run += [lambda own=own: outcome(*own, convolve=lambda conv, x: conv(x)) for own in others]
    expected = [each() for each in run]
    for i, j in [(i, j) for i in range(len(run)) for j in range(len(run))] * 3:
        assert same(run[i](), expected[i]) and same(run[j](), expected[j])
    exactly = matrix.double() @ matrix.double().t()
    torch.testing.assert_close(expected[1][0].double(), exactly, rtol=ROUNDING, atol=1e-3)


def test_a_threads_shapes_of_tiles_come_back(tmp_path):
    """What the test before cannot tell: PyTorch may, but need not, set them anew."""
    source = tmp_path / "shapes.cpp"
    source.write_text("""
        #include "tiles.h"
        struct Read {
            Read() { written(bytes); _tile_storeconfig(bytes); written(bytes); }
            alignas(64) uint8_t bytes[64];
        };
        int main() {
            if (!tiles_allowed()) return 1;
            {
                const Tiles outer(5);
                const Read before;
                { const Tiles inner(9); }
                const Read after;
                if (before.bytes[48] != 5 || std::memcmp(before.bytes, after.bytes, 64) != 0) return 2;
            }
            return Read().bytes[0] == 0 ? 0 : 3;
        }
    """)
    program = tmp_path / "shapes"
    folder = Path(products.__file__).parent
    subprocess.run(["g++", *library_module._FLAGS, f"-I{folder}", str(source), "-o", str(program)], check=True)
    assert subprocess.run([str(program)], check=False).returncode == 0


class TestPyTorchsConvolutionServes:
    """Where the matrix unit does not, or only in vain."""

    def convolved(self, conv, *size):
        with torch.autocast("cpu", torch.bfloat16):
            return products.convolved(conv, in_order(*size))

    def test_without_a_matrix_unit(self, monkeypatch):
        conv = nn.Conv2d(32, 32, 3, padding=1, bias=False)
        assert self.convolved(conv, 16, 32, 5, 5) is not None
        monkeypatch.setattr(library(), "tiles", lambda: 0)
        assert self.convolved(conv, 16, 32, 5, 5) is None

    @pytest.mark.parametrize("images", [1, 9, 17])
    def test_images_that_do_not_fill_tiles(self, images):
        assert self.convolved(nn.Conv2d(32, 32, 3, padding=1, bias=False), images, 32, 19, 19) is None

    @pytest.mark.parametrize(
        ("inputs", "outputs", "settings"),
        [
            (8, 32, {}),
            (32, 40, {}),
            (32, 32, {"kernel_size": 5}),
            (32, 32, {"kernel_size": 1}),
            (32, 32, {"bias": True}),
            (32, 32, {"dilation": 2}),
            (32, 32, {"groups": 2}),
            (32, 32, {"padding": "same"}),
            (32, 32, {"padding": (1, 0)}),
            (32, 32, {"padding": 3}),
            (32, 32, {"padding_mode": "circular", "padding": 1}),
            (32, 32, {"dtype": torch.float64}),
        ],
    )
    def test_other_convolutions(self, inputs, outputs, settings):
        conv = nn.Conv2d(inputs, outputs, **{"kernel_size": 3, "bias": False} | settings)
        assert self.convolved(conv, 16, inputs, 9, 9) is None
