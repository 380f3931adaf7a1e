"""DeepLenseSim's object arrays: a pickle, read without the pickle machine.

Nothing is imported or called. The instructions that numpy writes for an array of arrays and numbers are followed on a
stack of plain values; any other instruction, and any global name but numpy's few, ends the reading.
"""

import math
import pickletools
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numpy as np
from jaxtyping import Float

from darklens.data.readers.image import MAX_PIXELS

MAX_STEPS = 10_000
_ARRAY, _DTYPE, _SCALAR = "_reconstruct", "dtype", "scalar"
_KNOWN = {
    "numpy.core.multiarray _reconstruct": _ARRAY,
    "numpy._core.multiarray _reconstruct": _ARRAY,
    "numpy.core.multiarray scalar": _SCALAR,
    "numpy._core.multiarray scalar": _SCALAR,
    "numpy ndarray": "ndarray",
    "numpy dtype": _DTYPE,
}
_PUSH = {"BININT", "BININT1", "BININT2", "BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES", "BINFLOAT"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MARK = object()


class ForeignError(ValueError):
    """The pickle holds something else than arrays and numbers."""


@dataclass
class _Made:
    """What a call would have made: its kind, its arguments, and the state it was given."""

    kind: str
    arguments: tuple[Any, ...]
    state: tuple[Any, ...] = field(default_factory=tuple)


def only_image(data: bytes) -> Float[np.ndarray, "n m"]:
    """Return the one image among the elements of a pickled object array.

    Raises:
        ForeignError: If the pickle holds anything but arrays and numbers, or not exactly one image.
    """
    top = _run(data)
    if not (isinstance(top, _Made) and top.kind == _ARRAY and len(top.state) == 5 and isinstance(top.state[4], list)):
        raise ForeignError
    arrays = [item for item in top.state[4] if isinstance(item, _Made) and item.kind == _ARRAY]
    if len(arrays) != 1:  # before any is made: one may stand there ten thousand times
        raise ForeignError
    return _plane(arrays[0])


def _plane(made: _Made) -> Float[np.ndarray, "n m"]:
    if len(made.state) != 5:
        raise ForeignError
    _, shape, dtype, fortran_order, data = made.state
    if not (isinstance(shape, tuple) and len(shape) == 2 and all(type(n) is int and n > 0 for n in shape)):
        raise ForeignError
    if math.prod(shape) > MAX_PIXELS or not isinstance(data, bytes):
        raise ForeignError
    array = np.frombuffer(data, dtype=_number_type(dtype), count=math.prod(shape))
    return array.reshape(shape, order="F" if fortran_order else "C").astype(np.float64)


def _number_type(made: Any) -> np.dtype:
    if not (isinstance(made, _Made) and made.kind == _DTYPE and len(made.state) > 1):
        raise ForeignError
    name, order = made.arguments[0], made.state[1]
    if name not in ("f4", "f8", "u1", "u2", "i2", "i4", "i8") or order not in ("<", ">", "|", "="):
        raise ForeignError
    return np.dtype(f"{order}{name}")


def _run(data: bytes) -> Any:
    stack: list[Any] = []
    memo: dict[Any, Any] = {}
    for step, (operation, argument, _) in enumerate(pickletools.genops(BytesIO(data))):
        code = operation.name
        if step > MAX_STEPS:
            raise ForeignError
        if code == "STOP":
            return stack.pop()
        if code in _PUSH:
            stack.append(argument)
        elif code in _CONSTANTS:
            stack.append(_CONSTANTS[code])
        elif code == "MARK":
            stack.append(_MARK)
        elif code == "EMPTY_LIST":
            stack.append([])
        elif code in _TUPLES:
            stack.append(_popped(stack, _TUPLES[code]))
        elif code == "TUPLE":
            stack.append(_since_mark(stack))
        elif code in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif code == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif code in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif code in ("GLOBAL", "STACK_GLOBAL"):
            name = argument if code == "GLOBAL" else " ".join(_popped(stack, 2))
            if name not in _KNOWN:
                raise ForeignError
            stack.append(_KNOWN[name])
        elif code == "REDUCE":
            kind, arguments = _popped(stack, 2)
            if kind not in (_ARRAY, _DTYPE, _SCALAR) or not isinstance(arguments, tuple):
                raise ForeignError
            stack.append(_Made(kind, arguments))
        elif code == "BUILD":
            made, state = _popped(stack, 2)
            if not isinstance(made, _Made) or not isinstance(state, tuple):
                raise ForeignError
            made.state = state
            stack.append(made)
        elif code in ("APPEND", "APPENDS"):
            items = _since_mark(stack) if code == "APPENDS" else _popped(stack, 1)
            if not isinstance(stack[-1], list):
                raise ForeignError
            stack[-1].extend(items)
        elif code not in ("PROTO", "FRAME"):
            raise ForeignError
    raise ForeignError


def _popped(stack: list[Any], n: int) -> tuple[Any, ...]:
    return tuple([stack.pop() for _ in range(n)][::-1])


def _since_mark(stack: list[Any]) -> tuple[Any, ...]:
    items = []
    while (item := stack.pop()) is not _MARK:
        items.append(item)
    return tuple(items[::-1])
