"""The part of every batch that one of several processes has."""

from typing import NamedTuple


class Part(NamedTuple):
    """Process `rank` of `world`; together the parts are the whole, in order, and differ by at most one in length."""

    rank: int = 0
    world: int = 1

    def of(self, n: int) -> slice:
        """Return which of n things this process has."""
        return slice(self.rank * n // self.world, (self.rank + 1) * n // self.world)


WHOLE = Part()
