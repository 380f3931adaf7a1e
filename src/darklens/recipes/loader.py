"""Reading recipes: names, inheritance by `extends`, overrides. A recipe is a plain tree here, of no known schema.

`extends: NAME_OR_PATH` names the base of a recipe: a recipe of the package or of a plug-in, or a file, whose path is
relative to the file that names it. A base can extend another one. The recipe is merged into its base by the rule of
`config.merge`: mappings merge key by key, other values replace, and a mapping with another `kind` replaces.

`stages` as a list replaces the stages of the base. As a mapping it changes them: the key `N` has changes to stage N of
the base, counted from 0, and the keys `prepend` and `append` list stages to put before and after those of the base.
"""

from collections.abc import Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from darklens.config import merge, overlay, read_yaml
from darklens.errors import ConfigError
from darklens.registry import FileRegistry

RECIPES = FileRegistry("recipe", "darklens.recipes", extensible=True)
names = RECIPES.names


def load_tree(name_or_path: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return a recipe as a mapping, with its bases merged in and overrides such as `stages.0.epochs=3` applied.

    Raises:
        ConfigError: If there is no such recipe, file or base, a chain of bases closes, or an override is wrong.
    """
    tree = _resolved(name_or_path, _find(name_or_path, Path()), ())
    for override in overrides:
        tree = overlay(tree, override)
    return tree


def _find(name_or_path: str, folder: Path) -> Traversable:
    """Return the file of a name, or of a path relative to `folder`."""
    return RECIPES.file_of(name_or_path, folder / Path(name_or_path).expanduser())


def _resolved(name: str, file: Traversable, chain: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    """Return the tree of `file`, merged with its bases; `chain` has names and files of the recipes that extend it."""
    key = str(file.resolve()) if isinstance(file, Path) else str(file)
    if key in [path for _, path in chain]:
        raise ConfigError(f"{chain[0][0]}: extends: {' -> '.join([*(n for n, _ in chain), name])} is a circle.")
    tree = read_yaml(file)
    base = tree.pop("extends", None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise ConfigError(f"{name}: extends: the name of a recipe or the path of its file is needed, got {base!r}.")
    try:
        source = _find(base, file.parent if isinstance(file, Path) else Path())
    except ConfigError as error:
        raise ConfigError(f"{name}: extends: {error}") from None
    return _extended(name, _resolved(base, source, (*chain, (name, key))), tree)


def _extended(name: str, base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    stages = changes.get("stages")
    if not isinstance(stages, dict):
        return merge(base, changes)
    changed = base.get("stages")
    if not isinstance(changed, list) or not all(isinstance(stage, dict) for stage in changed):
        raise ConfigError(f"{name}: stages: the base has no list of stages to change.")
    changed = list(changed)
    before, after = stages.pop("prepend", []), stages.pop("append", [])
    for key, change in stages.items():
        if not isinstance(key, int) or not 0 <= key < len(changed):
            raise ConfigError(
                f"{name}: stages: {key!r} is neither prepend, append nor the number of a stage of the base, "
                f"0 to {len(changed) - 1}."
            )
        if not isinstance(change, dict):
            raise ConfigError(f"{name}: stages.{key}: a mapping of changes is needed, got {change!r}.")
        changed[key] = merge(changed[key], change)
    for key, value in (("prepend", before), ("append", after)):
        if not isinstance(value, list):
            raise ConfigError(f"{name}: stages.{key}: a list of stages is needed, got {value!r}.")
    return merge(base, changes | {"stages": [*before, *changed, *after]})
