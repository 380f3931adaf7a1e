"""Reader of the object arrays of DeepLenseSim, which are pickles, without unpickling.

It imports and calls nothing. It interprets the opcodes that NumPy writes for an array of arrays and numbers on a stack
of plain values, and rejects every other opcode and every global name but those of NumPy.
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
_ALLOWED_GLOBALS = {
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
    """The pickle contains something other than arrays and numbers."""


@dataclass
class _Object:
    """An object that unpickling would create: its kind, the arguments of its constructor, and its state."""

    kind: str
    arguments: tuple[Any, ...]
    state: tuple[Any, ...] = field(default_factory=tuple)


def only_image(data: bytes) -> Float[np.ndarray, "n m"]:
    """Return the only image among the elements of a pickled object array.

    Raises:
        ForeignError: If the pickle contains anything but arrays and numbers, or not exactly one image.
    """
    top = _run(data)
    if not (isinstance(top, _Object) and top.kind == _ARRAY and len(top.state) == 5 and isinstance(top.state[4], list)):
        raise ForeignError
    arrays = [item for item in top.state[4] if isinstance(item, _Object) and item.kind == _ARRAY]
    if len(arrays) != 1:  # checked before any is created: a pickle may repeat one ten thousand times
        raise ForeignError
    return _plane(arrays[0])


def _plane(item: _Object) -> Float[np.ndarray, "n m"]:
    if len(item.state) != 5:
        raise ForeignError
    _, shape, dtype, fortran_order, data = item.state
    if not (isinstance(shape, tuple) and len(shape) == 2 and all(type(n) is int and n > 0 for n in shape)):
        raise ForeignError
    if math.prod(shape) > MAX_PIXELS or not isinstance(data, bytes):
        raise ForeignError
    array = np.frombuffer(data, dtype=_number_type(dtype), count=math.prod(shape))
    return array.reshape(shape, order="F" if fortran_order else "C").astype(np.float64)


def _number_type(item: Any) -> np.dtype:
    if not (isinstance(item, _Object) and item.kind == _DTYPE and len(item.state) > 1):
        raise ForeignError
    name, order = item.arguments[0], item.state[1]
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
            stack.append(_pop(stack, _TUPLES[code]))
        elif code == "TUPLE":
            stack.append(_pop_to_mark(stack))
        elif code in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif code == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif code in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif code in ("GLOBAL", "STACK_GLOBAL"):
            name = argument if code == "GLOBAL" else " ".join(_pop(stack, 2))
            if name not in _ALLOWED_GLOBALS:
                raise ForeignError
            stack.append(_ALLOWED_GLOBALS[name])
        elif code == "REDUCE":
            kind, arguments = _pop(stack, 2)
            if kind not in (_ARRAY, _DTYPE, _SCALAR) or not isinstance(arguments, tuple):
                raise ForeignError
            stack.append(_Object(kind, arguments))
        elif code == "BUILD":
            item, state = _pop(stack, 2)
            if not isinstance(item, _Object) or not isinstance(state, tuple):
                raise ForeignError
            item.state = state
            stack.append(item)
        elif code in ("APPEND", "APPENDS"):
            items = _pop_to_mark(stack) if code == "APPENDS" else _pop(stack, 1)
            if not isinstance(stack[-1], list):
                raise ForeignError
            stack[-1].extend(items)
        elif code not in ("PROTO", "FRAME"):
            raise ForeignError
    raise ForeignError


def _pop(stack: list[Any], n: int) -> tuple[Any, ...]:
    return tuple([stack.pop() for _ in range(n)][::-1])


def _pop_to_mark(stack: list[Any]) -> tuple[Any, ...]:
    items = []
    while (item := stack.pop()) is not _MARK:
        items.append(item)
    return tuple(items[::-1])
