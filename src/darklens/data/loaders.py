"""Batches for training: the split into training and validation images, and batches read from the store on demand."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch.utils.data import DataLoader, Dataset, Sampler

from darklens import rng
from darklens.data.batch_slice import WHOLE_BATCH, BatchSlice
from darklens.errors import InputError

Indices = Int[np.ndarray, " n"]


@dataclass(frozen=True)
class Split:
    """Indices of the training and the validation images; the two are disjoint."""

    train: Int[np.ndarray, " train"]
    validation: Int[np.ndarray, " validation"]


def split(labels: Indices, *, validation_fraction: float, seed: int, n_per_class: int | None = None) -> Split:
    """Split image indices within each class, so that both parts keep the proportions of the classes.

    Augmented copies share the index of their image, so both parts never contain the same image.

    Args:
        labels: Label of each image.
        validation_fraction: Fraction of the images of each class for validation.
        seed: Random seed of the split.
        n_per_class: Use only the first so many images of each class; None uses all.

    Raises:
        InputError: If a class is too small for both parts, or has fewer than `n_per_class` images.
    """
    train, validation = [], []
    for label in np.unique(labels):
        indices = np.flatnonzero(labels == label)
        if n_per_class is not None and len(indices) < n_per_class:
            raise InputError(
                f"data.n_per_class: class {label} has {len(indices)} images, fewer than {n_per_class}; lower it, "
                "or set it to null to use all images."
            )
        indices = indices[:n_per_class]
        members = rng.generator(seed, "split", int(label)).permutation(indices)
        n_validation = max(1, round(validation_fraction * len(members)))
        if n_validation >= len(members):
            raise InputError(
                f"Class {label} has {len(members)} images, too few for training and validation; add images."
            )
        validation.append(members[:n_validation])
        train.append(members[n_validation:])
    return Split(np.sort(np.concatenate(train)), np.sort(np.concatenate(validation)))


class _Batches(Dataset[tuple[Any, torch.Tensor]]):
    """Images, or what stands for them, as a torch `Dataset`; a list of indices returns a whole batch in one read."""

    def __init__(self, read: Callable[[list[int]], Any], labels: Indices) -> None:
        self._read, self._labels = read, torch.from_numpy(labels)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, indices: list[int]) -> tuple[Any, torch.Tensor]:
        return self._read(indices), self._labels[indices]


class BatchOrder(Sampler[list[int]]):
    """Batches of image indices. With shuffling, seed and epoch determine the order.

    Each process of a distributed training gets its `batch_slice` of every batch. Without shuffling the last batch may
    be smaller than the number of processes; a process with an empty share skips it.
    """

    def __init__(
        self, indices: Indices, batch_size: int, *, shuffle: bool, seed: int = 0, batch_slice: BatchSlice = WHOLE_BATCH
    ) -> None:
        self._batch_slice = batch_slice
        self._indices = indices
        self._batch_size = batch_size
        self._shuffle = shuffle
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass, counted from 0."""
        self._epoch = epoch

    def __len__(self) -> int:
        n_full, rest = divmod(len(self._indices), self._batch_size)
        if rest and not (self._shuffle and n_full):
            return n_full + bool(range(rest)[self._batch_slice.of(rest)])
        return n_full

    def __iter__(self) -> Iterator[list[int]]:
        order = self._indices
        if self._shuffle:
            order = rng.generator(self._seed, "order", self._epoch).permutation(order)
        for i in range(len(self)):
            batch = order[i * self._batch_size : (i + 1) * self._batch_size]
            yield [int(j) for j in batch[self._batch_slice.of(len(batch))]]


def loader(
    read: Callable[[list[int]], Any], labels: Indices, order: BatchOrder, *, pin_memory: bool = False
) -> DataLoader[tuple[Any, torch.Tensor]]:
    """Return a loader of batches in a given order, without worker processes: reads are memory-mapped.

    Args:
        read: Returns the images, or their fits, of a batch by their indices.
        labels: Label of each image.
        order: The batches.
        pin_memory: Whether batches lie in page-locked memory, from which a GPU copies faster.
    """
    return DataLoader(_Batches(read, labels), sampler=order, batch_size=None, pin_memory=pin_memory)
