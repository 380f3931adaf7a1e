"""Images simulated on demand: training without a data set, on images that never repeat."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Sampler, get_worker_info

from darklens.data.batch_slice import BatchSlice
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
        batch_slice: The share of this process; by default from torch.distributed.
        repeat: Whether every epoch has the batches of the first.
    """

    def __init__(
        self, n_batches: int, batch_size: int, *, batch_slice: BatchSlice | None = None, repeat: bool = False
    ) -> None:
        self._batch_slice = batch_slice or BatchSlice(*_rank_and_world(None, None))
        world_size = self._batch_slice.world_size
        if batch_size < world_size:
            raise ValueError(f"a batch of {batch_size} images cannot be shared by {world_size} processes")
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


class Stream(IterableDataset[tuple[Float[Tensor, "b 1 n n"], Int[Tensor, " b"]]]):
    """An endless sequence of simulated batches for your own training loop; process r of w takes batches r, r + w, ...

    Use it as `DataLoader(Stream(...), batch_size=None, num_workers=k)`. The k workers share the batches, and the loader
    returns them in an order that does not depend on k.
    """

    def __init__(
        self,
        population: Population,
        seed: int,
        *,
        batch_size: int,
        backend: Backend = "eager",
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        self._images = Simulated(population, seed, backend=backend)
        self._batch_size = batch_size
        self._rank, self._world = _rank_and_world(rank, world_size)

    def __iter__(self) -> Iterator[tuple[Float[Tensor, "b 1 n n"], Int[Tensor, " b"]]]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        batch = self._rank + number * self._world
        while True:
            start = batch * self._batch_size
            yield self._images[list(range(start, start + self._batch_size))]
            batch += workers * self._world


def _rank_and_world(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Return the rank of this process and the number of processes, by default those of torch.distributed."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if rank is None:
        rank = torch.distributed.get_rank() if distributed else 0
    if world_size is None:
        world_size = torch.distributed.get_world_size() if distributed else 1
    return rank, world_size
