"""Run-time checks of types and shapes: jaxtyping's import hook, at a fraction of the time that it takes by itself."""

import functools
import inspect
from types import SimpleNamespace
from typing import ForwardRef, Literal, get_args, get_origin

import jaxtyping
from jaxtyping import AbstractArray, jaxtyped

CHECKED_CALLS = 20  # of a function in each test; a fit calls the same functions ten thousand times
_state = SimpleNamespace(test=0)


def install():
    """Check the arguments and the results of darklens's functions from now on, in their first calls of each test."""
    jaxtyping.jaxtyped = checked  # the name by which the hook decorates functions
    jaxtyping.install_import_hook("darklens", "beartype.beartype")


def begin_test():
    """Check the first calls of each function again."""
    _state.test += 1


def checked(function=None, *, typechecker):
    """Decorate a function as `jaxtyped` does: `typechecker` checks types, and shapes where an annotation has one.

    For each call, jaxtyping binds the arguments to the signature and checks them, and checks them again with the
    result: some 20 µs, as long as many operations on tensors. Here arguments are checked once, and bound only where the
    signature has a shape, which is one call in eight.
    """
    if function is None:
        return functools.partial(checked, typechecker=typechecker)
    if not inspect.isfunction(function) or _contains(function, _is_name):
        return jaxtyped(function, typechecker=typechecker)
    with_types = typechecker(function)
    return _at_first(function, jaxtyped(with_types, typechecker=None) if _contains(function, _is_array) else with_types)


def _at_first(function, with_checks):
    """Return a function whose first calls of each test are checked."""
    test, calls = -1, 0

    @functools.wraps(function)
    def call(*arguments, **options):
        nonlocal test, calls
        if test != _state.test:
            test, calls = _state.test, 0
        calls += 1
        return (with_checks if calls <= CHECKED_CALLS else function)(*arguments, **options)

    return call


def _contains(function, is_wanted):
    """Return whether an annotation of a function is wanted, or a part of one is."""

    def is_within(hint):
        parts = hint if isinstance(hint, list) else () if get_origin(hint) is Literal else get_args(hint)
        return is_wanted(hint) or any(map(is_within, parts))

    return any(map(is_within, function.__annotations__.values()))


def _is_name(hint):
    """Return whether an annotation is in quotation marks: jaxtyping resolves it, or leaves it unchecked."""
    return isinstance(hint, str | ForwardRef)


def _is_array(hint):
    return inspect.isclass(hint) and issubclass(hint, AbstractArray)
