"""Functions of position, compiled from functions of tensors by the C++ compiler of the machine.

A function is recorded for one image and one position (`darklens.kernels.expressions`) and written as C++. What does not
depend on the position is computed once for each image, the rest for a register of positions at a time. The libraries
are cached on disk beside the other kernels.
"""

import ctypes
import hashlib
import math
import subprocess
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from darklens.compilation import compiler
from darklens.errors import ConfigError
from darklens.kernels.calls import address, call
from darklens.kernels.expressions import Expression, Expressions, record, verify
from darklens.kernels.library import cache_folder, compile_library, load_cached, output_of, shares_openmp
from darklens.kernels.smooth_fit import Photons

_FOLDER = Path(__file__).parent
_HEADERS = ("arithmetic.h", "fields.h")
COMPILERS = ("g++", "clang++")
_FLAGS = ("-std=c++17", "-O2", "-march=native", "-fno-trapping-math", "-fno-math-errno", "-fPIC", "-w")
_INFIX = {"add": "+", "sub": "-", "mul": "*"}


_LOOP = """
extern "C" void {name}(int64_t images, int64_t n, int64_t threads, const float* const* arguments, float* out) {{
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t image = 0; image < images; ++image)
        {name}_of_image(image, n, arguments, out + image * {n_values} * n);
}}
"""


class _Function(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("values", "arguments")),
        *((name, ctypes.c_int64) for name in ("unknowns", "planes")),
    ]


class Recipe(NamedTuple):
    """A function to compile, and tensors of the shapes it takes.

    Attributes:
        function: Of tensors (1, l) for each image, and of x and y with one element. Its result has one position.
        arguments: Such tensors.
    """

    function: Callable[..., Tensor]
    arguments: Sequence[Tensor]


class Fields:
    """A compiled function of position.

    Args:
        library: The library.
        name: Its entry there.
        n_values: Number of values for each position.
    """

    def __init__(self, library: ctypes.CDLL, name: str, n_values: int) -> None:
        self._library, self._name, self.n_values = library, name, n_values

    def __call__(self, *arguments: Float[Tensor, "b _"], x: Tensor, y: Tensor) -> Float[Tensor, "b k n"]:
        """Return the values at positions x, y (n,) for a batch of images."""
        batch = _contiguous(*arguments, x, y)
        out = torch.empty(len(batch[0]), self.n_values, len(x), dtype=torch.float32)
        getattr(self._library, self._name)(*_sizes(out, x), _pointers(batch), ctypes.c_void_p(address(out)))
        return out

    def observed(
        self,
        parameters: Float[Tensor, "b q"],
        *,
        x: Tensor,
        y: Tensor,
        detector: ctypes.Structure,
        positions: Tensor,
        n: int,
    ) -> Float[Tensor, "b n m m"]:
        """Return the values at a square of positions, observed by a detector, as n images of m x m pixels.

        Args:
            parameters: The only argument of the function for each image.
            x: Positions, row by row.
            y: Positions, row by row.
            detector: The detector, from `darklens.kernels.smooth_fit.Band.detector`.
            positions: The index of each value among the n images. Those that get no value are uninitialised.
            n: Number of images; more than one are derivatives, and that by a free PSF width is added.
        """
        batch = _contiguous(parameters, x, y)
        out = torch.empty(len(parameters), n, detector.band.rows, detector.band.rows, dtype=torch.float32)
        function, sizes = self._function(batch), (len(out), n, torch.get_num_threads())
        call("fit_observe_function", function, detector, *sizes, positions, out)
        return out

    def linearised(
        self,
        parameters: Float[Tensor, "b q"],
        *,
        x: Tensor,
        y: Tensor,
        detector: ctypes.Structure,
        positions: Tensor,
        scale: int,
        images: Float[Tensor, "b m m"],
        photons: Photons,
        slopes: Float[Tensor, "n q m m"] | None,
        rows: Int[Tensor, " b"],
    ) -> tuple[Float[Tensor, "b m m"], Float[Tensor, "b q q"], Float[Tensor, "b q"]]:
        """Return models of images, of a function that gives their derivatives, and their normal equations.

        Args:
            parameters: As for `observed`.
            x: Positions, row by row.
            y: Positions, row by row.
            detector: As for `observed`.
            positions: The parameter by which each value is the derivative.
            scale: The index of ln scale, by which the derivative is the light. The offset follows.
            images: Images.
            photons: Their noise.
            slopes: Receives the derivatives, in `rows`; None if they are not needed.
            rows: The row of `slopes` for each image.
        """
        batch, images, photons = _contiguous(parameters, x, y), images.contiguous(), photons.contiguous()
        b, q = parameters.shape
        model = torch.empty_like(images)
        curvature, rhs = (torch.empty(b, *shape, dtype=torch.float64) for shape in ((q, q), (q,)))
        function, noise = self._function(batch), photons.structure(images)
        outputs = (model, slopes, curvature, rhs)
        call("fit_linearise_function", function, detector, scale, positions, noise, images, rows, *outputs)
        return model, curvature, rhs

    def _function(self, batch: Sequence[Tensor]) -> _Function:
        """Return the function of one image with its arguments, as the kernels take it; the tensors must outlive it."""
        function = ctypes.cast(getattr(self._library, f"{self._name}_of_image"), ctypes.c_void_p)
        structure = _Function(function, None, batch[0].shape[1], self.n_values)
        structure.pointers = _pointers(batch)  # which must outlive it too
        structure.arguments = ctypes.cast(structure.pointers, ctypes.c_void_p)
        return structure


def _contiguous(*tensors: Tensor) -> list[Tensor]:
    return [v.to(torch.float32).contiguous() for v in tensors]


def _sizes(out: Tensor, x: Tensor) -> list[ctypes.c_int64]:
    return [ctypes.c_int64(n) for n in (len(out), len(x), torch.get_num_threads())]


def _pointers(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*map(address, tensors))


def compile_fields(recipes: Mapping[str, Recipe], feature: str, alternative: str) -> dict[str, Fields]:
    """Compile functions, or load them from the cache.

    Args:
        recipes: Functions by name.
        feature: The part of darklens that needs them, as the subject of a sentence.
        alternative: What to do without them, as an imperative.

    Raises:
        ConfigError: If there is no C++ compiler, or it fails.
    """
    path = compiler(COMPILERS)
    if path is None:
        raise ConfigError(f"{feature} needs a C++ compiler: install g++ or clang++, or {alternative}.")
    recorded = {name: record(*recipe) for name, recipe in recipes.items()}
    written = {name: _written(name, recipes[name], *pair) for name, pair in recorded.items()}
    code = "".join(f'#include "{name}"\n' for name in _HEADERS) + "\n".join(text for text, _ in written.values())
    try:
        flags = [*_FLAGS, f"-I{_FOLDER}", *(["-fopenmp"] if shares_openmp() else [])]
        included = [(_FOLDER / name).read_bytes() for name in _HEADERS]
        parts = [_target(path), *included, " ".join(flags).encode(), code.encode()]
        digest = hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]

        def build(file: Path) -> None:
            for name, pair in recorded.items():
                verify(*recipes[name], *pair)
            compile_library(path, flags, code, file)

        library = load_cached(cache_folder() / f"scene-{digest}.so", build)
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(f"{feature} failed: {path} could not compile ({error}); {alternative}.") from error
    return {name: Fields(library, name, n_values) for name, (_, n_values) in written.items()}


@cache
def _target(path: str) -> bytes:
    """Return the version of a compiler and the macros that describe the processor it compiles for."""
    return output_of(path, "--version") + output_of(path, *_FLAGS, "-E", "-dM", "-xc++", "/dev/null")


def _written(name: str, recipe: Recipe, expressions: Expressions, outputs: Sequence[int]) -> tuple[str, int]:
    """Return a function as C++, and the number of its values."""
    items = expressions.items
    n_batch = len(recipe.arguments) - 2
    used, varies = [False] * len(items), [False] * len(items)
    for index, item in enumerate(items):
        varies[index] = any(varies[operand] for operand in item.operands)
        if item.operation == "input":
            varies[index] = item.value[0] >= n_batch
    for index in outputs:
        used[index] = True
    for index in range(len(items) - 1, -1, -1):
        for operand in items[index].operands if used[index] else ():
            used[operand] = True
    statements: tuple[list[str], list[str]] = [], []
    for index, item in enumerate(items):
        if used[index] and item.operation != "constant":
            kind = "Floats" if varies[index] else "float"
            text = _expression(item, n_batch, items, varies, vector=varies[index])
            statements[varies[index]].append(f"const {kind} v{index} = {text};")
    for k, index in enumerate(outputs):
        value = _operand(index, items, varies, vector=True)
        statements[1].append(f"store_partial(values + {k} * n + i, {value}, width);")
    lengths = [argument.numel() for argument in recipe.arguments[:n_batch]]
    images = [f"const float* a{k} = arguments[{k}] + image * {length};" for k, length in enumerate(lengths)]
    lines = [
        f'extern "C" void {name}_of_image(int64_t image, int64_t n, const float* const* arguments, float* values) {{',
        *images,
        *statements[0],
        "for (int64_t i = 0; i < n; i += LANES) {",
        "const int64_t width = n - i < LANES ? n - i : LANES;",
        *statements[1],
        "}}",
        _LOOP.format(name=name, n_values=len(outputs)),
    ]
    return "\n".join(lines) + "\n", len(outputs)


def _operand(index: int, items: Sequence[Expression], varies: Sequence[bool], *, vector: bool) -> str:
    """Return the name of an expression, or the number; as a register if `vector`."""
    item = items[index]
    text = _literal(item.value) if item.operation == "constant" else f"v{index}"
    return f"broadcast({text})" if vector and not varies[index] else text


def _expression(
    item: Expression, n_batch: int, items: Sequence[Expression], varies: Sequence[bool], *, vector: bool
) -> str:
    """Return an operation as C++."""
    if item.operation == "input":
        argument, element = item.value
        if argument >= n_batch:
            return f"load_partial(arguments[{argument}] + i, width)"
        return f"a{argument}[{element}]"
    in_line = item.operation in (*_INFIX, "neg", "reciprocal", "not")
    names = [_operand(index, items, varies, vector=vector and not in_line) for index in item.operands]
    if item.operation in _INFIX:
        return f" {_INFIX[item.operation]} ".join(names)
    if item.operation in ("neg", "reciprocal", "not"):
        return {"neg": "-", "reciprocal": "1.0f / ", "not": "1.0f - "}[item.operation] + names[0]
    return f"op::{item.operation}({', '.join(names)})"


def _literal(value: float) -> str:
    """Return a number as a float of C++."""
    if math.isnan(value):
        return "NAN"
    if math.isinf(value) or abs(value) > torch.finfo(torch.float32).max:
        return "-INFINITY" if value < 0 else "INFINITY"
    return f"({value:.9e}f)"
