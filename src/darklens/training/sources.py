"""Where a training's images come from: a store on disk, or a simulator that runs beside the training."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch.utils.data import DataLoader, Dataset

from darklens import config, populations, rng
from darklens.data.loaders import BatchOrder, loader, split
from darklens.data.part import WHOLE, Part
from darklens.data.store import Store
from darklens.errors import ConfigError
from darklens.fit.cache import FitCache
from darklens.fit.features import FitFeatures
from darklens.populations.population import Population
from darklens.simulate.stream import FreshBatches, Simulated
from darklens.training.recipe import DataConfig, Stage

Loader = DataLoader[tuple[Any, torch.Tensor]]


class StoreSource:
    """A store, split into training and validation images."""

    def __init__(self, store: Store, data: DataConfig, seed: int, fits: FitCache | None = None) -> None:
        self._store, self._seed, self._fits = store, seed, fits
        self._parts = split(
            store.labels, validation_fraction=data.validation_fraction, seed=seed, n_per_class=data.n_per_class
        )
        self.classes, self.n_pixels, self.pixel_scale = store.classes, store.index.n_pixels, store.index.pixel_scale
        self.train_images, self.validation_images = len(self._parts.train), len(self._parts.validation)

    def identity(self) -> dict[str, Any]:
        """Return what the images are."""
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

    def loaders(self, stage: Stage, number: int, first_epoch: int, part: Part = WHOLE) -> tuple[Loader, Loader]:
        """Return the loaders of a stage, of this process's part of every batch."""
        seed = rng.integer_seed(self._seed, "stage", number)
        order = BatchOrder(self._parts.train, stage.batch_size, shuffle=True, seed=seed, part=part)
        # Lightning asks for the first batch before it tells the loader which epoch a resumed run is in.
        order.set_epoch(first_epoch)
        held_out = BatchOrder(self._parts.validation, stage.batch_size, shuffle=False, part=part)
        return self._loader(order), self._loader(held_out)

    def typical(self, stage: Stage, number: int, n: int) -> tuple[Loader, Loader]:
        """Return at most n images of those trained on, evenly chosen, and the validation images of a stage."""
        train = self._parts.train
        chosen = train[np.unique(np.linspace(0, len(train) - 1, min(n, len(train))).round().astype(int))]
        parts = (BatchOrder(part, stage.batch_size, shuffle=False) for part in (chosen, self._parts.validation))
        reference, held_out = (self._loader(part) for part in parts)
        return reference, held_out

    def _loader(self, order: BatchOrder) -> Loader:
        if self._fits is None:
            return loader(self._store, order)
        return DataLoader(FitsDataset(self._fits, self._store.labels), sampler=order, batch_size=None)


class FitsDataset(Dataset[tuple[FitFeatures, torch.Tensor]]):
    """The fits of a store's images in place of the images."""

    def __init__(self, fits: FitCache, labels: Int[np.ndarray, " n"]) -> None:
        self._fits, self._labels = fits, torch.from_numpy(labels)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, indices: list[int]) -> tuple[FitFeatures, torch.Tensor]:
        """Return a batch of fits, and its labels."""
        return self._fits.features(indices), self._labels[indices]


class StreamSource:
    """A population, simulated as it is trained on."""

    def __init__(self, data: DataConfig, stages: Sequence[Stage], seed: int) -> None:
        self._population = populations.get(str(data.population), data.overrides)
        self._data, self._seed = data, seed
        self.classes = self._population.class_names
        self.n_pixels, self.pixel_scale = self._population.field.n_pixels, self._population.field.pixel_scale
        self.train_images = sum(stage.epochs * self._per_epoch(stage) for stage in stages)
        self.validation_images = data.validation_images
        self._held_out: dict[tuple[tuple[str, ...], float, int, Part], Loader] = {}
        for i, stage in enumerate(stages):
            self._check(stage, i)

    def identity(self) -> dict[str, Any]:
        """Return what the images are; the digest is the population's, as no two epochs have the same images."""
        return {
            "population": self._population.name,
            "seed": self._seed,
            "sha256": config.digest(self._population),
            "n": self.train_images,
        }

    def batch_size(self, stage: Stage) -> int:
        """Return the number of images in each training batch of a stage, over all processes."""
        return stage.batch_size

    def loaders(self, stage: Stage, number: int, first_epoch: int, part: Part = WHOLE) -> tuple[Loader, Loader]:
        """Return the loaders of a stage, of this process's part of every batch."""
        workers = self._data.workers
        images = self._simulated(stage, "stream", number)
        order = FreshBatches(max(1, self._per_epoch(stage) // stage.batch_size), stage.batch_size, part=part)
        order.set_epoch(first_epoch)
        train: Loader = DataLoader(
            images,
            sampler=order,
            batch_size=None,
            num_workers=workers,
            # Spawned, not forked: torch's threads do not survive a fork.
            multiprocessing_context="spawn" if workers else None,
            persistent_workers=workers > 0,
        )
        return train, self._validation(stage, part)

    def typical(self, stage: Stage, number: int, n: int) -> tuple[Loader, Loader]:
        """Return at most n images of those trained on, the first of the stage, and the validation images of a stage."""
        images, size = self._simulated(stage, "stream", number), stage.batch_size
        n = min(n, stage.epochs * self._per_epoch(stage))
        batches = [list(range(i, min(i + size, n))) for i in range(0, n, size)]
        reference: Loader = DataLoader(images, sampler=batches, batch_size=None)
        return reference, self._validation(stage, WHOLE)

    def _per_epoch(self, stage: Stage) -> int:
        return stage.images_per_epoch or self._data.images_per_epoch

    def _simulated(self, stage: Stage, *address: str | int) -> Simulated:
        return Simulated(self._population_of(stage), rng.integer_seed(self._seed, *address), backend=self._data.backend)

    def _population_of(self, stage: Stage) -> Population:
        changed = populations.get(str(self._data.population), [*self._data.overrides, *stage.overrides])
        return changed.with_substructure_scale(stage.substructure_scale)

    def _check(self, stage: Stage, number: int) -> None:
        """Refuse a stage whose overrides change what the network takes or gives."""
        changed = self._population_of(stage)
        if (changed.field, changed.class_names) != (self._population.field, self.classes):
            raise ConfigError(
                f"stages.{number}.overrides: field and class names must stay; change them in data.overrides."
            )

    def _validation(self, stage: Stage, part: Part) -> Loader:
        """Return images like the stage's own, so that the best epoch is the best at what the stage teaches."""
        key = (stage.overrides, stage.substructure_scale, stage.batch_size, part)
        if key not in self._held_out:
            images, n, size = (
                self._simulated(stage, "stream validation"),
                self._data.validation_images,
                stage.batch_size,
            )
            whole = (range(i, min(i + size, n)) for i in range(0, n, size))
            batches = [images[list(own)] for batch in whole if (own := batch[part.of(len(batch))])]
            self._held_out[key] = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]  # a list is a data set
        return self._held_out[key]


Source = StoreSource | StreamSource


def source_of(
    data: DataConfig, stages: Sequence[Stage], store: Store | None, *, seed: int, fits: FitCache | None = None
) -> Source:
    """Return the source that a recipe asks for.

    Raises:
        ConfigError: If it needs a store and has none, or the other way round.
    """
    if data.kind == "stream":
        if store is not None:
            raise ConfigError("The recipe simulates its images (data.kind: stream); leave --data out.")
        return StreamSource(data, stages, seed)
    if store is None:
        raise ConfigError("Give --data, the store to train on, or choose data.kind=stream and data.population.")
    return StoreSource(store, data, seed, fits)
