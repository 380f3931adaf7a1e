"""Plug-ins: external modules that register profiles, systems, importers, populations or recipes.

A plug-in is imported before the first lookup of a name. Installed packages declare plug-ins as entry points of the
group `darklens.plugins`. Users list them in the environment variable `DARKLENS_PLUGINS`, separated by commas, as names
of modules or paths of `.py` files; worker processes inherit the variable. Recipes, populations, stores and bundles
cannot name a plug-in.
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
    """Import all plug-ins, once per process, and return the origin of each by its name.

    Raises:
        ConfigError: If a plug-in cannot be imported.
    """
    if _state["done"]:
        return dict(_loaded)
    _state["done"] = True  # set first: a plug-in may look up a name while it is imported
    try:
        for point in entry_points(group=GROUP):
            origin = f"package {point.dist.name} {point.dist.version}" if point.dist else "a package"
            _import(point.name, origin, point.load)
        for name in filter(None, (part.strip() for part in os.environ.get(VARIABLE, "").split(","))):
            _import(name, VARIABLE, partial(_import_by_name, name))
    except BaseException:
        _state["done"] = False
        raise
    return dict(_loaded)


def _import(name: str, origin: str, run: Callable[[], object]) -> None:
    if name in _loaded:
        return
    try:
        run()
    except Exception as error:  # any exception: the message must name the plug-in
        problem = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"The plug-in {name} ({origin}) cannot be loaded ({problem}); fix or remove it.") from error
    _loaded[name] = origin


def _import_by_name(name: str) -> None:
    path = Path(name)
    if path.suffix != ".py":
        import_module(name)
        return
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {name}")
    # Files of the same name in different folders are different plug-ins.
    module_name = f"darklens_plugin_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    spec = spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
