"""How the arithmetic of an image is run: operation by operation, or fused by torch.compile."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal

import torch
from torch import Tensor

from darklens.errors import ConfigError
from darklens.physics import optics
from darklens.simulate.lights import SersicLight
from darklens.simulate.populations import Population
from darklens.simulate.render import Present, Terms, Values, axes, is_profile, psf_of, scene, surface_brightness

EngineName = Literal["eager", "compiled"]

_COMPILED_AT_ONCE = {"cpu": 8, "cuda": 64}
_MOST_KERNELS = 4096


@dataclass(frozen=True)
class Engine:
    """The steps from parameters to photon counts, each the law itself or a fused form of it.

    Attributes:
        at_once: How many images to render together.
        fixed: Whether it must always be just as many.
    """

    scene: Callable[[Values, Tensor, Tensor], Terms]
    brightness: Callable[[Terms, Tensor, Tensor], Tensor]
    convolve: Callable[[Tensor, Tensor], Tensor]
    expand: optics.Expansion
    at_once: int
    fixed: bool = False

    def render(self, population: Population, value: Values) -> Tensor:
        """Return noise-free images (b, n, n), without sky, of lenses with the same kinds of substructure."""
        some = value["theta_E"]
        x, y = axes(population.field, some.dtype, some.device)
        brightness = self.brightness(self.scene(value, x, y), x, y)
        return self.convolve(optics.integrate_pixels(brightness, population.field.supersample), psf_of(population))


def compiler() -> str | None:
    """Return the path of the C++ compiler that torch.compile would take; None if there is none."""
    names = (os.environ.get("CXX", "g++"), "g++", "clang++", "cl")
    return next((path for path in map(shutil.which, names) if path), None)


def check(name: EngineName) -> None:
    """Raise ConfigError if "compiled" is asked for where there is no C++ compiler."""
    if name == "compiled" and compiler() is None:
        raise ConfigError("The compiled engine needs a C++ compiler such as g++: install one, or use engine eager.")


def engine(name: EngineName, population: Population, present: Present, device: torch.device) -> Engine:
    """Return the engine for lenses with these kinds of substructure.

    "compiled" fuses the passes over the pixels: faster, but the first images of each kind of substructure wait some
    ten seconds (once a machine: the result is cached on disk). Its images differ from those of "eager" in the last
    bits of the noise-free brightness, and so in a few photon counts.
    """
    # Found by identity: hashing a population's contents each time would take longer than a small image.
    key = name, id(population), present, device.type
    if key not in _ENGINES:
        _ENGINES[key] = population, _make(name, population, present, device)
    return _ENGINES[key][1]


_ENGINES: dict[tuple[EngineName, int, Present, str], tuple[Population, Engine]] = {}


def _make(name: EngineName, population: Population, present: Present, device: torch.device) -> Engine:
    own_scene, own_brightness = partial(scene, population, present), partial(surface_brightness, population, present)
    # On the CPU one at a time: vectorised functions round the end of a long array differently from its middle, so an
    # image's last bit would depend on its neighbours (docs/decisions/0004).
    eager_at_once = 1 if device.type == "cpu" else 256
    if name == "eager":
        return Engine(
            own_scene, own_brightness, optics.convolve_separable, optics.settled_counts, at_once=eager_at_once
        )
    convolve = partial(optics.convolve_by_shifts, add=_fused(optics.shifted_sum))
    expand = _fused(optics.settled_counts)
    # Haloes come in any number and galaxies from files: a kernel for each would never be done compiling. What a
    # plug-in's profile does may not compile at all.
    if (
        "halo" in present
        or any(is_profile(prefix) for prefix in present)
        or not isinstance(population.source, SersicLight)
    ):
        return Engine(own_scene, own_brightness, convolve, expand, at_once=eager_at_once)
    # Two kernels, not one: fused into the second, the first would be computed anew for every pixel.
    return Engine(
        fuse(own_scene),
        fuse(own_brightness),
        convolve,
        expand,
        at_once=_COMPILED_AT_ONCE[device.type],
        fixed=True,
    )


@cache
def _fused(law: Callable[..., Any]) -> Callable[..., Any]:
    return fuse(law)


def fuse(law: Callable[..., Any], *, dynamic: bool = False, frozen: bool = False) -> Callable[..., Any]:
    """Return a law as fused code: `dynamic` for arrays of any size, `frozen` with a network's weights as constants."""
    # Without a full graph, or beyond its limit of kernels, torch would quietly go on uncompiled, with other last bits.
    # Not set when this module is imported: that would import the compiler, which takes a second.
    torch._dynamo.config.recompile_limit = _MOST_KERNELS
    torch._dynamo.config.accumulated_recompile_limit = _MOST_KERNELS
    options: dict[str, bool | int | str | Callable[..., Any]] | None = {"freezing": True} if frozen else None
    fused: Callable[..., Any] = torch.compile(law, dynamic=dynamic, fullgraph=True, options=options)
    return fused
