"""Arithmetic expressions of single numbers, recorded from a function of tensors.

`record` calls a function once with small tensors and follows each of their elements through PyTorch's operations. The
result is a list of expressions of single numbers in which equal expressions occur once. `darklens.kernels.fields`
writes them as C++.
"""

import operator
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_TOLERANCE = 1e-3  # relative, of expressions and function in float64; series have more terms there


class Expression(NamedTuple):
    """One number: the result of an operation.

    Attributes:
        operation: Its name; "input" for an element of an argument, "constant" for a number.
        operands: Indices of the expressions it is applied to.
        value: The number of a constant; argument and element of an input.
    """

    operation: str
    operands: tuple[int, ...] = ()
    value: Any = None


class Expressions:
    """Expressions by index; operands come before the expressions that use them."""

    def __init__(self) -> None:
        self.items: list[Expression] = []
        self._index: dict[Expression, int] = {}

    def values(self, arguments: Sequence[Tensor]) -> list[float]:
        """Return the values of all expressions for some arguments."""
        elements = [argument.double().flatten().tolist() for argument in arguments]
        values: list[float] = []
        with np.errstate(all="ignore"):
            for item in self.items:
                if item.operation == "constant":
                    values.append(item.value)
                elif item.operation == "input":
                    values.append(elements[item.value[0]][item.value[1]])
                else:
                    values.append(float(_OPERATIONS[item.operation](*(values[i] for i in item.operands))))
        return values

    def _add(self, expression: Expression) -> int:
        index = self._index.setdefault(expression, len(self.items))
        if index == len(self.items):
            self.items.append(expression)
        return index

    def input(self, argument: int, element: int) -> int:
        """Return the index of an element of an argument."""
        return self._add(Expression("input", value=(argument, element)))

    def constant(self, value: float) -> int:
        """Return the index of a number."""
        return self._add(Expression("constant", value=float(value)))

    def _number(self, index: int) -> float | None:
        item = self.items[index]
        return item.value if item.operation == "constant" else None

    def apply(self, operation: str, *operands: int) -> int:
        """Return the index of the result of an operation, simplified where an operand is constant."""
        numbers = [self._number(operand) for operand in operands]
        if operation in _FOLDED and None not in numbers:
            with np.errstate(all="ignore"):
                return self.constant(_FOLDED[operation](*numbers))
        simple = self._simplified(operation, operands, numbers)
        if simple is not None:
            return simple
        ordered = tuple(sorted(operands)) if operation in ("add", "mul") else operands
        return self._add(Expression(operation, ordered))

    def _simplified(self, operation: str, operands: tuple[int, ...], numbers: list[float | None]) -> int | None:
        """Return the index of an equal expression that is shorter, if there is one. Zero times a number is zero."""
        if operation in ("add", "mul"):
            for number, other in zip(numbers, operands[::-1], strict=True):
                if number == (0.0 if operation == "add" else 1.0):
                    return other
                if operation == "mul" and number == 0.0:
                    return self.constant(0.0)
                if operation == "mul" and number == -1.0:
                    return self.apply("neg", other)
        if operation == "add":
            for operand, other in (operands, operands[::-1]):
                if self.items[operand].operation == "neg":
                    return self.apply("sub", other, self.items[operand].operands[0])
        if operation == "sub":
            if numbers[1] == 0.0:
                return operands[0]
            if numbers[0] == 0.0:
                return self.apply("neg", operands[1])
        if operation == "div":
            return self.apply("mul", operands[0], self.apply("reciprocal", operands[1]))
        if operation == "neg" and self.items[operands[0]].operation == "neg":
            return self.items[operands[0]].operands[0]
        if operation == "where" and numbers[0] is not None:
            return operands[1] if numbers[0] else operands[2]
        if operation == "pow" and numbers[1] is not None:
            return self._power(operands[0], numbers[1])
        return None

    def _power(self, base: int, power: float) -> int | None:
        """Return the index of a power by products, for multiples of a half up to 4."""
        if power < 0:
            positive = self.apply("pow", base, self.constant(-power))
            return self.apply("reciprocal", positive)
        if power > 4 or (2 * power) % 1:
            return None
        factors = [base] * int(power) + ([self.apply("sqrt", base)] if power % 1 else [])
        return reduce(lambda a, b: self.apply("mul", a, b), factors, self.constant(1.0))


_FOLDED: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "neg": operator.neg,
    "reciprocal": lambda a: np.float64(1) / a,
    "sqrt": np.sqrt,
    "greater": lambda a, b: float(a > b),
    "not_less": lambda a, b: float(a >= b),
    "not": lambda a: 1 - a,
}
_OPERATIONS: dict[str, Callable[..., Any]] = _FOLDED | {
    "exp": np.exp,
    "log": np.log,
    "log1p": np.log1p,
    "sin": np.sin,
    "cos": np.cos,
    "atan": np.arctan,
    "atan2": np.arctan2,
    "atanh": np.arctanh,
    "hypot": np.hypot,
    "abs": abs,
    "sign": np.sign,
    "pow": np.float_power,
    "maximum": np.maximum,
    "where": lambda condition, a, b: a if condition else b,
}

_aten = torch.ops.aten
_POINTWISE = {
    _aten.add: "add",
    _aten.sub: "sub",
    _aten.mul: "mul",
    _aten.div: "div",
    _aten.neg: "neg",
    _aten.reciprocal: "reciprocal",
    _aten.sqrt: "sqrt",
    _aten.exp: "exp",
    _aten.log: "log",
    _aten.log1p: "log1p",
    _aten.sin: "sin",
    _aten.cos: "cos",
    _aten.atan: "atan",
    _aten.atan2: "atan2",
    _aten.atanh: "atanh",
    _aten.hypot: "hypot",
    _aten.abs: "abs",
    _aten.sign: "sign",
    _aten.pow: "pow",
    _aten.where: "where",
    _aten.gt: "greater",
    _aten.ge: "not_less",
    _aten.bitwise_not: "not",
    _aten.maximum: "maximum",
    _aten.clamp_min: "maximum",
}
_MOVED = {
    _aten.alias,
    _aten.cat,
    _aten.clone,
    _aten.detach,
    _aten.expand,
    _aten.flip,
    _aten.permute,
    _aten.select,
    _aten.slice,
    _aten.split,
    _aten.squeeze,
    _aten.stack,
    _aten.t,
    _aten.transpose,
    _aten.unbind,
    _aten.unsqueeze,
    _aten.view,
    _aten._unsafe_view,
}
_NEW = {_aten.zeros_like, _aten.ones_like, _aten.full_like, _aten.new_zeros, _aten.new_ones, _aten.new_full}


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # no types
    """Computes each operation as usual and notes the expressions of its result."""

    def __init__(self, arguments: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # no types
        self.expressions = Expressions()
        self._known: dict[int, tuple[Tensor, Tensor]] = {}  # tensors that depend on an argument, with their indices
        for number, argument in enumerate(arguments):
            indices = [self.expressions.input(number, element) for element in range(argument.numel())]
            self._note(argument, torch.tensor(indices).reshape(argument.shape))

    def _note(self, tensor: Tensor, indices: Tensor) -> None:
        self._known[id(tensor)] = tensor, indices

    def _depends(self, argument: Any) -> bool:
        if isinstance(argument, list | tuple):
            return any(map(self._depends, argument))
        return isinstance(argument, Tensor) and id(argument) in self._known

    def indices(self, argument: Any) -> Any:
        """Return the indices of the expressions of a tensor or number; lists of these become lists."""
        if isinstance(argument, list | tuple):
            return [self.indices(item) for item in argument]
        if isinstance(argument, Tensor) and id(argument) in self._known:
            return self._known[id(argument)][1]
        values = argument if isinstance(argument, Tensor) else torch.tensor(argument, dtype=torch.float64)
        constants = [self.expressions.constant(value) for value in values.double().flatten().tolist()]
        return torch.tensor(constants, dtype=torch.int64).reshape(values.shape)

    def _dispatch(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Compute an operation, and note its expressions if it depends on an argument."""
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        packet = function.overloadpacket
        if packet in _NEW or not self._depends(args):
            return result
        indices = self._result(packet, args, kwargs)
        if isinstance(result, Tensor):
            self._note(result, indices)
        else:
            for tensor, part in zip(result, indices, strict=True):
                self._note(tensor, part)
        return result

    def _result(self, packet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if packet in _MOVED:
            return packet(self.indices(args[0]), *args[1:], **kwargs)
        if packet is _aten._to_copy and kwargs.get("dtype", torch.float32).is_floating_point:
            return self.indices(args[0])
        if packet in _POINTWISE and not kwargs:
            return self._broadcast(_POINTWISE[packet], *map(self.indices, args))
        if packet is _aten.rsub and len(args) == 2 and not kwargs:
            return self._broadcast("sub", *map(self.indices, args[1::-1]))
        if packet in (_aten.lt, _aten.le):
            return self._broadcast("greater" if packet is _aten.lt else "not_less", *map(self.indices, args[1::-1]))
        if packet is _aten.rsqrt:
            return self._broadcast("reciprocal", self._broadcast("sqrt", self.indices(args[0])))
        if packet is _aten.square:
            return self._broadcast("mul", *[self.indices(args[0])] * 2)
        if packet is _aten.addcmul:
            first, second, third, factor = map(self.indices, (*args, kwargs.get("value", 1)))
            return self._broadcast("add", first, self._broadcast("mul", factor, self._broadcast("mul", second, third)))
        if packet in (_aten.sum, _aten.cumsum, _aten.cumprod):
            return self._accumulated(packet, *args, **kwargs)
        if packet in (_aten.mm, _aten.bmm):
            rows, columns = self.indices(args[0]), self.indices(args[1]).mT
            products = self._broadcast("mul", rows[..., :, None, :], columns[..., None, :, :])
            return self._accumulated(_aten.sum, products, -1)
        raise NotImplementedError(f"{packet} has no rule for expressions; add one to darklens.kernels.expressions")

    def _broadcast(self, operation: str, *operands: Tensor) -> Tensor:
        arrays: tuple[Tensor, ...] = torch.broadcast_tensors(*operands)  # type: ignore[no-untyped-call]  # no types
        rows = zip(*(array.flatten().tolist() for array in arrays), strict=True)
        return torch.tensor([self.expressions.apply(operation, *row) for row in rows], dtype=torch.int64).reshape(
            arrays[0].shape
        )

    def _accumulated(self, packet: Any, tensor: Tensor, dim: Any = None, keepdim: bool = False, **_: Any) -> Tensor:
        indices = tensor if tensor.dtype == torch.int64 else self.indices(tensor)
        if dim is None:
            return self._accumulated(packet, indices.flatten(), 0)
        if isinstance(dim, list | tuple):
            for axis in sorted((d % indices.ndim for d in dim), reverse=True):
                indices = self._accumulated(packet, indices, axis, keepdim)
            return indices
        parts = indices.unbind(dim)
        totals = [parts[0]]
        for part in parts[1:]:
            totals.append(self._broadcast("mul" if packet is _aten.cumprod else "add", totals[-1], part))
        if packet is _aten.sum:
            return totals[-1].unsqueeze(dim) if keepdim else totals[-1]
        return torch.stack(totals, dim)


# Defined in the class, it would be wrapped in a decorator that imports torch._dynamo, which takes two seconds.
_Recorder.__torch_dispatch__ = _Recorder._dispatch  # type: ignore[method-assign, assignment]  # no types


def record(function: Callable[..., Tensor], arguments: Sequence[Tensor]) -> tuple[Expressions, list[int]]:
    """Return the expressions of all elements of a function's result, in their order, from one call.

    Args:
        function: Function of tensors. Its operations must not depend on their values.
        arguments: Tensors; their values do not matter.

    Raises:
        NotImplementedError: If an operation has no rule.
    """
    # In inference mode some operations would arrive as others.
    with torch.inference_mode(False), torch.no_grad():
        copies = [argument.clone() for argument in arguments]  # one tensor may stand for two arguments
        with _Recorder(copies) as recorder:
            result = function(*copies)
    outputs: list[int] = recorder.indices(result).flatten().tolist()
    return recorder.expressions, outputs


def verify(
    function: Callable[..., Tensor], arguments: Sequence[Tensor], expressions: Expressions, outputs: Sequence[int]
) -> None:
    """Compare recorded expressions with their function, in float64.

    Raises:
        RuntimeError: If they have other values, so a rule is wrong.
    """
    with torch.inference_mode(False), torch.no_grad():
        exact = function(*(argument.double() for argument in arguments)).flatten()
    values = expressions.values(arguments)
    recorded = torch.tensor([values[index] for index in outputs], dtype=torch.float64)
    finite = exact.isfinite()
    size = exact[finite].abs()
    tolerance = _TOLERANCE * size.maximum(_TOLERANCE * size.max()) if len(size) else size
    if not bool(((recorded[finite] - exact[finite]).abs() <= tolerance).all()):
        raise RuntimeError(
            "recorded expressions differ from the function; a rule of darklens.kernels.expressions is wrong"
        )
