"""The Lightning module around any system: loss, optimiser, validation metrics, reproducible randomness."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from darklens import rng
from darklens.data.preprocess import BatchRandom, Dihedral
from darklens.evaluation.metrics import macro_auc
from darklens.fit.cache import FitSettings
from darklens.fit.features import FitFeatures
from darklens.models.autoencoder import reconstruction_error
from darklens.training.processes import ALONE, Processes
from darklens.training.recipe import DataConfig, OneCycle, Plateau, Stage

Batch = Sequence[Any]  # images or their fits, and labels; torch's loader makes it a list


class Learner(pl.LightningModule):
    """Trains `network` for one stage.

    Randomness is addressed by (seed, stage, epoch, batch), so a resumed run repeats the interrupted one. Of several
    processes each has a part of every batch, of `batch_size` images in all; but for dropout's masks and what a system
    makes of a whole batch, they learn what one would. With `fit_settings`, lenses are fitted to images that come
    without fits.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        stage: Stage,
        number: int,
        data: DataConfig,
        seed: int,
        batch_size: int,
        processes: Processes = ALONE,
        fit_settings: FitSettings | None = None,
    ) -> None:
        super().__init__()
        self._fit_settings = fit_settings
        self._batch_size, self._processes = batch_size, processes
        self.network = network
        self._stage = stage
        self._number = number
        self._data = data
        self._seed = seed
        self._seen: list[list[Tensor]] = []

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Pre-process, and in training augment, a whole batch on the device."""
        images, labels = batch
        if isinstance(images, FitFeatures):  # the maps turn as the images would, the summary does not
            if self.trainer.training and isinstance(self._data.augment, Dihedral):
                images = images._replace(maps=self._data.augment.apply(images.maps, self._draws()))
            return images, labels
        if self.trainer.training or self._data.legacy_augmented_validation:
            images = self._data.preprocess.augmented(images, self._data.augment, self._draws())
        else:
            images = self._data.preprocess(images)
        if self._stage.bin > 1:
            images = nn.functional.avg_pool2d(images, self._stage.bin)
        if self._fit_settings is not None:
            return self._fit_settings.extract_features(images[:, 0].float()), labels
        return images.contiguous(memory_format=torch.channels_last), labels

    def _draws(self) -> BatchRandom:
        part = "train" if self.trainer.training else "validation"
        address = (part, self._number, self.current_epoch, self.global_step, len(self._seen))
        generator = torch.Generator().manual_seed(rng.integer_seed(self._seed, "augment", *address))
        if not self._processes.several:
            return BatchRandom(generator)
        return BatchRandom(generator, self._processes.part.of(self._batch_size).start, self._batch_size)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the batch's mean loss."""
        images, labels = batch
        # Dropout's randomness. Set at every step, since Lightning leaves out the epoch's start in a resumed run.
        who = (self._processes.place.rank,) if self._processes.several else ()
        self._seed_device(rng.integer_seed(self._seed, "network", self._number, self.global_step, *who))
        # A system of several parts may have a loss of its own for each.
        own = getattr(self.network, "losses", None)
        loss = (own(images, labels) if own else self._losses(self.network(images), images, labels)).mean()
        # Gradients, and what is logged, are averaged over processes, whose parts may differ by an image.
        loss = loss * (len(labels) * self._processes.place.world / self._batch_size)
        self.log("train_loss", loss, on_epoch=True, on_step=False, batch_size=self._batch_size, sync_dist=True)
        return loss

    def _seed_device(self, seed: int) -> None:
        """Do what torch.manual_seed does, which writes out the stack of calls for each kind of device there is not."""
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep the losses, the labels and, for a classifier, the probabilities."""
        images, labels = batch
        # As a bundle calculates, whose epoch this chooses, whatever the precision of the training steps.
        with torch.autocast(self.device.type, enabled=False):
            output = self.network(images)
        seen = [self._losses(output, images, labels), labels]
        self._seen.append([*seen, output.double().softmax(1)] if self._stage.task == "classify" else seen)

    def on_validation_epoch_end(self) -> None:
        """Log the mean loss of the validation images, and a classifier's macro one-vs-rest AUC."""
        own = [torch.cat(parts).cpu().numpy() for parts in zip(*self._seen, strict=True)]
        self._seen.clear()
        # Not logged image by image: Lightning means over processes, not over images, where they have unequally many.
        losses, labels, *p = (np.concatenate(parts) for parts in zip(*self._processes.gather(own), strict=True))
        self.log("val_loss", losses.mean(dtype=np.float64))
        if p:
            self.log("val_auc", macro_auc(labels, p[0]))

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the norm of all gradients, as Lightning does.

        In mixed precision it refuses fused optimisers, for the sake of a scale of gradients that bfloat16 has not.
        """
        if gradient_clip_val:
            nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], gradient_clip_val)

    def configure_optimizers(self) -> Any:
        """Return the optimiser and schedule of the stage."""
        settings, stage = self._stage.optimiser, self._stage
        make = torch.optim.AdamW if settings.kind == "adamw" else torch.optim.Adam
        # Fused: one pass over the weights a step, not one an operation.
        optimiser = make(self.network.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
        if isinstance(stage.schedule, OneCycle):
            steps = int(self.trainer.estimated_stepping_batches)
            one_cycle = torch.optim.lr_scheduler.OneCycleLR(
                optimiser, settings.lr, total_steps=steps, pct_start=stage.schedule.warm_up
            )
            return [optimiser], [{"scheduler": one_cycle, "interval": "step"}]
        if isinstance(stage.schedule, Plateau):
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
                optimiser, patience=stage.schedule.patience, factor=stage.schedule.factor
            )
            return [optimiser], [{"scheduler": plateau, "monitor": "train_loss"}]
        return optimiser

    def _losses(self, output: Float[Tensor, "b ..."], images: Any, labels: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        if self._stage.task == "reconstruct":
            return reconstruction_error(output, images)
        logits = output.float().softmax(1) if self._stage.legacy_double_softmax else output.float()
        return nn.functional.cross_entropy(logits, labels, reduction="none")
