"""A training step's convolution, batch normalisation, maximum and ReLU, in fewer passes over memory than PyTorch's.

Each function returns None where the kernels do not apply: not in training, not on the CPU, no compiler, under
torch.compile or in an export, or where normalisation is over several processes. PyTorch's layers give the same then, up
to rounding: the kernels add in float32 and round once, at the end.
"""

import ctypes
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from darklens.kernels.library import library

Maps = Float[Tensor, "b c h w"]


class Windows(NamedTuple):
    """Square windows of a maximum, in pixels."""

    kernel: int = 2
    stride: int = 2
    padding: int = 0

    def over(self, pixels: int) -> int:
        """Return how many there are along an image's side."""
        return (pixels + 2 * self.padding - self.kernel) // self.stride + 1


_POOLS = (Windows(2, 2, 0), Windows(3, 2, 1))
_FIRST_KERNEL, _FIRST_INPUTS = 5, 2
_TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def first_layer(conv: nn.Conv2d, norm: nn.Module, images: Maps, windows: Windows) -> Maps | None:
    """Return relu(maximum(norm(conv(images)))) of a convolution of few channels that no gradient is to leave."""
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
    result: Tensor = _First.apply(images, conv.weight, norm.weight, norm.bias, _tracked(norm), dtype)  # type: ignore[no-untyped-call]
    return result


def pooled(norm: nn.Module, x: Maps, windows: Windows) -> Maps | None:
    """Return relu(maximum(norm(x)))."""
    if windows not in _POOLS or min(x.shape[2:]) < windows.kernel or not _applies(norm, x, x.dtype, x.shape[1]):
        return None
    result: Tensor = _Pooled.apply(x, norm.weight, norm.bias, _tracked(norm), windows)  # type: ignore[no-untyped-call]
    return result


def normalised(norm: nn.Module, x: Maps, other: Maps | None, *, activate: bool) -> Maps | None:
    """Return norm(x), plus `other`, and the ReLU of it."""
    if not _applies(norm, x, x.dtype, x.shape[1]) or (other is not None and other.dtype != x.dtype):
        return None
    result: Tensor = _Normalised.apply(x, other, norm.weight, norm.bias, _tracked(norm), activate)  # type: ignore[no-untyped-call]
    return result


def convolved(conv: nn.Conv2d, x: Maps) -> Maps | None:
    """Return conv(x) by a product of matrices in bfloat16, where that is faster than PyTorch's convolution.

    It is where there are more weights than values, and for strides. Float32 gains nothing.
    """
    padding, stride, kernel = conv.padding[0], conv.stride[0], conv.kernel_size[0]
    if (
        not conv.training
        or not torch.is_autocast_enabled("cpu")
        or torch.get_autocast_dtype("cpu") != torch.bfloat16
        or not isinstance(padding, int)
        or (stride == 1 and (kernel == 1 or conv.weight.numel() < x.numel() * (1 + conv.out_channels / x.shape[1])))
        or not (conv.kernel_size == (kernel, kernel) and conv.padding == (padding, padding))
        or not (conv.stride == (stride, stride) and conv.dilation == (1, 1))
        or not (conv.groups == 1 and conv.bias is None and conv.padding_mode == "zeros")
        or min(x.shape[2:]) + 2 * padding < kernel
        or not _runs(x, torch.bfloat16, conv.in_channels)
    ):
        return None
    result: Tensor = _Convolved.apply(x.to(torch.bfloat16), conv.weight, Windows(kernel, stride, padding))  # type: ignore[no-untyped-call]
    return result


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
        and _runs(x, dtype, channels)
    )


def _runs(x: Tensor, dtype: torch.dtype, channels: int) -> bool:
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[no-untyped-call]
        return False
    if type(x) is not Tensor or x.device.type != "cpu" or dtype not in _TYPES or x.numel() == 0:
        return False
    kernels = library()
    return kernels is not None and channels % kernels.lanes() == 0


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


class _Shape(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("images", "height", "width", "channels", "threads")]  # noqa: RUF012

    @classmethod
    def of(cls, x: Tensor, channels: int | None = None) -> "_Shape":
        return cls(x.shape[0], x.shape[2], x.shape[3], channels or x.shape[1], torch.get_num_threads())


class _Layer(ctypes.Structure):
    _fields_ = [  # noqa: RUF012
        *((name, ctypes.c_void_p) for name in ("scale", "shift", "mean", "inverse", "running_mean", "running_var")),
        *((name, ctypes.c_double) for name in ("eps", "momentum")),
    ]


class _Convolution(ctypes.Structure):
    _fields_ = [  # noqa: RUF012
        ("images", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("by_image", "by_channel", "by_row", "by_column", "inputs")),
        ("weights", ctypes.c_void_p),
    ]


class _Side(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("kernel", "stride", "padding", "height", "width")]  # noqa: RUF012


def _call(name: str, dtype: torch.dtype, *arguments: Any) -> None:
    function: Callable[..., None] = getattr(library(), name.format(_TYPES[dtype]))
    function(*(_pointer(each) for each in arguments))


def _pointer(argument: Any) -> Any:
    if isinstance(argument, ctypes.Structure):
        return ctypes.byref(argument)
    if isinstance(argument, int):
        return ctypes.c_int64(argument)
    return ctypes.c_void_p(_address(argument))


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _in_order(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _maps(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, memory_format=torch.channels_last)


class _Statistics:
    """A layer's weights, and mean and 1 / standard deviation of the batch."""

    def __init__(self, scale: Tensor, mean: Tensor, inverse: Tensor) -> None:
        self.scale, self.mean, self.inverse = scale.contiguous(), mean, inverse

    @classmethod
    def for_batch(cls, scale: Tensor) -> "_Statistics":
        return cls(scale, torch.empty(len(scale)), torch.empty(len(scale)))

    def forward(self, shift: Tensor, tracked: _Tracked) -> _Layer:
        own = (_address(t) for t in (self.scale, shift.contiguous(), self.mean, self.inverse))
        return _Layer(*own, _address(tracked.mean), _address(tracked.variance), tracked.eps, tracked.momentum)

    def backward(self) -> _Layer:
        return _Layer(_address(self.scale), None, _address(self.mean), _address(self.inverse), None, None, 0.0, 0.0)


class _First(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any, images: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, tracked: _Tracked, dtype: torch.dtype
    ) -> Tensor:
        channels, windows = len(weight), _POOLS[0]
        size = (len(images), channels, *(windows.over(side) for side in images.shape[2:]))
        out, extrema, places = (_maps(*size, dtype=kind) for kind in (dtype, dtype, torch.uint8))
        statistics, taps = _Statistics.for_batch(scale), weight.permute(1, 2, 3, 0).contiguous()
        convolution = _Convolution(_address(images), *images.stride(), images.shape[1], _address(taps))
        layer = statistics.forward(shift, tracked)
        _call("first_5_{}_forward", dtype, _Shape.of(images, channels), convolution, layer, extrema, places, out)
        context.save_for_backward(images, taps, scale, statistics.mean, statistics.inverse, extrema, places)
        return out

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, taps, scale, mean, inverse, extrema, places = context.saved_tensors
        d_taps, d_scale, d_shift = (torch.empty_like(t) for t in (taps, mean, mean))
        convolution = _Convolution(_address(images), *images.stride(), images.shape[1], _address(taps))
        statistics, gradient = _Statistics(scale, mean, inverse), _in_order(gradient)
        given = (_Shape.of(images, len(scale)), convolution, statistics.backward(), extrema, places, gradient)
        _call("first_5_{}_backward", extrema.dtype, *given, d_taps, d_scale, d_shift)
        return None, d_taps.permute(3, 0, 1, 2).contiguous(), d_scale, d_shift, None, None


class _Pooled(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, scale: Tensor, shift: Tensor, tracked: _Tracked, windows: Windows) -> Tensor:
        x = _in_order(x)
        size = (*x.shape[:2], *(windows.over(side) for side in x.shape[2:]))
        out, extrema, places = (_maps(*size, dtype=kind) for kind in (x.dtype, x.dtype, torch.uint8))
        statistics = _Statistics.for_batch(scale)
        context.name = "pool_{}_{}_{}_".format(*windows) + "{}"
        layer = statistics.forward(shift, tracked)
        _call(context.name + "_forward", x.dtype, _Shape.of(x), layer, x, extrema, places, out)
        context.save_for_backward(x, scale, statistics.mean, statistics.inverse, extrema, places)
        return out

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, mean, inverse, extrema, places = context.saved_tensors
        d_x, d_scale, d_shift = (torch.empty_like(t) for t in (x, mean, mean))
        statistics, gradient = _Statistics(scale, mean, inverse), _in_order(gradient)
        given = (_Shape.of(x), statistics.backward(), x, extrema, places, gradient)
        _call(context.name + "_backward", x.dtype, *given, d_x, d_scale, d_shift)
        return d_x, d_scale, d_shift, None, None


class _Normalised(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any, x: Tensor, other: Tensor | None, scale: Tensor, shift: Tensor, tracked: _Tracked, activate: bool
    ) -> Tensor:
        x = _in_order(x)
        other = None if other is None else _in_order(other)
        out, statistics = torch.empty_like(x), _Statistics.for_batch(scale)
        layer = statistics.forward(shift, tracked)
        _call("pointwise_{}_forward", x.dtype, _Shape.of(x), layer, x, other, activate, out)
        context.save_for_backward(x, scale, statistics.mean, statistics.inverse, out if activate else None)
        return out

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, mean, inverse, out = context.saved_tensors
        gradient = _in_order(gradient)
        d_x, d_scale, d_shift = (torch.empty_like(t) for t in (x, mean, mean))
        # Without a ReLU the sum passes the gradient on as it is.
        d_other = torch.empty_like(x) if context.needs_input_grad[1] and out is not None else None
        statistics = _Statistics(scale, mean, inverse)
        given = (_Shape.of(x), statistics.backward(), x, out, gradient)
        _call("pointwise_{}_backward", x.dtype, *given, d_x, d_other, d_scale, d_shift)
        if context.needs_input_grad[1] and out is None:
            d_other = gradient
        return d_x, d_other, d_scale, d_shift, None, None


class _Convolved(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, windows: Windows) -> Tensor:
        x = _in_order(x)
        height, width = (windows.over(side) for side in x.shape[2:])
        side, channels, pixels = _Side(*windows, height, width), x.shape[1], len(x) * height * width
        columns = x.new_empty(pixels, windows.kernel**2 * channels)
        _call("unfold_{}", x.dtype, _Shape.of(x), side, x, columns)
        taps = weight.permute(0, 2, 3, 1).reshape(len(weight), -1).to(x.dtype)
        context.save_for_backward(columns, taps)
        context.side, context.like = side, (x.shape, weight.shape)
        return torch.mm(columns, taps.t()).view(len(x), height, width, -1).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        columns, taps = context.saved_tensors
        of_x, (outputs, inputs, *side) = context.like
        gradient = _in_order(gradient).permute(0, 2, 3, 1).reshape(-1, outputs)
        d_weight = torch.mm(gradient.t(), columns).view(outputs, *side, inputs).permute(0, 3, 1, 2)
        if not context.needs_input_grad[0]:
            return None, d_weight, None
        d_x = _maps(*of_x, dtype=gradient.dtype)
        _call("fold_{}", d_x.dtype, _Shape.of(d_x), context.side, torch.mm(gradient, taps), d_x)
        return d_x, d_weight, None
