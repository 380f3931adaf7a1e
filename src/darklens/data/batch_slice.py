"""The share of every batch that one process of a distributed training has."""

from typing import NamedTuple


class BatchSlice(NamedTuple):
    """The share of process `rank` of `world_size`. The shares are contiguous, and their sizes differ by at most one."""

    rank: int = 0
    world_size: int = 1

    def of(self, n: int) -> slice:
        """Return the slice of this process in a batch of n images."""
        return slice(self.rank * n // self.world_size, (self.rank + 1) * n // self.world_size)


WHOLE_BATCH = BatchSlice()
