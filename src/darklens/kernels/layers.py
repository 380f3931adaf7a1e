"""A training step's convolution, batch normalisation, maximum and ReLU, in fewer passes over memory than PyTorch's.

Each function returns None where the kernels do not apply: not in training, not on the CPU, no compiler, under
torch.compile or in an export, or where normalisation is over several processes. PyTorch's layers give the same then, up
to rounding: the kernels add in float32 and round once, at the end.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from darklens.kernels.calls import (
    TYPES,
    Convolution,
    Layer,
    Maps,
    Shape,
    Windows,
    address,
    applies,
    apply,
    call,
    in_order,
    maps,
    vectors,
)

_POOLS = (Windows(2, 2, 0), Windows(3, 2, 1))
_FIRST_KERNEL, _FIRST_INPUTS = 5, 2


def first_layer(conv: nn.Conv2d, norm: nn.Module, images: Maps, windows: Windows) -> Float[Tensor, "b d p q"] | None:
    """Return relu(maximum(norm(conv(images)))) of a convolution of few channels that no gradient is to leave.

    Args:
        conv: 5 x 5 pixels of one or two channels, stride 1, the size kept, without bias.
        norm: Of its d channels.
        images: float32; the result is of autocast's type.
        windows: 2 x 2 pixels, apart.
    """
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else images.dtype
    if (
        images.dtype != torch.float32
        or (images.requires_grad and torch.is_grad_enabled())
        or windows != _POOLS[0]
        or not _is_first(conv)
        or not _applies(norm, images, dtype, conv.out_channels)
        or min(images.shape[2:]) < windows.kernel
    ):
        return None
    return apply(_First, images, conv.weight, norm.weight, norm.bias, _tracked(norm), dtype)


def pooled(norm: nn.Module, x: Maps, windows: Windows) -> Float[Tensor, "b d p q"] | None:
    """Return relu(maximum(norm(x))) over windows of 2 x 2 pixels apart, or of 3 x 3 that overlap by one."""
    if windows not in _POOLS or min(map(windows.over, x.shape[2:])) < 1 or not _applies(norm, x, x.dtype, x.shape[1]):
        return None
    return apply(_Pooled, x, norm.weight, norm.bias, _tracked(norm), windows)


def normalised(norm: nn.Module, x: Maps, other: Maps | None, *, activate: bool) -> Maps | None:
    """Return norm(x), plus `other` of the same shape if it is given, and the ReLU of it if asked to `activate`."""
    if not _applies(norm, x, x.dtype, x.shape[1]) or (other is not None and other.dtype != x.dtype):
        return None
    return apply(_Normalised, x, other, norm.weight, norm.bias, _tracked(norm), activate)


def _is_first(conv: nn.Conv2d) -> bool:
    side, margin = (_FIRST_KERNEL,) * 2, (_FIRST_KERNEL // 2,) * 2
    return (
        type(conv) is nn.Conv2d
        and conv.in_channels <= _FIRST_INPUTS
        and (conv.kernel_size, conv.padding, conv.stride, conv.dilation) == (side, margin, (1, 1), (1, 1))
        and (conv.groups, conv.bias, conv.padding_mode) == (1, None, "zeros")
        and conv.weight.dtype == torch.float32
    )


def _applies(norm: nn.Module, x: Tensor, dtype: torch.dtype, channels: int) -> bool:
    return (
        type(norm) is nn.BatchNorm2d
        and norm.training
        and norm.weight is not None
        and norm.weight.dtype == torch.float32
        and x.numel() > x.shape[1]  # PyTorch's layer has a word on a single value
        and applies(x, dtype)
        and vectors(channels)
    )


class _Tracked(NamedTuple):
    """What a normalisation has beside its weights."""

    mean: Tensor | None
    variance: Tensor | None
    eps: float
    momentum: float  # share of the batch in the running statistics


def _tracked(norm: nn.Module) -> _Tracked:
    assert isinstance(norm, nn.BatchNorm2d)
    if norm.running_mean is None or norm.num_batches_tracked is None:
        return _Tracked(None, None, norm.eps, 0.0)
    norm.num_batches_tracked.add_(1)
    share = 1 / int(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    return _Tracked(norm.running_mean, norm.running_var, norm.eps, share)


class _Statistics:
    """A layer's weights, and mean and 1 / standard deviation of the batch."""

    def __init__(self, scale: Tensor, mean: Tensor, inverse: Tensor) -> None:
        self.scale, self.mean, self.inverse = scale.contiguous(), mean, inverse

    @classmethod
    def for_batch(cls, scale: Tensor) -> "_Statistics":
        return cls(scale, torch.empty(len(scale)), torch.empty(len(scale)))

    def forward(self, shift: Tensor, tracked: _Tracked) -> Layer:
        own = (address(t) for t in (self.scale, shift.contiguous(), self.mean, self.inverse))
        return Layer(*own, address(tracked.mean), address(tracked.variance), tracked.eps, tracked.momentum)

    def backward(self) -> Layer:
        return Layer(address(self.scale), None, address(self.mean), address(self.inverse), None, None, 0.0, 0.0)


class _First(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any,
        images: Tensor,
        weight: Tensor,
        scale: Tensor,
        shift: Tensor,
        tracked: _Tracked,
        dtype: torch.dtype,
    ) -> Tensor:
        channels, windows = len(weight), _POOLS[0]
        size = (len(images), channels, *(windows.over(side) for side in images.shape[2:]))
        out, extrema, places = (maps(*size, dtype=kind) for kind in (dtype, dtype, torch.uint8))
        statistics, taps = _Statistics.for_batch(scale), weight.permute(1, 2, 3, 0).contiguous()
        convolution = Convolution(address(images), *images.stride(), images.shape[1], address(taps))
        layer = statistics.forward(shift, tracked)
        call(f"first_5_{TYPES[dtype]}_forward", Shape.of(images, channels), convolution, layer, extrema, places, out)
        context.save_for_backward(images, taps, scale, statistics.mean, statistics.inverse, extrema, places)
        return out

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, taps, scale, mean, inverse, extrema, places = context.saved_tensors
        d_taps, d_scale, d_shift = (torch.empty_like(t) for t in (taps, mean, mean))
        convolution = Convolution(address(images), *images.stride(), images.shape[1], address(taps))
        statistics, gradient = _Statistics(scale, mean, inverse), in_order(gradient)
        given = (Shape.of(images, len(scale)), convolution, statistics.backward(), extrema, places, gradient)
        call(f"first_5_{TYPES[extrema.dtype]}_backward", *given, d_taps, d_scale, d_shift)
        return None, d_taps.permute(3, 0, 1, 2).contiguous(), d_scale, d_shift, None, None


class _Pooled(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, scale: Tensor, shift: Tensor, tracked: _Tracked, windows: Windows) -> Tensor:
        x = in_order(x)
        size = (*x.shape[:2], *(windows.over(side) for side in x.shape[2:]))
        out, extrema, places = (maps(*size, dtype=kind) for kind in (x.dtype, x.dtype, torch.uint8))
        statistics = _Statistics.for_batch(scale)
        context.name = "pool_{}_{}_{}_".format(*windows) + TYPES[x.dtype]
        layer = statistics.forward(shift, tracked)
        call(context.name + "_forward", Shape.of(x), layer, x, extrema, places, out)
        context.save_for_backward(x, scale, statistics.mean, statistics.inverse, extrema, places)
        return out

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, mean, inverse, extrema, places = context.saved_tensors
        d_x, d_scale, d_shift = (torch.empty_like(t) for t in (x, mean, mean))
        statistics, gradient = _Statistics(scale, mean, inverse), in_order(gradient)
        given = (Shape.of(x), statistics.backward(), x, extrema, places, gradient)
        call(context.name + "_backward", *given, d_x, d_scale, d_shift)
        return d_x, d_scale, d_shift, None, None


class _Normalised(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any, x: Tensor, other: Tensor | None, scale: Tensor, shift: Tensor, tracked: _Tracked, activate: bool
    ) -> Tensor:
        x = in_order(x)
        other = None if other is None else in_order(other)
        out, statistics = torch.empty_like(x), _Statistics.for_batch(scale)
        layer = statistics.forward(shift, tracked)
        call(f"pointwise_{TYPES[x.dtype]}_forward", Shape.of(x), layer, x, other, activate, out)
        context.save_for_backward(x, scale, statistics.mean, statistics.inverse, out if activate else None)
        return out

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, mean, inverse, out = context.saved_tensors
        gradient = in_order(gradient)
        d_x, d_scale, d_shift = (torch.empty_like(t) for t in (x, mean, mean))
        # Without a ReLU the sum passes the gradient on as it is.
        d_other = torch.empty_like(x) if context.needs_input_grad[1] and out is not None else None
        statistics = _Statistics(scale, mean, inverse)
        given = (Shape.of(x), statistics.backward(), x, out, gradient)
        call(f"pointwise_{TYPES[x.dtype]}_backward", *given, d_x, d_other, d_scale, d_shift)
        if context.needs_input_grad[1] and out is None:
            d_other = gradient
        return d_x, d_other, d_scale, d_shift, None, None
