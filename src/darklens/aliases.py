"""Old names of what is stored or configured, and the names that replaced them: the one place that knows both.

Names are replaced where a file is read (`config.load`), never inside.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Key(NamedTuple):
    """A renamed key of a configuration.

    `place` is the `kind` of the mapping that has the key, or the key under which that mapping stands.
    """

    place: str
    old: str
    new: str
    values: Mapping[str, str] = {}


CONFIGURATION = (Key("data", "engine", "backend"),)
"""Recipes, run configurations and bundle.json."""


def configuration(tree: Any, key: str = "") -> Any:
    """Return a configuration with its old keys and values replaced; where old and new key meet, the old one wins.

    An override is laid over a configuration that has the new names already, so an old key in it is the younger one.

    Args:
        tree: A mapping, list or value as read from YAML or JSON.
        key: Under which `tree` stands.
    """
    if isinstance(tree, list):
        return [configuration(item, key) for item in tree]
    if not isinstance(tree, dict):
        return tree
    renamed = {name: configuration(value, str(name)) for name, value in tree.items()}
    for place, old, new, values in CONFIGURATION:
        if old in renamed and place in (key, tree.get("kind")):
            value = renamed.pop(old)
            renamed[new] = values.get(value, value) if isinstance(value, str) else value
    return renamed
