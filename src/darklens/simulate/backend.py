"""The backends that compute an image: operation by operation, or fused by torch.compile."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, Literal

import torch
from torch import Tensor

from darklens.compilation import compile_function, require_compiler
from darklens.physics import optics
from darklens.populations.light_models import SersicLight
from darklens.populations.population import Population
from darklens.simulate.render import (
    Present,
    Terms,
    Values,
    is_profile,
    observed,
    positions,
    psf_of,
    scene_terms,
    surface_brightness,
    uses_detector,
)

Backend = Literal["eager", "compiled"]
"""`eager` runs operation by operation; `compiled` fuses the operations on pixels with torch.compile."""

_COMPILED_BATCH_SIZE = {"cpu": 8, "cuda": 64}


@dataclass(frozen=True)
class Renderer:
    """The steps from parameters to photon counts, each the law itself or a fused form of it.

    Attributes:
        scene_terms: Parameters to the terms that do not depend on the pixel.
        brightness: Terms and positions to surface brightness.
        observe: Surface brightness at these positions to pixel values.
        expand: The expansion of the Poisson quantile.
        batch_size: Images to render together.
        fixed_size: Whether every batch must have exactly that many.
    """

    scene_terms: Callable[[Values, Tensor, Tensor], Terms]
    brightness: Callable[[Terms, Tensor, Tensor], Tensor]
    observe: Callable[[Tensor], Tensor]
    expand: optics.Expansion
    batch_size: int
    fixed_size: bool = False

    def render(self, population: Population, value: Values) -> Tensor:
        """Return noise-free images (b, n, n), without sky, of lenses with the same kinds of substructure."""
        theta_E = value["theta_E"]
        x, y = positions(population, theta_E.dtype, theta_E.device)
        return self.observe(self.brightness(self.scene_terms(value, x, y), x, y))


def check(backend: Backend) -> None:
    """Raise ConfigError if the backend is "compiled" and there is no C++ compiler."""
    if backend == "compiled":
        require_compiler("The compiled backend", "use backend eager")


def renderer(backend: Backend, population: Population, present: Present, device: torch.device) -> Renderer:
    """Return the renderer for lenses with these kinds of substructure.

    "compiled" is faster, but compilation takes some ten seconds for each combination of kinds of substructure, once on
    each machine: the result is cached on disk. Its images differ from those of "eager" in the last bits of the
    noise-free brightness, and so in a few photon counts.
    """
    # Cached by identity: hashing the contents of a population would take longer than a small image.
    key = backend, id(population), present, device.type
    if key not in _RENDERERS:
        _RENDERERS[key] = population, _make(backend, population, present, device)
    return _RENDERERS[key][1]


_RENDERERS: dict[tuple[Backend, int, Present, str], tuple[Population, Renderer]] = {}


def _make(backend: Backend, population: Population, present: Present, device: torch.device) -> Renderer:
    terms_law = partial(scene_terms, population, present)
    brightness_law = partial(surface_brightness, population, present)
    # One at a time on the CPU: vectorised functions round the end of a long array differently, so the last bit of an
    # image would depend on its neighbours (docs/decisions/0004).
    eager_batch_size = 1 if device.type == "cpu" else 256
    eager = Renderer(
        terms_law, brightness_law, partial(observed, population), optics.settled_counts, batch_size=eager_batch_size
    )
    # A scene has few operations that could be fused: most of the time goes into the FFTs of its detector.
    if backend == "eager" or uses_detector(population):
        return eager
    kernel, field = psf_of(population), population.field

    def observe(brightness: Tensor) -> Tensor:
        pixels = optics.integrate_pixels(brightness, field.supersample)
        return optics.convolve_by_shifts(pixels, kernel, add=_fused(optics.shifted_sum))

    expand = _fused(optics.settled_counts)
    # The number of haloes varies, and galaxies are files: each would need a separate compilation. The profile of a
    # plug-in may not compile at all.
    if (
        "halo" in present
        or any(is_profile(prefix) for prefix in present)
        or not isinstance(population.source, SersicLight)
    ):
        return replace(eager, observe=observe, expand=expand)
    # Two kernels, not one: fused into the second, the first would be computed again for every pixel.
    return Renderer(
        compile_function(terms_law),
        compile_function(brightness_law),
        observe,
        expand,
        batch_size=_COMPILED_BATCH_SIZE[device.type],
        fixed_size=True,
    )


@cache
def _fused(law: Callable[..., Any]) -> Callable[..., Any]:
    return compile_function(law)
