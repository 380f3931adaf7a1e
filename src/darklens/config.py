"""Configuration: frozen models in which an unknown field is an error, loaded from YAML plus `a.b=c` overrides.

There is no `_target_` or `class_path`: a configuration names components by `kind`, so it cannot import code.
"""

import difflib
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from darklens import aliases
from darklens.errors import ConfigError


class Frozen(BaseModel):
    """Base of every configuration: immutable, and strict about its fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _kind_of_the_default(cls, tree: Any) -> Any:
        """Let a part be changed without naming its `kind`, as in `model.classifier.dropout=0`: it is the default's."""
        if not isinstance(tree, dict):
            return tree
        filled = dict(tree)
        for name, value in tree.items():
            kind = getattr(getattr(cls.model_fields.get(name), "default", None), "kind", None)
            if isinstance(value, dict) and "kind" not in value and kind is not None:
                filled[name] = {"kind": kind, **value}
        return filled


class OneOf:
    """Annotation of a part that is one of several schemas, told by its `kind`; more can be registered at any time.

    Pydantic's own unions are closed when a class is made.

    Args:
        schema_of: The schema of a kind; raises ConfigError if there is none.
        kinds: All kinds.
    """

    def __init__(self, schema_of: Callable[[str], type[Frozen]], kinds: Callable[[], Iterable[str]]) -> None:
        self._schema_of, self._kinds = schema_of, kinds

    def __get_pydantic_core_schema__(self, _: Any, __: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._validated)

    def __get_pydantic_json_schema__(self, _: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        choices = {kind: self._schema_of(kind).__pydantic_core_schema__ for kind in self._kinds()}
        return handler(core_schema.tagged_union_schema(choices, discriminator="kind"))

    def _validated(self, value: Any) -> Frozen:
        kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
        if not isinstance(kind, str):
            raise ValueError(f"a mapping with a `kind` is needed: {', '.join(self._kinds())}")
        try:
            return self._schema_of(kind).model_validate(value)
        except ConfigError as error:
            raise ValueError(str(error)) from None


C = TypeVar("C", bound=Frozen)


def load(
    schema: type[C], source: Path | dict[str, Any], overrides: Sequence[str] = (), *, name: str | None = None
) -> C:
    """Read a YAML file (or a mapping), apply overrides such as `stages.0.epochs=3`, and validate.

    `name` is what messages call the source; by default its path, or the schema's name.

    Raises:
        ConfigError: If the file is missing or not YAML, or a key or value is wrong; the message names it.
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
    """Return the configuration as YAML that `load` reads back to an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json", by_alias=True), sort_keys=False, allow_unicode=True)


def digest(config: Frozen) -> str:
    """Return the SHA-256 of the configuration's canonical JSON."""
    canonical = json.dumps(config.model_dump(mode="json", by_alias=True), sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def merge(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """Overlay `top` on `base`; a changed `kind` replaces the node, so two kinds never blend."""
    if "kind" in base and top.get("kind", base["kind"]) != base["kind"]:
        return dict(top)
    merged = dict(base)
    for key, value in top.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(value, dict) and isinstance(below, dict) else value
    return merged


def difference(one: BaseModel, other: BaseModel) -> str:
    """Return the first setting in which two differ, and what each has: `a.b is 1 there and 2 here`."""
    there, here = (_flat(each.model_dump(mode="json", by_alias=True)) for each in (one, other))
    key = next(key for key in [*there, *here] if there.get(key) != here.get(key))
    return f"{key} is {there.get(key)!r} there and {here.get(key)!r} here"


def _flat(tree: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict | list):
        return {path: tree}
    inside = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return {k: v for key, value in inside for k, v in _flat(value, f"{path}.{key}" if path else str(key)).items()}


def read_yaml(path: Traversable) -> dict[str, Any]:
    """Return the mapping that a YAML file holds, with old keys replaced.

    Raises:
        ConfigError: If the file is missing, not YAML or no mapping; the message names it.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" near line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{path} cannot be read as YAML{where} ({what}).") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold a mapping of keys to values.")
    return dict(aliases.configuration(tree))


def overlay(tree: dict[str, Any], override: str) -> dict[str, Any]:
    """Return `tree` with an override such as `stages.0.epochs=3` applied.

    Raises:
        ConfigError: If the override is not of that form, or leads to no key.
    """
    path, equals, text = override.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise ConfigError(f"Override {override!r} is not of the form key.subkey=value.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
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
        raise ConfigError(f"Override {override!r}: {key!r} lies below a plain value.")
    node = node or {}
    if key == "kind" and not rest and value != node.get("kind"):
        return {"kind": value}
    return {**node, key: _replace(node.get(key), rest, value, override)}


def _sentence(name: str, schema: type[Frozen], tree: Any, error: ValidationError) -> str:
    problems = error.errors()
    first = problems[0]
    where = ".".join(_as_written(tree, first["loc"])) or "(top level)"
    what = first["msg"].removeprefix("Value error, ").rstrip(".")
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(first["loc"][-1]), _field_names(schema), n=1)
        what = "unknown key" + (f"; did you mean {near[0]!r}?" if near else "; remove it")
    elif first["type"] == "missing":
        what = "this key is required"
    elif "input" in first and not isinstance(first["input"], dict | list):
        what = f"{what}, got {first['input']!r}"
    more = f" ({len(problems) - 1} more problem{'s' if len(problems) > 2 else ''})" if len(problems) > 1 else ""
    end = "" if (what + more).endswith("?") else "."
    return f"{name}: {where}: {what}{more}{end}"


def _as_written(tree: Any, loc: tuple[str | int, ...]) -> list[str]:
    """Return the keys of a place as they stand in the file: pydantic adds the kinds it chose on the way."""
    keys: list[str] = []
    for i, part in enumerate(loc):
        inside = (isinstance(tree, dict) and part in tree) or (isinstance(tree, list) and isinstance(part, int))
        if inside:
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
