"""A pretend CUDA device, for tests on machines without a GPU.

    with pretend_device() as device:
        images = torch.rand(2, 3, device="cuda")     # on cuda:0, computed by the CPU
        images + torch.rand(2, 3)                    # RuntimeError, as on a GPU

A `PretendTensor` holds a tensor on the CPU. Each call of torch is intercepted before it reaches C++: the devices of its
arguments are checked by the rules of CUDA, the CPU computes the values, and results on the device are marked as such.
Values are therefore bit-identical to those of the CPU. Rules of CUDA:

- All tensors are on one device, except 0-dim CPU tensors in elementwise operations, and CPU tensors as indices.
- Random generators are on the device of the result.
- `.numpy()`, `numpy.asarray` and the address of the values need a copy on the CPU.
- Tensors made without `device=` are on the CPU.

It does not imitate rounding, atomic operations in undefined order, memory, streams or torch.compile.
"""

from contextlib import contextmanager
from unittest import mock

import torch
import torch._dynamo  # which reads torch's functions when it is first imported, so before they are replaced
from torch import Tensor
from torch.overrides import TorchFunctionMode

CUDA = torch.device("cuda", 0)
CPU_GENERATOR = torch.Generator
_MAKE_SUBCLASS = Tensor._make_subclass

# Operations that take 0-dim CPU tensors beside tensors on the device, without underscores and a leading r or i.
_ELEMENTWISE = {
    *("add", "sub", "subtract", "mul", "multiply", "div", "divide", "truediv", "true_divide", "floordiv"),
    *("floor_divide", "mod", "fmod", "remainder", "pow", "float_power", "lerp", "addcmul", "addcdiv"),
    *("maximum", "minimum", "max", "min", "fmax", "fmin", "clamp", "clip", "clamp_min", "clamp_max", "where"),
    *("atan2", "arctan2", "hypot", "copysign", "nextafter", "xlogy", "logaddexp", "logaddexp2", "heaviside"),
    *("eq", "ne", "lt", "le", "gt", "ge", "greater", "greater_equal", "less", "less_equal", "not_equal", "isclose"),
    *("and", "or", "xor", "logical_and", "logical_or", "logical_xor", "bitwise_and", "bitwise_or", "bitwise_xor"),
    *("masked_fill", "foreach_add", "foreach_mul"),
}
_COPIES = {"copy_", "_has_compatible_shallow_copy_type"}
_NEED_CPU = {"numpy", "__array__", "data_ptr", "untyped_storage", "storage", "__dlpack__", "share_memory_"}
_INDEXING = {"__getitem__", "__setitem__", "index_put", "index_put_"}


class PretendTensor(Tensor):
    """A tensor that reports cuda:0 and holds its values in `cpu_values`."""

    cpu_values: Tensor

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return _call(func, args, kwargs or {}, None)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} was not intercepted by the pretend device")

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            copy = on_device(self.cpu_values.__deepcopy__(memo))
            copy._is_param = getattr(self, "_is_param", False)
            memo[id(self)] = copy
        return memo[id(self)]


_HANDLERS = (Tensor.__torch_function__, PretendTensor.__torch_function__, torch._C._disabled_torch_function_impl)


class Generator(CPU_GENERATOR):
    """A random generator of the CPU that may report cuda:0."""

    def __new__(cls, device="cpu"):
        generator = super().__new__(cls)
        generator._device = _parsed(device)
        return generator

    device = property(lambda self: self._device)


class PretendDevice(TorchFunctionMode):
    """The rules of CUDA for all calls of torch.

    Attributes:
        uploads: Number of copies from the CPU to the device.
    """

    def __init__(self):
        super().__init__()
        self.uploads = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        for kind in types:
            if kind.__torch_function__ not in _HANDLERS:  # a subclass with rules of its own, such as a dual number
                with self:
                    return kind.__torch_function__(func, types, args, kwargs or {})
        return _call(func, args, kwargs or {}, self)


@contextmanager
def pretend_device():
    """Provide the device cuda:0; yields the `PretendDevice`."""
    with (
        mock.patch.object(torch, "Generator", Generator),
        mock.patch.multiple(
            torch.cuda,
            is_available=mock.Mock(return_value=True),
            device_count=mock.Mock(return_value=1),
            current_device=mock.Mock(return_value=0),
            is_bf16_supported=mock.Mock(return_value=False),
            manual_seed=mock.Mock(),  # random numbers without a generator are those of the CPU
            get_device_name=mock.Mock(return_value="pretend device"),
            synchronize=mock.Mock(),
            max_memory_allocated=mock.Mock(return_value=0),
        ),
        mock.patch.object(Tensor, "_make_subclass", staticmethod(_make_subclass)),
        PretendDevice() as device,
    ):
        yield device


def _make_subclass(kind, values, *options):
    return _MAKE_SUBCLASS(kind, _unwrapped(values), *options)


def on_device(values):
    """Return a pretend tensor that holds a CPU tensor."""
    tensor = Tensor._make_wrapper_subclass(PretendTensor, values.size(), dtype=values.dtype, device="cpu")
    tensor.cpu_values = values
    return tensor


def _call(func, args, kwargs, device):
    """Call a function of torch by the rules of the device; `device` counts its uploads."""
    name = func.__name__
    if name == "__get__":
        return _attribute(func, args[0])
    if name in ("__set__", "__delete__"):
        name = func.__self__.__name__
    elif name == "__deepcopy__":  # on the CPU; its dictionary may hold tensors of both devices
        return func(*args, **kwargs)
    leaves = []
    _collect(args, leaves)
    _collect(kwargs, leaves)
    pretend = [v for v in leaves if type(v) is PretendTensor]
    target = _target(name, args, kwargs, bool(pretend))
    _check_generators(leaves, target)
    if not pretend and target.type != "cuda":
        return func(*args, **kwargs)
    if name in _NEED_CPU:
        raise TypeError(
            "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy it to the CPU first."
        )
    uploads = _check_devices(name, args, [v for v in leaves if isinstance(v, Tensor)]) if pretend else 0
    if name == "_has_compatible_shallow_copy_type" and len(pretend) == 1:
        return False
    if name in ("to", "cpu", "cuda"):
        return _moved(name, args, kwargs, target, device)
    if name in ("tensor", "as_tensor", "new_tensor", "asarray") and target.type == "cuda":
        uploads = 0 if isinstance(args[-1], PretendTensor) else 1
    if device is not None:
        device.uploads += uploads
    wrappers = {id(v.cpu_values): v for v in pretend}
    args, kwargs = _mapped(_unwrapped, args), _mapped(_unwrapped, kwargs)
    if "device" in kwargs and target.type == "cuda":
        kwargs["device"] = "cpu"
    result = func(*args, **kwargs)
    if target.type != "cuda":
        return result
    if name == "__iter__":
        return iter([on_device(v) for v in result])

    def wrapped(value):
        if not isinstance(value, Tensor):
            return value
        return wrappers[id(value)] if id(value) in wrappers else on_device(value)

    return _mapped(wrapped, result)


def _attribute(func, tensor):
    if type(tensor) is not PretendTensor:
        return func(tensor)
    if func.__self__.__name__ in ("device", "is_cuda", "is_cpu"):  # asked for by another subclass that holds the tensor
        return getattr(tensor, func.__self__.__name__)
    value = func(tensor.cpu_values)
    return on_device(value) if isinstance(value, Tensor) else value


def _collect(value, leaves):
    """Append the elements of nested containers to a list."""
    for element in value.values() if isinstance(value, dict) else value:
        if isinstance(element, tuple | list | dict):
            _collect(element, leaves)
        elif isinstance(element, slice):
            leaves += (element.start, element.stop, element.step)
        else:
            leaves.append(element)


def _mapped(function, value):
    """Return nested containers with a function applied to their elements."""
    kind = type(value)
    if kind is dict:
        return {key: _mapped(function, element) for key, element in value.items()}
    if kind is slice:
        return slice(*(function(element) for element in (value.start, value.stop, value.step)))
    if isinstance(value, tuple | list) and kind is not torch.Size:  # or a named tuple, or one of torch
        elements = [_mapped(function, element) for element in value]
        return kind(*elements) if hasattr(value, "_make") else kind(elements)
    return function(value)


def _unwrapped(value):
    return value.cpu_values if type(value) is PretendTensor else value


def _parsed(device):
    device = torch.device(device)
    return CUDA if device.type == "cuda" else device


def _target(name, args, kwargs, is_on_device):
    """Return the device of the result."""
    if name == "to":
        for value in (*args[1:], *kwargs.values()):
            if isinstance(value, Tensor):
                return value.device
            if isinstance(value, str | torch.device):
                return _parsed(value)
    if name in ("cpu", "cuda"):
        return _parsed(name)
    if kwargs.get("device") is not None:
        return _parsed(kwargs["device"])
    if name in ("tensor", "as_tensor", "asarray") and not isinstance(args[0], PretendTensor):
        return torch.device("cpu")
    return CUDA if is_on_device else torch.device("cpu")


def _check_generators(leaves, target):
    for value in leaves:
        if isinstance(value, CPU_GENERATOR) and value.device.type != target.type:
            raise RuntimeError(f"Expected a '{target.type}' device type for generator but found '{value.device.type}'")


def _moved(name, args, kwargs, target, device):
    """Return a tensor on another device or of another type."""
    tensor = args[0]
    was_on_device = isinstance(tensor, PretendTensor)
    values = tensor.cpu_values if was_on_device else tensor
    if name == "to":
        dtypes = [v for v in (*args[1:], *kwargs.values()) if isinstance(v, torch.dtype)]
        dtypes += [v.dtype for v in (*args[1:], *kwargs.values()) if isinstance(v, Tensor)]
        options = {k: v for k, v in kwargs.items() if k in ("copy", "memory_format")}
        moved = values.to(*dtypes[:1], **options)
    else:
        moved = values
    if was_on_device == (target.type == "cuda"):
        return tensor if moved is values else (on_device(moved) if was_on_device else moved)
    moved = moved.clone() if moved is values else moved  # a copy between devices never shares memory
    if target.type != "cuda":
        return moved
    if device is not None:
        device.uploads += 1
    return on_device(moved)


def _check_devices(name, args, tensors):
    """Raise what CUDA raises if the devices of tensors may not be mixed; return the number of implicit uploads."""
    if name in _INDEXING:
        return _check_indices(args)
    on_cpu = [v for v in tensors if not isinstance(v, PretendTensor)]
    if not on_cpu or name in ("to", "cpu", "cuda", "tensor", "as_tensor", "asarray", "type_as"):
        return 0
    if name in _COPIES:
        return int(name == "copy_" and isinstance(args[0], PretendTensor))
    plain = name.strip("_")
    is_dunder = name.startswith("__")
    is_elementwise = plain in _ELEMENTWISE or (is_dunder and plain[1:] in _ELEMENTWISE)
    in_place = name.startswith("__i") if is_dunder else name.endswith("_")
    if not is_elementwise or any(v.ndim for v in on_cpu) or (in_place and not isinstance(args[0], PretendTensor)):
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! ({name})"
        )
    return 0


def _check_indices(args):
    tensor, *values = (args[0], args[2]) if len(args) > 2 else args[:1]
    leaves = []
    _collect(args[1:2], leaves)
    indices = [v for v in leaves if isinstance(v, Tensor)]
    # A 0-dim integer is read, and selects as a number.
    arrays = [v for v in indices if v.ndim or v.dtype == torch.bool]
    if not isinstance(tensor, PretendTensor) and any(isinstance(v, PretendTensor) for v in arrays):
        raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
    mixed = [v for v in values if isinstance(v, Tensor) and type(v).device != type(tensor).device]
    lists = [v for v in (args[1] if isinstance(args[1], tuple) else (args[1],)) if isinstance(v, list)]
    if (arrays or lists) and any(v.ndim or isinstance(v, PretendTensor) for v in mixed):
        raise RuntimeError("Expected all tensors to be on the same device, but found at least two devices (index_put_)")
    if not isinstance(tensor, PretendTensor):
        return 0
    return len(lists) + sum(not isinstance(v, PretendTensor) for v in arrays) + len(mixed)
