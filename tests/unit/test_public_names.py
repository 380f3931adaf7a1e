from importlib import import_module

import pytest
from spawning import start_code

import darklens


def test_every_public_name_is_found_where_it_lives():
    assert dir(darklens) == sorted([*darklens.__all__, "__version__"])
    for name in darklens.__all__:
        module, attribute = darklens._HOME[name]
        public = getattr(darklens, name)
        if not attribute:  # a package that can be called
            assert public is import_module(module) and callable(public)
            continue
        assert public is getattr(import_module(module), attribute)
        assert public.__module__.startswith(module) and public.__name__ == attribute


def test_other_names_are_not():
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = darklens.nonsense


def test_the_package_of_fits_is_a_function_whatever_was_imported_before():
    code = (
        "import sys; from darklens import fit; assert callable(fit) and 'darklens.fit.scene_fit' not in sys.modules; "
    )
    code += "import darklens.fit.macro; from darklens import fit as again; assert again is fit is darklens.fit"
    process = start_code(code)
    process.join()
    assert process.exitcode == 0
