"""Convolutions as products of matrices."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from darklens.kernels.calls import Maps, Shape, Side, Windows, applies, apply, call, in_order, in_tiles, maps, vectors

_KERNELS = (1, 3)  # pixels a side, by the matrix unit
_TILE = 16  # images, and channels
_FULL = 0.6  # of the images in tiles, from where it is faster


def convolved(conv: nn.Conv2d, x: Maps) -> Float[Tensor, "b d p q"] | None:
    """Return conv(x) by products of matrices in bfloat16, where that is faster than PyTorch's convolution.

    It is by the processor's matrix unit for 3 x 3 pixels and for strides; without one, for strides and where there are
    more weights than values. Float32 gains nothing.
    """
    padding, stride, kernel = conv.padding[0], conv.stride[0], conv.kernel_size[0]
    if (
        not conv.training
        or not torch.is_autocast_enabled("cpu")
        or torch.get_autocast_dtype("cpu") != torch.bfloat16
        or not isinstance(padding, int)
        or (stride == 1 and kernel == 1)
        or not (conv.kernel_size == (kernel, kernel) and conv.padding == (padding, padding))
        or not (conv.stride == (stride, stride) and conv.dilation == (1, 1))
        or not (conv.groups == 1 and conv.bias is None and conv.padding_mode == "zeros")
        or conv.weight.dtype != torch.float32
        or min(x.shape[2:]) + 2 * padding < kernel
        or not applies(x, torch.bfloat16)
    ):
        return None
    windows = Windows(kernel, stride, padding)
    if kernel in _KERNELS and padding < kernel and _fill_tiles(conv, x):
        return apply(_Tiled, x.to(torch.bfloat16), conv.weight, windows)
    more_weights = conv.weight.numel() >= x.numel() * (1 + conv.out_channels / x.shape[1])
    if (stride > 1 or more_weights) and vectors(conv.in_channels):
        return apply(_Unfolded, x.to(torch.bfloat16), conv.weight, windows)
    return None


def _fill_tiles(conv: nn.Conv2d, x: Maps) -> bool:
    return (
        in_tiles()
        and conv.in_channels % _TILE == conv.out_channels % _TILE == 0
        and len(x) >= _FULL * (len(x) + -len(x) % _TILE)
    )


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, windows: Windows) -> Tensor:
        x, taps = in_order(x), in_order(weight)
        height, width = (windows.over(side) for side in x.shape[2:])
        context.side, context.name = Side(*windows, height, width), f"convolution_{windows.kernel}"
        out = maps(len(x), len(taps), height, width, dtype=x.dtype)
        call(context.name + "_forward", Shape.of(x), context.side, len(taps), x, taps, out)
        context.save_for_backward(x, taps)
        return out

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, taps = context.saved_tensors
        gradient, d_x, d_weight = in_order(gradient), None, maps(*taps.shape, dtype=taps.dtype)
        given = (Shape.of(x), context.side, len(taps))
        if context.needs_input_grad[0]:
            d_x = torch.empty_like(x)
            call(context.name + "_backward", *given, gradient, taps, d_x)
        call(context.name + "_weights", *given, x, gradient, d_weight)
        return d_x, d_weight, None


class _Unfolded(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, windows: Windows) -> Tensor:
        x = in_order(x)
        height, width = (windows.over(side) for side in x.shape[2:])
        side, channels, pixels = Side(*windows, height, width), x.shape[1], len(x) * height * width
        columns = x.new_empty(pixels, windows.kernel**2 * channels)
        call("unfold_bfloat16", Shape.of(x), side, x, columns)
        taps = weight.permute(0, 2, 3, 1).reshape(len(weight), -1).to(x.dtype)
        context.save_for_backward(columns, taps)
        context.side, context.like = side, (x.shape, weight.shape)
        return torch.mm(columns, taps.t()).view(len(x), height, width, -1).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        columns, taps = context.saved_tensors
        of_x, (outputs, inputs, *side) = context.like
        gradient = in_order(gradient).permute(0, 2, 3, 1).reshape(-1, outputs)
        d_weight = torch.mm(gradient.t(), columns).view(outputs, *side, inputs).permute(0, 3, 1, 2)
        if not context.needs_input_grad[0]:
            return None, d_weight, None
        d_x = maps(*of_x, dtype=gradient.dtype)
        call("fold_bfloat16", Shape.of(d_x), context.side, torch.mm(gradient, taps), d_x)
        return d_x, d_weight, None
