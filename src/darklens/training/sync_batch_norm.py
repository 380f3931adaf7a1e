"""Batch normalisation over the images of all processes, so that a distributed batch has the statistics of one batch."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def synchronised(network: nn.Module, device: torch.device) -> nn.Module:
    """Return the network with batch normalisation over all processes. Names of weights do not change."""
    if device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]  # no types
        return converted
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, _BatchNorm):
                setattr(module, name, _CpuSyncBatchNorm.from_layer(child))
    return network


class _CpuSyncBatchNorm(_BatchNorm):
    """The equivalent on any device of torch's SyncBatchNorm, which needs a GPU."""

    @classmethod
    def from_layer(cls, layer: _BatchNorm) -> "_CpuSyncBatchNorm":
        """Return a layer with the settings and state of another."""
        new = cls(layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
        new.load_state_dict(layer.state_dict())
        return new.train(layer.training)

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        dims = [i for i in range(input.dim()) if i != 1]
        shape = [-1 if i == 1 else 1 for i in range(input.dim())]
        values = input.float()
        n_local = values.new_full((1,), values.numel() / values.shape[1])
        sums = _sum(torch.cat([values.sum(dims), n_local]))
        n = sums[-1].detach()
        mean = sums[:-1] / n
        offset = values - mean.view(shape)
        var = _sum(offset.square().sum(dims)) / n
        scaled = offset * (var + self.eps).rsqrt().view(shape)
        if self.affine:
            scaled = scaled * self.weight.view(shape) + self.bias.view(shape)
        self._update_running_stats(mean.detach(), var.detach() * n / (n - 1))
        return scaled.to(input.dtype)

    @torch.no_grad()
    def _update_running_stats(self, mean: Tensor, var: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        momentum = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(var, momentum)


class _AllReduceSum(torch.autograd.Function):
    """The sum over all processes. Its gradient is the sum of their gradients, since each loss depends on the sum."""

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total


def _sum(values: Tensor) -> Tensor:
    total: Tensor = _AllReduceSum.apply(values)  # type: ignore[no-untyped-call]  # torch gives it no types
    return total
