"""The Lightning module that trains any system: loss, optimiser, validation metrics, reproducible randomness."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from darklens import rng
from darklens.data.preprocess import BatchRandom, Dihedral
from darklens.errors import DivergedError
from darklens.evaluation.metrics import macro_auc
from darklens.fit.cache import FitSettings
from darklens.fit.features import FitFeatures
from darklens.models.autoencoder import reconstruction_error
from darklens.training.processes import SINGLE_PROCESS, Processes
from darklens.training.recipe import DataConfig, OneCycle, Plateau, Stage

Batch = Sequence[Any]  # images or their fits, and labels; a list from torch's loader


class Learner(pl.LightningModule):
    """Trains `network` for one stage.

    Random numbers depend on (seed, stage, epoch, batch) only, so a resumed run repeats the interrupted one, on a GPU
    up to the order of its sums. The processes of a distributed training share every batch of `batch_size` images. Their
    result is that of one process, except for the masks of dropout and for losses that depend on the whole batch.

    Args:
        network: The part of the system that the stage trains.
        stage: Its settings.
        stage_index: Its index in the recipe.
        data: Preprocessing and augmentation.
        seed: Random seed of the run.
        batch_size: Images per batch, over all processes.
        processes: The processes that train together.
        fit_settings: Settings of the fits of images without fits, for a network that takes fits.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        stage: Stage,
        stage_index: int,
        data: DataConfig,
        seed: int,
        batch_size: int,
        processes: Processes = SINGLE_PROCESS,
        fit_settings: FitSettings | None = None,
    ) -> None:
        super().__init__()
        self._fit_settings = fit_settings
        self._batch_size, self._processes = batch_size, processes
        self.network = network
        self._stage = stage
        self._stage_index = stage_index
        self._data = data
        self._seed = seed
        self._validation_batches: list[list[Tensor]] = []

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Preprocess a batch on the device, and augment it in training."""
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
        split = "train" if self.trainer.training else "validation"
        address = (split, self._stage_index, self.current_epoch, self.global_step, len(self._validation_batches))
        generator = torch.Generator().manual_seed(rng.integer_seed(self._seed, "augment", *address))
        if not self._processes.is_distributed:
            return BatchRandom(generator)
        return BatchRandom(generator, self._processes.batch_slice.of(self._batch_size).start, self._batch_size)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean loss of the batch."""
        images, labels = batch
        # For dropout. Seeded at every step, since Lightning skips the start of the epoch in a resumed run.
        rank = (self._processes.rank.global_rank,) if self._processes.is_distributed else ()
        self._seed_device(rng.integer_seed(self._seed, "network", self._stage_index, self.global_step, *rank))
        # A system of several networks may define the training loss of each.
        system_losses = getattr(self.network, "losses", None)
        losses = system_losses(images, labels) if system_losses else self._losses(self.network(images), images, labels)
        # Gradients and logged values are averaged over processes, whose shares may differ by one image.
        loss = losses.mean() * (len(labels) * self._processes.rank.world_size / self._batch_size)
        if not torch.isfinite(loss):
            raise self._diverged(f"loss is {loss.item()} in epoch {self.current_epoch + 1}, step {batch_idx + 1}")
        self.log("train_loss", loss, on_epoch=True, on_step=False, batch_size=self._batch_size, sync_dist=True)
        return loss

    def _diverged(self, what: str) -> DivergedError:
        stage = f"stages.{self._stage_index}"
        return DivergedError(
            f"The {what} of stage {self._stage_index + 1} ({self._stage.task}), so the training has stopped without a "
            f"bundle; lower {stage}.optimiser.lr, set {stage}.gradient_clip, and check the images with `darklens "
            "inspect --verify`."
        )

    def _seed_device(self, seed: int) -> None:
        """Seed the generators in use. torch.manual_seed also formats a stack trace for each absent kind of device."""
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Store the losses, the labels and, for a classifier, the probabilities."""
        images, labels = batch
        # In float32 like a bundle, since these metrics select the epoch of the bundle.
        with torch.autocast(self.device.type, enabled=False):
            output = self.network(images)
        columns = [self._losses(output, images, labels), labels]
        if self._stage.task == "classify":
            columns.append(output.double().softmax(1))
        self._validation_batches.append(columns)

    def on_validation_epoch_end(self) -> None:
        """Log the mean validation loss and, for a classifier, the macro one-vs-rest AUC."""
        columns = [torch.cat(parts).cpu().numpy() for parts in zip(*self._validation_batches, strict=True)]
        self._validation_batches.clear()
        # Not logged per batch: Lightning would average over processes, which may have different numbers of images.
        losses, labels, *p = (np.concatenate(parts) for parts in zip(*self._processes.gather(columns), strict=True))
        if not np.isfinite(losses).all():
            raise self._diverged(f"validation loss is not finite in epoch {self.current_epoch + 1}")
        self.log("val_loss", losses.mean(dtype=np.float64))
        if p:
            self.log("val_auc", macro_auc(labels, p[0]))

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the norm of the gradient, as Lightning does.

        Lightning itself refuses fused optimisers in mixed precision, because of gradient scaling, which bfloat16 does
        not use.
        """
        if gradient_clip_val:
            nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], gradient_clip_val)

    def configure_optimizers(self) -> Any:
        """Return the optimiser and the schedule of the stage."""
        settings, stage = self._stage.optimiser, self._stage
        optimiser_class = torch.optim.AdamW if settings.kind == "adamw" else torch.optim.Adam
        # Fused: one pass over the weights per step instead of one per operation.
        optimiser = optimiser_class(
            self.network.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True
        )
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
