"""Compiled functions of a scene, about eight times as fast as PyTorch without compilation.

`Scene.planes` and `Scene.slope_planes` are traced and compiled by PyTorch's AOTInductor for one image and `POINTS`
positions, so that one compilation serves images of any size, batches of any length and any fixed values. The result is
cached on disk for scenes of the same structure.
"""

import contextlib
import hashlib
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from darklens.compilation import compiler, require_compiler
from darklens.errors import InputError
from darklens.files import atomic_path
from darklens.kernels.library import cache_folder, is_private, target_of
from darklens.scene.scene import Planes, Scene

POINTS = 2048
"""Number of positions for which the functions are compiled."""

_Function = Callable[..., Tensor]
_PACKAGES = ("darklens.physics", "darklens.scene")  # of the functions that are compiled


class CompiledScene:
    """`Scene.planes` and `Scene.slope_planes`, compiled for float32 on the CPU.

    Args:
        scene: Scene.

    Raises:
        ConfigError: If they are not in the cache and there is no C++ compiler.
    """

    def __init__(self, scene: Scene) -> None:
        self._n_source, self._n_planes = scene.source.n_amplitudes, len(scene.positive)
        self._n_parameters = len(scene.names)
        self._planes, self._slopes = _functions(_Key(scene))

    def planes(self, complete: Float[Tensor, "b c"], x: Tensor, y: Tensor, *, lens_light: bool = True) -> Planes:
        """Return what `Scene.planes` returns."""
        planes = _evaluate(self._planes, self._n_planes, (complete,), x, y)
        return planes if lens_light else planes[:, : self._n_source]

    def slope_planes(
        self, complete: Float[Tensor, "b c"], amplitudes: Float[Tensor, "b l"], x: Tensor, y: Tensor
    ) -> Planes:
        """Return what `Scene.slope_planes` returns."""
        return _evaluate(self._slopes, self._n_parameters, (complete, amplitudes), x, y)


def _evaluate(
    function: _Function, n_planes: int, batch: tuple[Float[Tensor, "b _"], ...], x: Tensor, y: Tensor
) -> Planes:
    """Return the result of a function for each image of a batch, in blocks of `POINTS` positions."""
    shape = y.shape[-2], x.shape[-1]
    n = shape[0] * shape[1]
    positions = [torch.nn.functional.pad(v.expand(shape).reshape(-1), (0, -n % POINTS)) for v in (x, y)]
    blocks = list(zip(*(v.reshape(-1, 1, POINTS) for v in positions), strict=True))
    out = torch.empty(len(batch[0]), n_planes, n, dtype=torch.float32)
    for b in range(len(out)):
        arguments = [v[b : b + 1] for v in batch]
        for k, (block_x, block_y) in enumerate(blocks):
            part = out[b, :, k * POINTS : (k + 1) * POINTS]
            part.copy_(function(*arguments, block_x, block_y)[0, :, 0, : part.shape[1]])
    return out.reshape(*out.shape[:2], *shape)


class _Key:
    """A scene that is equal to all scenes of the same structure."""

    def __init__(self, scene: Scene) -> None:
        self.scene, self.structure = scene, scene.structure

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.structure == other.structure

    def __hash__(self) -> int:
        return hash(self.structure)


@cache
def _functions(key: _Key) -> tuple[_Function, _Function]:
    """Return the compiled functions of a scene, from the cache or after compilation."""
    scene = key.scene
    complete = scene.complete(scene.start().float())
    amplitudes = torch.ones(1, len(scene.positive))
    x, y = torch.linspace(-1.0, 1.0, 2 * POINTS).reshape(2, 1, POINTS)  # two tensors, or the trace takes them for one
    name = _digest(scene)
    return (
        _loaded(f"{name}-planes", scene.planes, (complete, x, y)),
        _loaded(f"{name}-slopes", scene.slope_planes, (complete, amplitudes, x, y)),
    )


def _digest(scene: Scene) -> str:
    """Return a digest of a scene's structure, of the code of its profiles, of PyTorch, compiler and processor."""
    files = {Path(sys.modules[type(profile).__module__].__file__ or "") for profile in scene.profiles.values()}
    for package in _PACKAGES:
        files |= set(Path(sys.modules[package].__file__ or "").parent.rglob("*.py"))
    require_compiler("a compiled fit", "fit without compilation")
    target = target_of(compiler() or "")
    digest = hashlib.sha256(repr((scene.structure, POINTS, torch.__version__, target)).encode())
    for path in sorted(files):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _loaded(name: str, function: _Function, arguments: tuple[Tensor, ...]) -> _Function:
    """Return a function from the cache, compiled where it is missing or damaged, or where no folder is safe to use."""
    folder = cache_folder()
    path = folder / f"scene-{name}.pt2"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if is_private(folder):
            if is_private(path):
                with contextlib.suppress(RuntimeError):  # a damaged file
                    return _load(path)
            path.unlink(missing_ok=True)
            with atomic_path(path) as temporary:
                _build(function, arguments, temporary)
            path.chmod(0o644)
            return _load(path)
    except (OSError, InputError):  # such as a folder on a read-only or full disk
        pass
    with tempfile.TemporaryDirectory() as temporary_folder:
        path = Path(temporary_folder) / path.name
        _build(function, arguments, path)
        return _load(path)


def _load(path: Path) -> _Function:
    import torch._inductor  # takes two seconds

    function: _Function = torch._inductor.aoti_load_package(str(path))
    return function


@torch.no_grad()
def _build(function: _Function, arguments: tuple[Tensor, ...], path: Path) -> None:
    """Trace and compile a function, and write it to a file."""
    import torch._inductor.config
    from torch.fx.experimental.proxy_tensor import make_fx

    graph = make_fx(lambda *tensors: function(*tensors))(*arguments)
    options: dict[str, Any] = {"cpp.threads": 1}  # fits of different images run in parallel
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")  # deprecations inside PyTorch
        package = Path(folder) / "package.pt2"
        program = torch.export.export(graph, arguments)
        torch._inductor.aoti_compile_and_package(program, package_path=str(package), inductor_configs=options)
        path.write_bytes(package.read_bytes())
