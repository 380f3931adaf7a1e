import pytest
from spawning import start_code

from darklens.errors import ConfigError
from darklens.models.zoo import SYSTEMS
from darklens.registry import Registry


def test_a_name_is_registered_once_unless_replaced():
    registry = Registry("thing")
    registry.add("a", 1)
    with pytest.raises(ValueError, match="thing 'a' is already registered"):
        registry.add("a", 2)
    registry.add("a", 2, replace=True)
    assert registry["a"] == 2 and list(registry) == ["a"] and len(registry) == 1 and "a" in registry


def test_the_message_for_an_unknown_name_mentions_plug_ins():
    with pytest.raises(ConfigError, match=r"Unknown system 'tiny_net': choose one of: .*\. If .* DARKLENS_PLUGINS\.$"):
        SYSTEMS["tiny_net"]


def test_the_message_for_an_unknown_name_suggests_the_closest():
    registry = Registry("thing")
    registry.add("point", 1)
    with pytest.raises(ConfigError, match="Unknown thing 'pont': did you mean 'point'"):
        registry["pont"]


def test_importing_the_module_of_a_registry_fills_it():
    """A registry filled by the import of another module is empty until someone imports that one."""
    code = """
from importlib import import_module
modules = {"data.importers": "IMPORTERS", "models.zoo": "SYSTEMS", "physics.profiles": "PROFILES",
           "populations.population": "POPULATIONS", "populations.instruments": "INSTRUMENTS", "recipes": "RECIPES"}
assert not [name for name, registry in modules.items() if not len(getattr(import_module(f"darklens.{name}"), registry))]
"""
    process = start_code(code)
    process.join()
    assert process.exitcode == 0
