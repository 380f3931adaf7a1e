"""The search space of `darklens tune`: `a.b=low..high`, `a.b=log:low..high` and `a.b={x,y,z}`, each a dimension."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from darklens.config import Frozen, read_yaml
from darklens.errors import ConfigError
from darklens.training.recipe import Recipe, get

_RANGE = re.compile(r"(?P<log>log:)?(?P<low>[+-]?\.?\d\S*?)\.\.(?P<high>\S+)")


class Range(Frozen):
    """Numbers from low to high, both included; uniform in the logarithm if `log`."""

    low: int | float
    high: int | float
    log: bool = False


class Choice(Frozen):
    """Several values, as YAML texts."""

    values: tuple[str, ...]


Dimension = Range | Choice
Space = dict[str, Dimension]


def parse(arguments: Sequence[str], file: Path | None = None) -> tuple[Space, tuple[str, ...]]:
    """Return the dimensions in the arguments and in the file, and the arguments that are plain overrides.

    Args:
        arguments: Dimensions and overrides, each as `key=text`.
        file: A YAML file of the same keys and texts, or of lists of values: `stages.0.batch_size: [32, 64]`.

    Raises:
        ConfigError: If an argument is neither, a range is empty, or a key occurs twice.
    """
    space: Space = {}
    plain: dict[str, str] = {}
    for key, text in [*_file_items(file), *(_split(argument) for argument in arguments)]:
        if key in space or key in plain:
            raise ConfigError(
                f"{key} occurs twice; put choices in quotes, as in '{key}={{...}}', or the shell expands them."
            )
        dimension = _dimension(key, text)
        if dimension is None:
            plain[key] = f"{key}={text}"
        else:
            space[key] = dimension
    return space, tuple(plain.values())


def checked_recipe(recipe: str, overrides: Sequence[str], space: Space) -> Recipe:
    """Return the recipe without the search space, after checking both ends of each range and each choice.

    Raises:
        ConfigError: If the recipe has no such key, or does not accept such a value.
    """
    for key, dimension in space.items():
        texts = dimension.values if isinstance(dimension, Choice) else (str(dimension.low), str(dimension.high))
        for text in texts:
            get(recipe, [*overrides, f"{key}={text}"])
    return get(recipe, overrides)


def default_space(recipe: Recipe) -> Space:
    """Return the default search space: learning rate and weight decay of the last stage."""
    stage = f"stages.{len(recipe.stages) - 1}.optimiser"
    return {
        f"{stage}.lr": Range(low=1e-4, high=1e-2, log=True),
        f"{stage}.weight_decay": Range(low=1e-4, high=0.1, log=True),
    }


def suggested(space: Space, trial: Any) -> dict[str, str]:
    """Return the values that an Optuna trial suggests, as texts by key."""
    values: dict[str, str] = {}
    for key, dimension in space.items():
        if isinstance(dimension, Choice):
            values[key] = trial.suggest_categorical(key, dimension.values)
            continue
        is_integer = isinstance(dimension.low, int) and isinstance(dimension.high, int)
        suggest: Callable[..., int | float] = trial.suggest_int if is_integer else trial.suggest_float
        values[key] = repr(suggest(key, dimension.low, dimension.high, log=dimension.log))
    return values


def _split(argument: str) -> tuple[str, str]:
    key, equals, text = argument.partition("=")
    if not equals or not key:
        raise ConfigError(f"{argument!r} is neither a.b=value nor a.b=low..high, a.b=log:low..high or a.b={{x,y,z}}.")
    return key, text


def _file_items(file: Path | None) -> list[tuple[str, str]]:
    if file is None:
        return []
    tree = read_yaml(file)
    if not all(isinstance(key, str) for key in tree):
        raise ConfigError(f"{file} must map keys such as stages.0.optimiser.lr to ranges or lists.")
    return [
        (key, "{" + ",".join(map(json.dumps, value)) + "}" if isinstance(value, list) else str(value))
        for key, value in tree.items()
    ]


def _dimension(key: str, text: str) -> Dimension | None:
    """Return the dimension that a text describes; None if it is a plain value."""
    if text.startswith("{") and text.endswith("}"):
        return _choice(key, text)
    match = _RANGE.fullmatch(text)
    if match is None:
        if text.startswith("log:"):
            raise ConfigError(f"{key}={text}: a range is log:low..high, such as log:1e-5..1e-2.")
        return None
    low, high, log = _number(key, match["low"]), _number(key, match["high"]), bool(match["log"])
    if not low < high:
        raise ConfigError(f"{key}={text}: the range must go from a lower to a higher number.")
    if log and low <= 0:
        raise ConfigError(f"{key}={text}: a logarithmic range must start above zero.")
    return Range(low=low, high=high, log=log)


def _choice(key: str, text: str) -> Choice | None:
    try:
        mapping = yaml.safe_load(text)
        values = yaml.safe_load(f"[{text[1:-1]}]")
    except yaml.YAMLError:
        raise ConfigError(f"{key}={text}: choices have the form {{x,y,z}}.") from None
    if any(value is not None for value in mapping.values()):
        return None  # a mapping, such as {kind: none}
    if len(values) < 2:
        raise ConfigError(f"{key}={text}: at least two choices are needed; for one, write {key}=value.")
    return Choice(values=tuple(value if isinstance(value, str) else json.dumps(value) for value in values))


def _number(key: str, text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        value = float(text)
    except ValueError:
        raise ConfigError(f"{key}: {text!r} is not a number; a range is low..high.") from None
    if value != value or value in (float("inf"), float("-inf")):
        raise ConfigError(f"{key}: a range must be finite.")
    return value
