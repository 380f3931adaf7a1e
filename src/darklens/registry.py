"""Named components. A registry is also the test matrix: what is in it gets every test of its kind."""

import difflib
from collections.abc import Iterator
from typing import Generic, TypeVar

from darklens import plugins
from darklens.errors import ConfigError

T = TypeVar("T")


class Registry(Generic[T]):
    """Names mapped to components of one sort, such as lens profiles.

    Args:
        sort: What messages call one of them.
        extensible: Whether plug-ins can add some; they are loaded when a name is first looked up.
    """

    def __init__(self, sort: str, *, extensible: bool = False) -> None:
        self._sort, self._extensible = sort, extensible
        self._items: dict[str, T] = {}

    def add(self, name: str, item: T, *, replace: bool = False) -> T:
        """Register `item`.

        Args:
            name: What it is called in YAML and on the command line.
            item: The component.
            replace: Let it take the place of another of that name, as when a cell of a notebook is run again.

        Raises:
            ValueError: If the name is taken and `replace` is not set.
        """
        if name in self._items and not replace:
            raise ValueError(f"{self._sort} {name!r} is registered twice; choose another name, or give replace=True")
        self._items[name] = item
        return item

    def __getitem__(self, name: str) -> T:
        items = self._all()
        if name not in items:
            hint = f" If a plug-in has it, name that in {plugins.VARIABLE}." if self._extensible else ""
            raise ConfigError(unknown(self._sort, name, items) + hint)
        return items[name]

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._all()))

    def __len__(self) -> int:
        return len(self._all())

    def __contains__(self, name: object) -> bool:
        return name in self._all()

    def _all(self) -> dict[str, T]:
        if self._extensible:
            plugins.load()
        return self._items


def unknown(sort: str, name: str, known: "dict[str, T] | list[str]") -> str:
    """Return the sentence for a name that does not exist, with the nearest one that does."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"choose one of: {', '.join(names)}."
    return f"Unknown {sort} {name!r}: {hint}"
