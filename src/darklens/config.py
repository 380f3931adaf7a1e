"""Configurations: immutable models loaded from YAML with overrides `a.b=c`; unknown fields are errors.

A configuration selects components by `kind`. There is no `_target_` or `class_path`, so it cannot import code.
"""

import difflib
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from importlib.resources.abc import Traversable
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from darklens import aliases
from darklens.errors import ConfigError

UNKNOWN = "unknown"
"""The verdict on an image whose class is not known."""

_CLASS_NAME = re.compile(r"\w[\w .+-]{0,63}")
_MAX_NODES = 100_000  # values in a YAML file, as often as aliases repeat them
_MAX_BYTES = 10_000_000  # of a YAML file
_MAX_DEPTH = 100  # of brackets
_LONGEST_VALUE, LONGEST_PROBLEM = 120, 1000  # characters of a value and of a problem in a message


def _checked_class_name(name: str) -> str:
    if not _CLASS_NAME.fullmatch(name) or name == UNKNOWN:
        raise ValueError(
            "the name of a class has up to 64 letters, digits, spaces and . _ + -, begins with a letter or digit, and "
            f"is not {UNKNOWN!r}"
        )
    return name


ClassName = Annotated[str, AfterValidator(_checked_class_name)]
"""Name of a class. It is part of paths, columns and prediction sets `a|b`, and appears on pages and terminals."""


class Frozen(BaseModel):
    """Base class of configurations: immutable, and without unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _fill_default_kind(cls, tree: Any) -> Any:
        """Insert the default `kind` of a component, so that `model.classifier.dropout=0` need not name it."""
        if not isinstance(tree, dict):
            return tree
        filled = dict(tree)
        for name, value in tree.items():
            kind = getattr(getattr(cls.model_fields.get(name), "default", None), "kind", None)
            if isinstance(value, dict) and "kind" not in value and kind is not None:
                filled[name] = {"kind": kind, **value}
        return filled


class OneOf:
    """Annotation of a component whose `kind` selects its schema; new kinds can be registered at any time.

    The unions of pydantic are fixed when a class is created.

    Args:
        schema_of: Returns the schema of a kind; raises ConfigError if there is none.
        kinds: Returns all kinds.
    """

    def __init__(self, schema_of: Callable[[str], type[Frozen]], kinds: Callable[[], Iterable[str]]) -> None:
        self._schema_of, self._kinds = schema_of, kinds

    def __get_pydantic_core_schema__(self, _: Any, __: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._validate)

    def __get_pydantic_json_schema__(self, _: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        choices = {kind: self._schema_of(kind).__pydantic_core_schema__ for kind in self._kinds()}
        return handler(core_schema.tagged_union_schema(choices, discriminator="kind"))

    def _validate(self, value: Any) -> Frozen:
        kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
        if not isinstance(kind, str):
            raise ValueError(f"a mapping with a `kind` is required: {', '.join(self._kinds())}")
        try:
            return self._schema_of(kind).model_validate(value)
        except ConfigError as error:
            raise ValueError(str(error)) from None


C = TypeVar("C", bound=Frozen)


def load(
    schema: type[C], source: Path | dict[str, Any], overrides: Sequence[str] = (), *, name: str | None = None
) -> C:
    """Read a YAML file or a mapping, apply overrides such as `stages.0.epochs=3`, and validate the result.

    Args:
        schema: Type of the configuration.
        source: YAML file, or a mapping.
        overrides: Overrides of the form `key.subkey=value`.
        name: Name of the source in messages; by default its path, or the name of the schema.

    Raises:
        ConfigError: If the file is missing or not YAML, or a key or value is invalid; the message names it.
    """
    name = name or (str(source) if isinstance(source, Path) else schema.__name__.lower())
    tree = read_yaml(source) if isinstance(source, Path) else aliases.configuration(source)
    for override in overrides:
        tree = overlay(tree, override)
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_sentence(name, schema, tree, error)) from None


def dump(config: Frozen) -> str:
    """Return a configuration as YAML from which `load` restores it."""
    return yaml.safe_dump(config.model_dump(mode="json", by_alias=True), sort_keys=False, allow_unicode=True)


def digest(config: Frozen, *, without: str = "") -> str:
    """Return the SHA-256 of the canonical JSON of a configuration, without the field named."""
    tree = config.model_dump(mode="json", by_alias=True, exclude={without})
    canonical = json.dumps(tree, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def merge(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """Merge `top` into `base`. If `kind` changes, `top` replaces the node, so settings of two kinds never mix."""
    if "kind" in base and top.get("kind", base["kind"]) != base["kind"]:
        return dict(top)
    merged = dict(base)
    for key, value in top.items():
        node = merged.get(key)
        merged[key] = merge(node, value) if isinstance(value, dict) and isinstance(node, dict) else value
    return merged


def difference(old: BaseModel, new: BaseModel) -> str:
    """Return the first setting that differs between two models, such as `a.b is 1 there and 2 here`."""
    first, second = (_flat(model.model_dump(mode="json", by_alias=True)) for model in (old, new))
    key = next(key for key in [*first, *second] if first.get(key) != second.get(key))
    return f"{key} is {first.get(key)!r} there and {second.get(key)!r} here"


def _flat(tree: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict | list):
        return {path: tree}
    children = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return {k: v for key, value in children for k, v in _flat(value, f"{path}.{key}" if path else str(key)).items()}


def read_yaml(path: Traversable) -> dict[str, Any]:
    """Return the mapping in a YAML file, with old keys replaced by the new ones.

    Raises:
        ConfigError: If the file is missing, not YAML, or not a mapping; the message names it.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise ValueError("it has more than 10 MB")
        tree = _parsed(content.decode("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist.") from None
    except RecursionError:
        raise ConfigError(f"{path} cannot be read as YAML (it is nested too deeply).") from None
    except (OSError, ValueError, OverflowError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        position = f" near line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{path} cannot be read as YAML{position} ({problem}).") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must contain a mapping of keys to values.")
    return dict(aliases.configuration(tree))


def _parsed(text: str) -> Any:
    """Return the content of a YAML text, in which aliases may repeat at most `_MAX_NODES` values.

    Raises:
        ValueError: If they repeat more, or a value contains itself.
        RecursionError: If brackets are nested more than 100 deep.
    """
    depths = accumulate((character in "[{") - (character in "]}") for character in text)
    if max(depths, default=0) > _MAX_DEPTH:  # the parser's time grows with its square
        raise RecursionError
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _count(node, {}) > _MAX_NODES:
            raise ValueError("its aliases repeat too many values")
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _count(node: yaml.Node, counts: dict[int, float]) -> float:
    """Return the number of values below a node, each as often as aliases repeat it; infinite for one in itself."""
    if id(node) not in counts:
        counts[id(node)] = math.inf
        values = node.value if isinstance(node, yaml.CollectionNode) else []
        children = [child for value in values for child in (value if isinstance(value, tuple) else (value,))]
        counts[id(node)] = 1.0 + sum(_count(child, counts) for child in children)
    return counts[id(node)]


def overlay(tree: dict[str, Any], override: str) -> dict[str, Any]:
    """Return `tree` with an override such as `stages.0.epochs=3` applied.

    Raises:
        ConfigError: If the override does not have that form, or its key does not exist.
    """
    path, equals, text = override.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise ConfigError(f"Override {override!r} is not of the form key.subkey=value.")
    try:
        value = _parsed(text)
    except (ValueError, OverflowError, RecursionError, yaml.YAMLError):
        raise ConfigError(f"Override {override!r}: {text!r} is not a YAML value.") from None
    replaced = _replace(tree, keys, value, override)
    return dict(aliases.configuration(replaced))


def _replace(node: Any, keys: list[str], value: Any, override: str) -> Any:
    if not keys:
        return merge(node, value) if isinstance(node, dict) and isinstance(value, dict) else value
    key, rest = keys[0], keys[1:]
    if isinstance(node, list):
        if not key.isdigit() or int(key) >= len(node):
            raise ConfigError(f"Override {override!r}: {key!r} must be an index from 0 to {len(node) - 1}.")
        return [_replace(item, rest, value, override) if i == int(key) else item for i, item in enumerate(node)]
    if not isinstance(node, dict | None):
        raise ConfigError(f"Override {override!r}: {key!r} is below a scalar value.")
    node = node or {}
    if key == "kind" and not rest and value != node.get("kind"):
        return {"kind": value}
    return {**node, key: _replace(node.get(key), rest, value, override)}


def _sentence(name: str, schema: type[Frozen], tree: Any, error: ValidationError) -> str:
    problems = error.errors()
    first = problems[0]
    key = shortened(".".join(keys_in_file(tree, first["loc"]))) or "(top level)"
    problem = shortened(first["msg"].removeprefix("Value error, ").rstrip("."), LONGEST_PROBLEM)
    if first["type"] == "extra_forbidden":
        last = str(first["loc"][-1])
        matches = difflib.get_close_matches(last, _field_names(schema), n=1)
        if matches == [last]:  # the key exists, but elsewhere in the configuration
            problem = f"unknown key here; {last!r} belongs to another part of the configuration; give its path"
        else:
            problem = "unknown key" + (f"; did you mean {matches[0]!r}?" if matches else "; remove it")
    elif first["type"] == "missing":
        problem = "too few values" if isinstance(first["loc"][-1], int) else "this key is required"
    elif "input" in first and not isinstance(first["input"], dict | list):
        problem = f"{problem}, got {shortened(repr(first['input']))}"
    more = f" ({len(problems) - 1} more problem{'s' if len(problems) > 2 else ''})" if len(problems) > 1 else ""
    end = "" if (problem + more).endswith("?") else "."
    return f"{name}: {key}: {problem}{more}{end}"


def shortened(text: str, longest: int = _LONGEST_VALUE) -> str:
    """Return a text that may be very long, for a message."""
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def keys_in_file(tree: Any, loc: tuple[str | int, ...]) -> list[str]:
    """Return the keys of a pydantic location as they are in the file, without the kinds that pydantic inserts."""
    keys: list[str] = []
    for i, part in enumerate(loc):
        is_item = isinstance(tree, list) and isinstance(part, int) and part < len(tree)
        is_key = is_item or (isinstance(tree, dict) and part in tree)
        if is_key:
            tree = tree[part]
        elif i < len(loc) - 1 or not isinstance(tree, dict) or tree.get("kind") == part:
            continue
        keys.append(str(part))
    return keys


def _field_names(schema: type[Frozen]) -> list[str]:
    names: set[str] = set()

    def collect(node: Any) -> None:
        if isinstance(node, dict):
            names.update(node.get("properties", {}))
            for child in node.values():
                collect(child)
        elif isinstance(node, list):
            for child in node:
                collect(child)

    collect(schema.model_json_schema())
    return sorted(names)
