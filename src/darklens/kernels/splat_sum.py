"""The splat that sums as a compiled kernel, in one pass over memory instead of some forty."""

import ctypes
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from darklens.kernels.calls import applies, call

Image = Float[Tensor, "b c n n"]
Position = Float[Tensor, "b n n"]


def summed(image: Image, column: Position, row: Position) -> Image | None:
    """Return the light of all pixels summed where it lands: the bits of `darklens.physics.splat.summed`.

    Args:
        image: Images.
        column: The column to which each pixel's light moves, in pixels.
        row: The row to which it moves, in pixels.

    Returns:
        The summed light; None where the kernels do not apply.
    """
    if not all(applies(tensor) for tensor in (image, column, row)):
        return None
    total: Tensor = _Summed.apply(image, column, row)  # type: ignore[no-untyped-call]  # torch gives it no types
    return total


class _Shape(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("images", "channels", "pixels", "threads")]

    @classmethod
    def of(cls, image: Image) -> "_Shape":
        return cls(*image.shape[:3], torch.get_num_threads())


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, image: Tensor, column: Tensor, row: Tensor) -> Tensor:
        image, column, row = image.contiguous(), column.contiguous(), row.contiguous()
        total = torch.empty_like(image)
        call("splat_forward", _Shape.of(image), image, column, row, total)
        context.save_for_backward(image, column, row)
        return total

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        image, column, row = context.saved_tensors
        d_image = torch.empty_like(image) if context.needs_input_grad[0] else None
        d_column, d_row = torch.empty_like(column), torch.empty_like(row)
        gradient = gradient.contiguous()
        call("splat_backward", _Shape.of(image), image, column, row, gradient, d_image, d_column, d_row)
        return d_image, d_column, d_row
