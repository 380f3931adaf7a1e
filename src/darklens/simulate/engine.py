"""How the arithmetic of an image is run: operation by operation, or fused by torch.compile."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Literal

import torch
from torch import Tensor

from darklens.errors import ConfigError
from darklens.physics import optics
from darklens.simulate.populations import Population
from darklens.simulate.render import Present, Trace, Values, surface_brightness

EngineName = Literal["eager", "compiled"]


@dataclass(frozen=True)
class Engine:
    """The two inner functions that an engine may replace by faster forms of the same law."""

    trace: Trace
    expand: optics.Expansion


def engine(name: EngineName) -> Engine:
    """Return an engine.

    "compiled" fuses all passes over the pixels into one: faster, but the first image of each kind of substructure
    waits some ten seconds (once a machine: the result is cached on disk). Its images differ from those of "eager" in
    the last bits of the noise-free brightness, and so in a few photon counts.

    Raises:
        ConfigError: If "compiled" is asked for where there is no C++ compiler.
    """
    if name == "eager":
        return Engine(surface_brightness, optics.poisson_expansion)
    if not any(shutil.which(c) for c in (os.environ.get("CXX", "g++"), "g++", "clang++", "cl")):
        raise ConfigError("The compiled engine needs a C++ compiler such as g++: install one, or use engine eager.")
    return Engine(_compiled_trace, _compiled_expansion())


def _compiled_trace(population: Population, present: Present, value: Values, x: Tensor, y: Tensor) -> Tensor:
    return _fused(population, present)(value, x, y)


def _fused(population: Population, present: Present) -> Callable[[Values, Tensor, Tensor], Tensor]:
    # Found by identity: hashing a population's contents for each image would take longer than a small image.
    key = id(population), present
    if key not in _FUSED:
        _FUSED[key] = population, torch.compile(partial(surface_brightness, population, present), dynamic=False)
    return _FUSED[key][1]


_FUSED: dict[tuple[int, Present], tuple[Population, Callable[[Values, Tensor, Tensor], Tensor]]] = {}


@cache
def _compiled_expansion() -> optics.Expansion:
    compiled: optics.Expansion = torch.compile(optics.poisson_expansion, dynamic=False)
    return compiled
