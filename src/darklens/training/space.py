"""What a search may change of a recipe: `a.b=low..high`, `a.b=log:low..high` and `a.b={x,y,z}`, each a dimension."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from darklens.config import Frozen
from darklens.errors import ConfigError
from darklens.training.recipe import Recipe, get

_RANGE = re.compile(r"(?P<log>log:)?(?P<low>[+-]?\.?\d\S*?)\.\.(?P<high>\S+)")


class Range(Frozen):
    """Numbers from low to high, both included; evenly in the logarithm if `log`."""

    low: int | float
    high: int | float
    log: bool = False


class Choice(Frozen):
    """A few values, as YAML texts."""

    values: tuple[str, ...]


Dimension = Range | Choice
Space = dict[str, Dimension]


def parse(words: Sequence[str], file: Path | None = None) -> tuple[Space, tuple[str, ...]]:
    """Return the dimensions among the words and in the file, and the words that are plain overrides.

    A file maps the same keys to the same words, or to lists of values: `stages.0.batch_size: [32, 64]`.

    Raises:
        ConfigError: If a word is neither, a range is empty, or a key is there twice.
    """
    space: Space = {}
    plain: dict[str, str] = {}
    for key, text in [*_of_file(file), *(_split(word) for word in words)]:
        if key in space or key in plain:
            raise ConfigError(
                f"{key} is given twice; put choices in quotes, as in '{key}={{...}}', or the shell takes them apart."
            )
        dimension = _dimension(key, text)
        if dimension is None:
            plain[key] = f"{key}={text}"
        else:
            space[key] = dimension
    return space, tuple(plain.values())


def check(recipe: str, overrides: Sequence[str], space: Space) -> Recipe:
    """Check every end of a range and every choice by itself against the recipe, which is returned without them.

    Raises:
        ConfigError: If the recipe has no such key, or does not take such a value.
    """
    for key, dimension in space.items():
        ends = dimension.values if isinstance(dimension, Choice) else (str(dimension.low), str(dimension.high))
        for text in ends:
            get(recipe, [*overrides, f"{key}={text}"])
    return get(recipe, overrides)


def default(recipe: Recipe) -> Space:
    """Return what is searched where nothing is said: the last stage's rate and weight decay."""
    stage = f"stages.{len(recipe.stages) - 1}.optimiser"
    return {
        f"{stage}.lr": Range(low=1e-4, high=1e-2, log=True),
        f"{stage}.weight_decay": Range(low=1e-4, high=0.1, log=True),
    }


def chosen(space: Space, suggest: Any) -> dict[str, str]:
    """Return a text for each key, of the values that an Optuna trial suggests."""
    values: dict[str, str] = {}
    for key, dimension in space.items():
        if isinstance(dimension, Choice):
            values[key] = suggest.suggest_categorical(key, dimension.values)
            continue
        whole = isinstance(dimension.low, int) and isinstance(dimension.high, int)
        ask: Callable[..., int | float] = suggest.suggest_int if whole else suggest.suggest_float
        values[key] = repr(ask(key, dimension.low, dimension.high, log=dimension.log))
    return values


def _split(word: str) -> tuple[str, str]:
    key, equals, text = word.partition("=")
    if not equals or not key:
        raise ConfigError(f"{word!r} is neither a.b=value nor a.b=low..high, a.b=log:low..high or a.b={{x,y,z}}.")
    return key, text


def _of_file(file: Path | None) -> list[tuple[str, str]]:
    if file is None:
        return []
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{file} does not exist.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{file} cannot be read as YAML ({str(error).splitlines()[0]}).") from None
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise ConfigError(f"{file} must map keys such as stages.0.optimiser.lr to ranges or lists.")
    return [
        (key, "{" + ",".join(map(json.dumps, value)) + "}" if isinstance(value, list) else str(value))
        for key, value in tree.items()
    ]


def _dimension(key: str, text: str) -> Dimension | None:
    """Return the dimension that a text stands for; None if it is a plain value."""
    if text.startswith("{") and text.endswith("}"):
        return _choice(key, text)
    found = _RANGE.fullmatch(text)
    if found is None:
        if text.startswith("log:"):
            raise ConfigError(f"{key}={text}: a range is log:low..high, such as log:1e-5..1e-2.")
        return None
    low, high, log = _number(key, found["low"]), _number(key, found["high"]), bool(found["log"])
    if not low < high:
        raise ConfigError(f"{key}={text}: the range must go from a lower to a higher number.")
    if log and low <= 0:
        raise ConfigError(f"{key}={text}: a logarithmic range must start above zero.")
    return Range(low=low, high=high, log=log)


def _choice(key: str, text: str) -> Choice | None:
    try:
        held = yaml.safe_load(text)
        values = yaml.safe_load(f"[{text[1:-1]}]")
    except yaml.YAMLError:
        raise ConfigError(f"{key}={text}: choices are of the form {{x,y,z}}.") from None
    if any(value is not None for value in held.values()):
        return None  # a mapping, such as {kind: none}
    if len(values) < 2:
        raise ConfigError(f"{key}={text}: give at least two choices, or {key}=value.")
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
