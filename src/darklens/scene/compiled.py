"""Compiled functions of a scene, for fits of many images on the CPU.

The functions of a scene are compiled for one position, so one compilation serves images of any size,
batches of any length and any fixed values. Scenes of the same structure share it.
"""

import warnings
from collections.abc import Sequence
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from darklens.compilation import compiler
from darklens.errors import ConfigError
from darklens.kernels.fields import COMPILERS, Fields, Recipe, compile_fields
from darklens.scene.scene import Planes, Scene


class CompiledScene:
    """`Scene.planes`, `slope_planes` and `deflection_planes`, compiled for float32 on the CPU.

    Args:
        scene: Scene.

    Raises:
        ConfigError: If they are not in the cache and there is no C++ compiler.
    """

    def __init__(self, scene: Scene) -> None:
        self._n_source = scene.source.n_amplitudes
        self._functions = _functions(_Key(scene))

    def planes(self, complete: Float[Tensor, "b c"], x: Tensor, y: Tensor, *, lens_light: bool = True) -> Planes:
        """Return what `Scene.planes` returns."""
        planes = self._evaluate("planes", (complete,), x, y)
        return planes if lens_light else planes[:, : self._n_source]

    def slope_planes(
        self, complete: Float[Tensor, "b c"], amplitudes: Float[Tensor, "b l"], x: Tensor, y: Tensor
    ) -> Planes:
        """Return what `Scene.slope_planes` returns."""
        return self._evaluate("slope_planes", (complete, amplitudes), x, y)

    def deflection_planes(self, complete: Float[Tensor, "b c"], x: Tensor, y: Tensor) -> Planes:
        """Return what `Scene.deflection_planes` returns."""
        return self._evaluate("deflection_planes", (complete,), x, y)

    def _evaluate(self, name: str, batch: tuple[Float[Tensor, "b _"], ...], x: Tensor, y: Tensor) -> Planes:
        shape = y.shape[-2], x.shape[-1]
        flat_x, flat_y = (v.expand(shape).reshape(-1) for v in (x, y))
        planes = self._functions[name](*batch, x=flat_x, y=flat_y)
        return planes.reshape(*planes.shape[:2], *shape)


def compile_scenes(scenes: Sequence[Scene], choice: bool | None) -> bool:
    """Compile scenes, so that other processes find them in the cache, and return whether fits are to be compiled.

    Args:
        scenes: Scenes.
        choice: Whether to compile; None: where it is possible, with a warning where the compiler fails.

    Raises:
        ConfigError: If `choice` is True and there is no C++ compiler, or it fails.
    """
    if choice is False or (choice is None and compiler(COMPILERS) is None):
        return False
    try:
        for scene in scenes:
            CompiledScene(scene)
    except ConfigError as error:
        if choice:
            raise
        warnings.warn(f"Fits are slower than they could be: {error}", stacklevel=2)
        return False
    return True


class _Key:
    """A scene that is equal to all scenes of the same structure."""

    def __init__(self, scene: Scene) -> None:
        self.scene, self.structure = scene, scene.structure

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.structure == other.structure

    def __hash__(self) -> int:
        return hash(self.structure)


@cache
def _functions(key: _Key) -> dict[str, Fields]:
    """Return the compiled functions of a scene, from the cache or after compilation."""
    scene = key.scene
    complete = scene.complete(scene.start().float())
    amplitudes = torch.ones(1, len(scene.positive))
    x, y = torch.full((1, 1, 1), 0.3), torch.full((1, 1, 1), 0.7)
    recipes = {
        "planes": Recipe(scene.planes, (complete, x, y)),
        "slope_planes": Recipe(scene.slope_planes, (complete, amplitudes, x, y)),
        "deflection_planes": Recipe(scene.deflection_planes, (complete, x, y)),
    }
    return compile_fields(recipes, "A compiled fit", "fit without compilation")
