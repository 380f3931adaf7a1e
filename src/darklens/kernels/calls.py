"""Calling the compiled code: when it applies, and tensors and structures as it takes them."""

import ctypes
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from darklens.kernels.library import library

Maps = Float[Tensor, "b c h w"]
TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


class Windows(NamedTuple):
    """Square windows of a maximum, in pixels."""

    kernel: int = 2
    stride: int = 2
    padding: int = 0

    def over(self, pixels: int) -> int:
        """Return how many there are along an image's side."""
        return (pixels + 2 * self.padding - self.kernel) // self.stride + 1


def applies(x: Tensor, dtype: torch.dtype) -> bool:
    """Return whether kernels can take `x` and give maps of a type: on the CPU, not under torch.compile or an export."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[no-untyped-call, attr-defined]  # no types
        return False
    if type(x) is not Tensor or x.device.type != "cpu" or x.numel() == 0:
        return False
    return dtype in TYPES and library() is not None


def vectors(channels: int) -> bool:
    """Return whether channels fill the processor's registers."""
    return library() is not None and channels % lanes() == 0


def lanes() -> int:
    """Return how many float32 a register of the processor holds; of kernels that apply."""
    kernels = library()
    assert kernels is not None
    return int(kernels.lanes())


def in_tiles() -> bool:
    """Return whether products are of bfloat16, by autocast, and the processor has a matrix unit for them."""
    half = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    kernels = library() if half else None
    return kernels is not None and bool(kernels.tiles())


class Shape(ctypes.Structure):
    """Of images; with the number of threads."""

    _fields_ = [(name, ctypes.c_int64) for name in ("images", "height", "width", "channels", "threads")]

    @classmethod
    def of(cls, x: Tensor, channels: int | None = None) -> "Shape":
        """Return that of images (b, c, h, w), or of maps of as many images with other channels."""
        return cls(x.shape[0], x.shape[2], x.shape[3], channels or x.shape[1], torch.get_num_threads())


class Layer(ctypes.Structure):
    """A normalisation's arrays and settings."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("scale", "shift", "mean", "inverse", "running_mean", "running_var")),
        *((name, ctypes.c_double) for name in ("eps", "momentum")),
    ]


class Convolution(ctypes.Structure):
    """The images of a first layer, their steps in memory, and its weights."""

    _fields_ = [
        ("images", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("by_image", "by_channel", "by_row", "by_column", "inputs")),
        ("weights", ctypes.c_void_p),
    ]


class Side(ctypes.Structure):
    """A convolution's square, and the size of what it makes."""

    _fields_ = [(name, ctypes.c_int64) for name in ("kernel", "stride", "padding", "height", "width")]


def apply(function: type[torch.autograd.Function], *arguments: Any) -> Tensor:
    """Return what a function that brings its own gradient makes of its arguments."""
    result: Tensor = function.apply(*arguments)  # type: ignore[no-untyped-call]  # torch gives it no types
    return result


def call(name: str, *arguments: Any) -> None:
    """Call a function of the library with tensors, structures and whole numbers."""
    getattr(library(), name)(*(_pointer(each) for each in arguments))


def _pointer(argument: Any) -> Any:
    if isinstance(argument, ctypes.Structure):
        return ctypes.byref(argument)
    if isinstance(argument, int):
        return ctypes.c_int64(argument)
    return ctypes.c_void_p(address(argument))


def address(tensor: Tensor | None) -> int | None:
    """Return where a tensor's values are."""
    return None if tensor is None else tensor.data_ptr()


def in_order(x: Tensor) -> Tensor:
    """Return maps in channels-last order."""
    return x.contiguous(memory_format=torch.channels_last)


def maps(*shape: int, dtype: torch.dtype) -> Tensor:
    """Return memory for maps in channels-last order."""
    return torch.empty(shape, dtype=dtype, memory_format=torch.channels_last)
