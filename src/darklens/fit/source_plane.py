"""The source of a fit: its surface brightness at positions in the source plane."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from darklens.scene.profile import LightProfile

if TYPE_CHECKING:
    from darklens.fit.fit_result import FitResult

_RADII, _SMALLEST, _LARGEST = 4.0, 0.15, 2.0  # half width: radii of the source; arcsec


def source_square(result: "FitResult", n: int) -> Float[np.ndarray, "n n"]:
    """Return the surface brightness of the source in n x n pixels of the square of `source_extent`."""
    centre_x, centre_y, half_width = source_extent(result)
    offset = (torch.arange(n, dtype=torch.float64) + 0.5) * (2 * half_width / n) - half_width
    return source_brightness(result, centre_x + offset[None], centre_y + offset[:, None]).numpy()


def source_brightness(
    result: "FitResult", x: Float[Tensor, "1 columns"], y: Float[Tensor, "rows 1"]
) -> Float[Tensor, "rows columns"]:
    """Return the surface brightness of the source at positions in the source plane (arcsec), image units per pixel."""
    scene, shape = result.scene, (len(y), x.shape[1])
    complete, total = scene.complete(scene.pack(result.parameters)), torch.zeros(shape, dtype=torch.float64)
    for name, profile in _source(result).items():
        values: dict[str, Any] = {
            key: torch.tensor([[[value]]], dtype=torch.float64)
            for key, value in scene.values_of(name, result.parameters).items()
        }
        at, _, _ = scene.in_grid(profile, complete, (x.expand(1, *shape), y.expand(1, *shape)))
        amplitudes = [value for key, value in result.amplitudes.items() if key.rpartition(".")[0] == name]
        weights = torch.tensor(amplitudes, dtype=torch.float64)[None, :, None, None]
        at = (at[0] - values.pop("centre_x"), at[1] - values.pop("centre_y"))
        total += profile.brightness(*at, weights, **values)[0]
    return total


def grid_spacing(result: "FitResult") -> float:
    """Return the smallest distance of two nodes of a source grid in the source plane, arcsec."""
    grid = result.scene.source_grid
    assert grid is not None
    _, _, half_width = source_extent(result)
    return grid.smallest_spacing * half_width / grid.reach


def focus(result: "FitResult") -> float:
    """Return the size of the traced-back arcs, divided by their size in the image; 0 without a source grid.

    A value near one means that the grid is a picture of the image itself, which needs no lens.
    """
    scene, grid = result.scene, result.scene.source_grid
    if grid is None or grid.rays is None:
        return 0.0
    positions, weights = grid.rays[:2], grid.rays[2]
    away = positions - (weights * positions).sum(1, keepdim=True)
    frame = scene.source_frame(scene.complete(scene.pack(result.parameters)), grid.rays)
    return float(frame.size / (weights * away**2).sum().sqrt())


def _source(result: "FitResult") -> dict[str, LightProfile]:
    scene = result.scene
    return {
        name: profile
        for name, profile in scene.profiles.items()
        if isinstance(profile, LightProfile) and profile in scene.source.profiles
    }


def source_extent(result: "FitResult") -> tuple[float, float, float]:
    """Return centre (x, y) and half width of a square that contains the source, arcsec."""
    scene, grid = result.scene, result.scene.source_grid
    values = [scene.values_of(name, result.parameters) for name in _source(result)]
    if not values:
        return 0.0, 0.0, 1.0
    centre_x, centre_y = values[0]["centre_x"], values[0]["centre_y"]
    if grid is None:
        radius = max(value.get("R_e", value.get("beta", 0.1)) for value in values)
        return centre_x, centre_y, min(max(_RADII * radius, _SMALLEST), _LARGEST)
    if grid.rays is None:
        return centre_x, centre_y, grid.reach
    frame = scene.source_frame(scene.complete(scene.pack(result.parameters)), grid.rays)
    scale = float(grid.scale(frame))
    centre_x, centre_y = (
        float(middle) + (at - reference) / scale
        for middle, at, reference in zip((frame.x, frame.y), (centre_x, centre_y), grid.reference, strict=False)
    )
    return centre_x, centre_y, grid.reach / scale
