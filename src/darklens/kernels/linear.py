"""A linear layer of many weights, for a batch of few images."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from darklens.kernels.calls import applies, apply, call, in_tiles

_FEWEST_WEIGHTS = 2**20
_MOST_IMAGES = 64  # in tiles that the processor has at once
_MULTIPLE = 32  # of inputs and outputs


class WideLinear(nn.Linear):
    """A linear layer whose weights a step reads once, where a kernel can: see `wide`. Names of weights are as there."""

    def forward(self, input: Float[Tensor, "b n"]) -> Float[Tensor, "b d"]:
        """Return weight @ input + bias of each row."""
        found = wide(self, input)
        return super().forward(input) if found is None else found


def wide(layer: nn.Linear, x: Float[Tensor, "b n"]) -> Float[Tensor, "b d"] | None:
    """Return layer(x) in mixed precision by the matrix unit; None where PyTorch's layer is as fast.

    PyTorch makes a copy of the weights in bfloat16 and one of their gradient in float32, which takes longer than the
    products of a few images.
    """
    outputs, inputs = layer.weight.shape
    if (
        not layer.training
        or layer.weight.numel() < _FEWEST_WEIGHTS
        or len(x) > _MOST_IMAGES
        or (inputs % _MULTIPLE, outputs % _MULTIPLE) != (0, 0)
        or layer.weight.dtype != torch.float32
        or not layer.weight.is_contiguous()
        or not applies(x, torch.bfloat16)
        or not in_tiles()
    ):
        return None
    y = apply(_Wide, x.to(torch.bfloat16), layer.weight)
    return (y if layer.bias is None else y + layer.bias).to(torch.bfloat16)


class _Wide(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor) -> Tensor:
        x = x.contiguous()
        context.save_for_backward(x, weight)
        y = torch.empty(len(x), len(weight))
        call("linear_forward", *_size(x, weight), x, weight, y)
        return y

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = context.saved_tensors
        size, gradient = _size(x, weight), gradient.to(x.dtype).contiguous()
        d_x, d_weight = None, torch.empty_like(weight)
        if context.needs_input_grad[0]:
            d_x = torch.empty(x.shape)
            call("linear_backward", *size, gradient, weight, d_x)
        call("linear_weights", *size, gradient, x, d_weight)
        return d_x, d_weight


def _size(x: Tensor, weight: Tensor) -> tuple[int, ...]:
    return len(x), x.shape[1], len(weight), torch.get_num_threads()
