"""A running mean of the weights, which is what a stage validates and keeps (Polyak & Juditsky 1992)."""

from collections.abc import Callable

import torch
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor


def running_mean(decay: float) -> WeightAveraging:
    """Return Lightning's callback for an exponential mean over some 1/(1 - decay) steps."""
    return WeightAveraging(use_buffers=True, multi_avg_fn=_toward(decay))


def _toward(decay: float) -> Callable[[list[Tensor], list[Tensor], Tensor | int], None]:
    @torch.no_grad()
    def update(mean: list[Tensor], current: list[Tensor], n_averaged: Tensor | int) -> None:
        # The first steps count for less: with a fixed decay the mean would long remember the random start.
        n = int(n_averaged)
        kept = min(decay, (1 + n) / (10 + n))
        if mean[0].is_floating_point():
            torch._foreach_lerp_(mean, current, 1 - kept)
        else:  # the batches that a normalisation has counted
            for old, new in zip(mean, current, strict=True):
                old.copy_(new)

    return update
