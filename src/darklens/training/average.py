"""A running mean of the weights, which is what a stage validates and keeps (Polyak & Juditsky 1992)."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor, nn

from darklens.fit.features import FitFeatures

_BATCHES = 16  # of the end of an epoch; normalisation's statistics are those of their images


class RunningMean(WeightAveraging):
    """An exponential mean over some 1/(1 - decay) steps, with batch normalisation that fits the mean weights.

    Statistics that are averaged like weights belong to no network: on a ResNet-18 in mid-training they made the
    validation loss 2.6 where it is 0.25. So before each validation they are taken anew, from the epoch's last images
    (Izmailov et al. 2018, section 3.2).
    """

    def __init__(self, decay: float) -> None:
        super().__init__(use_buffers=True, multi_avg_fn=_toward(decay))
        self._recent: deque[Tensor | FitFeatures] = deque(maxlen=_BATCHES)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget the epoch before, which a resumed run has not seen."""
        self._recent.clear()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the mean and remember the images."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._recent.append(batch[0])

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the mean weights into place and fit normalisation to them."""
        super().on_validation_epoch_start(trainer, pl_module)
        network = pl_module.get_submodule("network")
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            fit_normalisation(network, list(self._recent))


def fit_normalisation(network: nn.Module, batches: Sequence[Tensor | FitFeatures]) -> None:
    """Replace the statistics of batch normalisation by their mean over `batches`; all else stays in evaluation mode."""
    layers = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not layers or not batches:
        return
    momenta = [layer.momentum for layer in layers]
    network.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a mean over all batches
        layer.train()
    for images in batches:
        network(images)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
        layer.eval()


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
