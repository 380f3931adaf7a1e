import pytest

from darklens.errors import ConfigError
from darklens.models.zoo import SYSTEMS
from darklens.registry import Registry


def test_a_name_is_taken_once_unless_it_is_to_be_replaced():
    registry = Registry("thing")
    registry.add("a", 1)
    with pytest.raises(ValueError, match="thing 'a' is registered twice"):
        registry.add("a", 2)
    registry.add("a", 2, replace=True)
    assert registry["a"] == 2 and list(registry) == ["a"] and len(registry) == 1 and "a" in registry


def test_an_unknown_name_may_be_that_of_a_plug_in_where_there_are_such():
    with pytest.raises(ConfigError, match=r"Unknown system 'tiny_net': choose one of: .*\. If .* DARKLENS_PLUGINS\.$"):
        SYSTEMS["tiny_net"]


def test_an_unknown_name_is_answered_with_the_nearest():
    registry = Registry("thing")
    registry.add("point", 1)
    with pytest.raises(ConfigError, match="Unknown thing 'pont': did you mean 'point'"):
        registry["pont"]
