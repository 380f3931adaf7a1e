"""Adam and AdamW in one pass over the weights, in whatever order these lie in memory."""

from typing import Any

import torch
from torch import Tensor


class _InMemoryOrder:
    """PyTorch's fused step first copies each gradient in channels-last order, which takes longer than the step.

    The rule is the same for each weight, so it is given the same memory as plain arrays.
    """

    def _init_group(self, group: dict[str, Any], *lists: list[Tensor]) -> Any:  # the only place before the fused call
        result = super()._init_group(group, *lists)  # type: ignore[misc]  # of the optimiser beside it
        weights, gradients, means, squares = lists[:4]
        for i, its in enumerate(zip(weights, gradients, means, squares, strict=True)):
            if not its[0].is_cuda and all(t.dim() == 4 and t.stride() == its[0].stride() for t in its):
                order = sorted(range(4), key=its[0].stride, reverse=True)
                weights[i], gradients[i], means[i], squares[i] = (t.permute(order) for t in its)
        return result


class Adam(_InMemoryOrder, torch.optim.Adam):
    """Adam (Kingma & Ba 2015)."""


class AdamW(_InMemoryOrder, torch.optim.AdamW):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""
