from importlib import import_module

import pytest

import darklens


def test_every_public_name_is_found_where_it_lives():
    assert dir(darklens) == sorted([*darklens.__all__, "__version__"])
    for name in darklens.__all__:
        module, attribute = darklens._HOME[name]
        public = getattr(darklens, name)
        assert public is getattr(import_module(module), attribute)
        assert public.__module__.startswith(module) and public.__name__ == attribute


def test_other_names_are_not():
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = darklens.nonsense
