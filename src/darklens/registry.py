"""Named components. A registry is also the test matrix: what is in it gets every test of its kind."""

import difflib
from collections.abc import Iterator
from typing import Generic, TypeVar

from darklens.errors import ConfigError

T = TypeVar("T")


class Registry(Generic[T]):
    """Names mapped to components of one sort, such as lens profiles."""

    def __init__(self, sort: str) -> None:
        self._sort = sort
        self._items: dict[str, T] = {}

    def add(self, name: str, item: T) -> T:
        """Register `item`; a name can be taken only once."""
        if name in self._items:
            raise ValueError(f"{self._sort} {name!r} is registered twice")
        self._items[name] = item
        return item

    def __getitem__(self, name: str) -> T:
        if name not in self._items:
            raise ConfigError(unknown(self._sort, name, self._items))
        return self._items[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)


def unknown(sort: str, name: str, known: "dict[str, T] | list[str]") -> str:
    """Return the sentence for a name that does not exist, with the nearest one that does."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"choose one of: {', '.join(names)}."
    return f"Unknown {sort} {name!r}: {hint}"
