"""The images of a training: a store on disk, or a simulation that runs during training."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from darklens import config, populations, rng
from darklens.data.batch_slice import WHOLE_BATCH, BatchSlice
from darklens.data.loaders import BatchOrder, loader, split
from darklens.data.store import Store
from darklens.errors import ConfigError
from darklens.fit.cache import FitCache
from darklens.populations.population import Population
from darklens.simulate.stream import FreshBatches, Simulated
from darklens.training.recipe import DataConfig, Stage

Loader = DataLoader[tuple[Any, torch.Tensor]]


class StoreSource:
    """A store, split into training and validation images."""

    def __init__(
        self, store: Store, data: DataConfig, seed: int, fits: FitCache | None = None, *, pin_memory: bool = False
    ) -> None:
        self._store, self._seed, self._fits, self._pin_memory = store, seed, fits, pin_memory
        self._split = split(
            store.labels, validation_fraction=data.validation_fraction, seed=seed, n_per_class=data.n_per_class
        )
        self.classes, self.n_pixels, self.pixel_scale = store.classes, store.index.n_pixels, store.index.pixel_scale
        self.train_images, self.validation_images = len(self._split.train), len(self._split.validation)

    def identity(self) -> dict[str, Any]:
        """Return the identity of the images for the run's records."""
        store = self._store
        return {
            "population": store.population_name,
            "seed": store.index.seed,
            "sha256": store.sha256,
            "n": len(store),
        }

    def batch_size(self, stage: Stage) -> int:
        """Return the number of images in each training batch of a stage, over all processes."""
        return min(stage.batch_size, self.train_images)

    def loaders(
        self, stage: Stage, stage_index: int, first_epoch: int, batch_slice: BatchSlice = WHOLE_BATCH
    ) -> tuple[Loader, Loader]:
        """Return the training and validation loaders of a stage, with the share of every batch that a process has."""
        seed = rng.integer_seed(self._seed, "stage", stage_index)
        order = BatchOrder(self._split.train, stage.batch_size, shuffle=True, seed=seed, batch_slice=batch_slice)
        # Lightning requests the first batch before it sets the epoch of a resumed run.
        order.set_epoch(first_epoch)
        validation = BatchOrder(self._split.validation, stage.batch_size, shuffle=False, batch_slice=batch_slice)
        return self._loader(order), self._loader(validation)

    def calibration_loaders(self, stage: Stage, stage_index: int, n: int) -> tuple[Loader, Loader]:
        """Return at most n training images, evenly spaced in the store, and the validation images of a stage."""
        train = self._split.train
        sample = train[np.unique(np.linspace(0, len(train) - 1, min(n, len(train))).round().astype(int))]
        orders = (BatchOrder(rows, stage.batch_size, shuffle=False) for rows in (sample, self._split.validation))
        reference, validation = (self._loader(order) for order in orders)
        return reference, validation

    def _loader(self, order: BatchOrder) -> Loader:
        read = self._fits.features if self._fits else lambda indices: torch.from_numpy(self._store.images(indices))
        return loader(read, self._store.labels, order, pin_memory=self._pin_memory)


class StreamSource:
    """A population that is simulated during training."""

    def __init__(self, data: DataConfig, stages: Sequence[Stage], seed: int, *, pin_memory: bool = False) -> None:
        self._pin_memory = pin_memory
        self._population = populations.get(str(data.population), data.overrides)
        self._data, self._seed = data, seed
        self.classes = self._population.class_names
        self.n_pixels, self.pixel_scale = self._population.field.n_pixels, self._population.field.pixel_scale
        self.train_images = sum((1 if data.repeat else stage.epochs) * self._per_epoch(stage) for stage in stages)
        self.validation_images = data.validation_images
        if any(stage.task == "classify" for stage in stages) and self.validation_images < len(self.classes):
            raise ConfigError(
                f"data.validation_images: {self.validation_images} images cannot hold all {len(self.classes)} classes."
            )
        self._validation_loaders: dict[tuple[tuple[str, ...], float, int, BatchSlice], Loader] = {}
        for i, stage in enumerate(stages):
            self._check(stage, i)

    def identity(self) -> dict[str, Any]:
        """Return the identity of the images. The digest is that of the population, since each epoch has new images."""
        return {
            "population": self._population.name,
            "seed": self._seed,
            "sha256": config.digest(self._population),
            "n": self.train_images,
        }

    def batch_size(self, stage: Stage) -> int:
        """Return the number of images in each training batch of a stage, over all processes."""
        return stage.batch_size

    def loaders(
        self, stage: Stage, stage_index: int, first_epoch: int, batch_slice: BatchSlice = WHOLE_BATCH
    ) -> tuple[Loader, Loader]:
        """Return the training and validation loaders of a stage, with the share of every batch that a process has."""
        workers = self._data.workers
        images = self._simulated(stage, "stream", stage_index)
        order = FreshBatches(
            max(1, self._per_epoch(stage) // stage.batch_size),
            stage.batch_size,
            batch_slice=batch_slice,
            repeat=self._data.repeat,
        )
        order.set_epoch(first_epoch)
        train: Loader = DataLoader(
            images,
            sampler=order,
            batch_size=None,
            num_workers=workers,
            # Spawned, not forked: torch's threads do not survive a fork.
            multiprocessing_context="spawn" if workers else None,
            persistent_workers=workers > 0,
            pin_memory=self._pin_memory,
        )
        return train, self._validation(stage, batch_slice)

    def calibration_loaders(self, stage: Stage, stage_index: int, n: int) -> tuple[Loader, Loader]:
        """Return at most n training images, the first of a stage, and its validation images."""
        images, size = self._simulated(stage, "stream", stage_index), stage.batch_size
        n = min(n, (1 if self._data.repeat else stage.epochs) * self._per_epoch(stage))
        batches = [list(range(i, min(i + size, n))) for i in range(0, n, size)]
        reference: Loader = DataLoader(images, sampler=batches, batch_size=None)
        return reference, self._validation(stage, WHOLE_BATCH)

    def _per_epoch(self, stage: Stage) -> int:
        return stage.images_per_epoch or self._data.images_per_epoch

    def _simulated(self, stage: Stage, *address: str | int) -> Simulated:
        return Simulated(self._population_of(stage), rng.integer_seed(self._seed, *address), backend=self._data.backend)

    def _population_of(self, stage: Stage) -> Population:
        changed = populations.get(str(self._data.population), [*self._data.overrides, *stage.overrides])
        return changed.with_substructure_scale(stage.substructure_scale)

    def _check(self, stage: Stage, stage_index: int) -> None:
        """Refuse a stage whose overrides change the shape of the images or the classes."""
        changed = self._population_of(stage)
        if (changed.field, changed.class_names) != (self._population.field, self.classes):
            raise ConfigError(
                f"stages.{stage_index}.overrides: a stage cannot change the field or the class names; change them in "
                "data.overrides."
            )

    def _validation(self, stage: Stage, batch_slice: BatchSlice) -> Loader:
        """Return validation images from the population of the stage, so that its best epoch is the best for them."""
        key = (stage.overrides, stage.substructure_scale, stage.batch_size, batch_slice)
        if key not in self._validation_loaders:
            images, n, size = (
                self._simulated(stage, "stream validation"),
                self._data.validation_images,
                stage.batch_size,
            )
            whole_batches = (range(i, min(i + size, n)) for i in range(0, n, size))
            shares = (batch[batch_slice.of(len(batch))] for batch in whole_batches)
            batches = [images[list(share)] for share in shares if share]
            self._validation_loaders[key] = DataLoader(batches, batch_size=None, pin_memory=self._pin_memory)  # type: ignore[arg-type]  # a list is a data set
        return self._validation_loaders[key]


Source = StoreSource | StreamSource


def source_of(
    data: DataConfig,
    stages: Sequence[Stage],
    store: Store | None,
    *,
    seed: int,
    fits: FitCache | None = None,
    pin_memory: bool = False,
) -> Source:
    """Return the source of the images of a recipe; `pin_memory` makes copies to a GPU faster.

    Raises:
        ConfigError: If the recipe needs a store and there is none, or the reverse, or a setting is wrong.
        InputError: If a class has too few images.
    """
    if data.kind == "stream":
        if store is not None:
            raise ConfigError("The recipe simulates its images (data.kind: stream); omit --data.")
        return StreamSource(data, stages, seed, pin_memory=pin_memory)
    if store is None:
        raise ConfigError("Pass a store with --data, or set data.kind=stream and data.population.")
    if any(stage.task == "classify" for stage in stages):
        store.require_all_classes("a training")
    return StoreSource(store, data, seed, fits, pin_memory=pin_memory)
