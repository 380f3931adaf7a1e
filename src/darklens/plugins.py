"""Plug-ins: modules of others that put profiles, systems, importers, populations or recipes into a registry.

A plug-in is a module that is imported before the first name is looked up. It is found in two ways: an installed
package names it as an entry point of the group `darklens.plugins`, or the user names it in the environment variable
`DARKLENS_PLUGINS`, as the name of a module or the path of a `.py` file; several are separated by commas. Processes that
simulate inherit the variable. Nothing that is read from a recipe, a population, a store or a bundle can name a plug-in.
"""

import hashlib
import os
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from darklens.errors import ConfigError

GROUP, VARIABLE = "darklens.plugins", "DARKLENS_PLUGINS"
_loaded: dict[str, str] = {}
_state = {"done": False}


def load() -> dict[str, str]:
    """Import all plug-ins, once a process, and return where each came from by its name.

    Raises:
        ConfigError: If one of them cannot be imported.
    """
    if _state["done"]:
        return dict(_loaded)
    _state["done"] = True  # first: a plug-in that looks up a name must not start this again
    try:
        for point in entry_points(group=GROUP):
            origin = f"package {point.dist.name} {point.dist.version}" if point.dist else "a package"
            _import(point.name, origin, point.load)
        for name in filter(None, (part.strip() for part in os.environ.get(VARIABLE, "").split(","))):
            _import(name, VARIABLE, partial(_by_name, name))
    except BaseException:
        _state["done"] = False
        raise
    return dict(_loaded)


def _import(name: str, origin: str, run: Callable[[], object]) -> None:
    if name in _loaded:
        return
    try:
        run()
    except Exception as error:  # whatever a plug-in raises, the user must learn which one it was
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"The plug-in {name} ({origin}) cannot be loaded ({what}); mend or remove it.") from error
    _loaded[name] = origin


def _by_name(name: str) -> None:
    path = Path(name)
    if path.suffix != ".py":
        import_module(name)
        return
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {name}")
    # A name of its own: two files of one name in two folders are two plug-ins.
    own = f"darklens_plugin_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    spec = spec_from_file_location(own, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[own] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[own]
        raise
