"""Images simulated on demand: training without a data set, on images that never repeat."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import Dataset, Sampler, get_worker_info

from darklens.data.batch_slice import WHOLE_BATCH, BatchSlice
from darklens.memory import keep_freed_memory
from darklens.populations.population import Population
from darklens.simulate.backend import Backend
from darklens.simulate.batch import simulate_batch


class Simulated(Dataset[tuple[Float[Tensor, "b 1 n n"], Int[Tensor, " b"]]]):
    """An endless data set, indexed by lists of image numbers.

    Args:
        population: What to simulate.
        seed: With its number, fixes an image.
        backend: See `darklens.simulate.backend`.
    """

    def __init__(self, population: Population, seed: int, *, backend: Backend = "eager") -> None:
        self._population, self._seed, self._backend = population, seed, backend

    def __getitem__(self, numbers: list[int]) -> tuple[Float[Tensor, "b 1 n n"], Int[Tensor, " b"]]:
        """Return images (b, 1, n, n) and labels (b,)."""
        if get_worker_info() is not None:
            keep_freed_memory()
        images, truth = simulate_batch(self._population, self._seed, numbers, backend=self._backend)
        return torch.from_numpy(images), torch.from_numpy(truth["label"])


class FreshBatches(Sampler[list[int]]):
    """Batches of image numbers that never repeat, unless `repeat` is set, divided among the processes.

    Epoch e of E batches takes batches e E to (e + 1) E - 1 of an endless sequence, for any number of processes. Each
    process has a slice of each batch. Classes alternate, so the slices are balanced.

    Args:
        n_batches: Batches of an epoch.
        batch_size: Images in a batch, over all processes together.
        batch_slice: The share of this process; by default all.
        repeat: Whether every epoch has the batches of the first.
    """

    def __init__(
        self, n_batches: int, batch_size: int, *, batch_slice: BatchSlice = WHOLE_BATCH, repeat: bool = False
    ) -> None:
        if batch_size < batch_slice.world_size:
            raise ValueError(f"a batch of {batch_size} images cannot be shared by {batch_slice.world_size} processes")
        self._batch_slice = batch_slice
        self._n_batches, self._batch_size, self._epoch, self._repeat = n_batches, batch_size, 0, repeat

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, counted from 0, that the next pass belongs to."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._n_batches

    def __iter__(self) -> Iterator[list[int]]:
        first = 0 if self._repeat else self._epoch * self._n_batches
        for i in range(len(self)):
            start = (first + i) * self._batch_size
            yield list(range(start, start + self._batch_size)[self._batch_slice.of(self._batch_size)])
