"""Registries of named components. Tests run on all components of a registry."""

import difflib
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Generic, TypeVar

from darklens import plugins
from darklens.errors import ConfigError

T = TypeVar("T")


class Registry(Generic[T]):
    """A mapping of names to components of one sort, such as lens profiles.

    Args:
        sort: Name of the sort in messages.
        extensible: Whether plug-ins can add components; they are loaded at the first lookup.
    """

    def __init__(self, sort: str, *, extensible: bool = False) -> None:
        self._sort, self._extensible = sort, extensible
        self._items: dict[str, T] = {}

    def add(self, name: str, item: T, *, replace: bool = False) -> T:
        """Register a component and return it.

        Args:
            name: Name of the component in YAML and on the command line.
            item: The component.
            replace: Replace a component of the same name, as when a cell of a notebook runs again.

        Raises:
            ValueError: If the name exists and `replace` is false.
        """
        if name in self._items and not replace:
            raise ValueError(f"{self._sort} {name!r} is already registered; choose another name, or set replace=True")
        self._items[name] = item
        return item

    def __getitem__(self, name: str) -> T:
        items = self._all()
        if name not in items:
            hint = f" If a plug-in defines it, name the plug-in in {plugins.VARIABLE}." if self._extensible else ""
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


class FileRegistry(Registry[Traversable]):
    """YAML files by name. A file that is not registered is given by its path.

    Args:
        sort: Name of the sort in messages.
        package: Package with the files that come with darklens.
        extensible: As for `Registry`.
    """

    def __init__(self, sort: str, package: str, *, extensible: bool = False) -> None:
        super().__init__(sort, extensible=extensible)
        for path in resources.files(package).iterdir():
            if path.name.endswith(".yaml"):
                self.add(path.name.removesuffix(".yaml"), path)

    def names(self) -> list[str]:
        """Return the names of the files that come with the package or a plug-in."""
        return sorted(self)

    def file_of(self, name_or_path: str, path: Path) -> Traversable:
        """Return the file of a name, or else `path`.

        Raises:
            ConfigError: If there is no such name, and no such path unless it ends as those of YAML files do.
        """
        if name_or_path in self:
            return self[name_or_path]
        if path.suffix in (".yaml", ".yml") or path.exists():
            return path
        raise ConfigError(unknown(self._sort, name_or_path, self.names()))


def unknown(sort: str, name: str, items: "dict[str, T] | list[str]") -> str:
    """Return a sentence on an unknown name that suggests the closest known one."""
    names = sorted(items)
    matches = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {matches[0]!r}?" if matches else f"choose one of: {', '.join(names)}."
    return f"Unknown {sort} {name!r}: {hint}"
