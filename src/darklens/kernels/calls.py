"""Calling the compiled code: when it applies, and how tensors and structures are passed."""

import ctypes
from typing import Any

import torch
from torch import Tensor

from darklens.kernels.library import library


def applies(x: Tensor) -> bool:
    """Return whether the kernels take `x`: float32, on the CPU, not under torch.compile or in an export."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[no-untyped-call, attr-defined]  # no types
        return False
    if type(x) is not Tensor or x.device.type != "cpu" or x.dtype != torch.float32 or x.numel() == 0:
        return False
    return library() is not None


def lanes() -> int:
    """Return how many float32 a register of the processor holds. Only where the kernels apply."""
    kernels = library()
    assert kernels is not None
    return int(kernels.lanes())


def call(name: str, *arguments: Any) -> None:
    """Call a function of the library with tensors, structures, integers and pointers."""
    getattr(library(), name)(*(_pointer(argument) for argument in arguments))


def _pointer(argument: Any) -> Any:
    if isinstance(argument, ctypes.Structure):
        return ctypes.byref(argument)
    if isinstance(argument, int):
        return ctypes.c_int64(argument)
    if isinstance(argument, ctypes.c_void_p | ctypes.Array):
        return argument
    return ctypes.c_void_p(address(argument))


def address(tensor: Tensor | None) -> int | None:
    """Return the address of a tensor's values; None of None."""
    return None if tensor is None else tensor.data_ptr()
