"""Figure and arrays of the fit of a scene: data, model, residual in units of the noise, and source plane."""

from typing import TYPE_CHECKING, Any

import numpy as np

from darklens.fit.png import to_png
from darklens.fit.source_plane import source_extent, source_square

if TYPE_CHECKING:
    from darklens.fit.fit_result import FitResult

_SOURCE_PIXELS = 120
_LARGEST_RESIDUAL = 5.0  # standard deviations, of the colour scale
_SIZE, _COMPACT_SIZE = (12.4, 3.4), (10.6, 3.1)  # inches


def arrays(result: "FitResult") -> dict[str, np.ndarray]:
    """Return data, model, residual, noise map, used pixels and source plane, with pixel scale and extent, arcsec."""
    observation = result.observation
    return {
        "image": observation.image,
        "model": result.model,
        "residual": result.residual,
        "noise_map": observation.noise_map,
        "used": observation.used,
        "source": source_square(result, _SOURCE_PIXELS),
        "source_extent": np.array(_extent(result)),
        "pixel_scale": np.array(observation.pixel_scale),
    }


def _extent(result: "FitResult") -> tuple[float, float, float, float]:
    """Return left, right, bottom and top of the source plane, arcsec."""
    x, y, half_width = source_extent(result)
    return x - half_width, x + half_width, y - half_width, y + half_width


def draw(result: "FitResult", title: str = "", *, compact: bool = False) -> bytes:
    """Return the figure as PNG; brightness is on an inverse hyperbolic sine scale, excluded pixels are grey.

    Args:
        result: The fit.
        title: First words of the heading.
        compact: Whether it is for a page with many figures.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    observation = result.observation
    rows, columns = observation.image.shape
    half_x, half_y = (n * observation.pixel_scale / 2 for n in (columns, rows))
    extent = (-half_x, half_x, -half_y, half_y)
    noise = float(np.median(observation.noise_map[observation.used]))
    top = max(float(np.arcsinh(np.where(observation.used, result.model, 0) / noise).max()), 1.0)

    def stretched(plane: np.ndarray) -> np.ndarray:
        return np.ma.masked_array(np.arcsinh(plane / noise), ~observation.used)

    source = source_square(result, _SOURCE_PIXELS)
    panels: list[tuple[str, np.ndarray, tuple[float, ...], dict[str, Any]]] = [
        ("data", stretched(observation.image), extent, {"cmap": "magma", "vmin": -1.0, "vmax": top}),
        ("model", np.arcsinh(result.model / noise), extent, {"cmap": "magma", "vmin": -1.0, "vmax": top}),
        (
            "residual / noise",
            np.ma.masked_array(result.residual, ~observation.used),
            extent,
            {"cmap": "RdBu_r", "vmin": -_LARGEST_RESIDUAL, "vmax": _LARGEST_RESIDUAL},
        ),
        ("source", np.arcsinh(source / noise), _extent(result), {"cmap": "magma"}),
    ]
    figure = Figure(figsize=_COMPACT_SIZE if compact else _SIZE, layout="constrained")
    FigureCanvasAgg(figure)
    interpolation = "nearest" if compact else None  # smaller files
    for axes, (name, plane, limits, style) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        axes.set_facecolor("0.7")
        image = axes.imshow(plane, origin="lower", extent=limits, interpolation=interpolation, **style)
        axes.set_title(name, fontsize=11)
        axes.tick_params(labelsize=9)
        if style["cmap"] == "RdBu_r":
            figure.colorbar(image, ax=axes, shrink=0.8)
    figure.axes[0].set_ylabel("arcsec")
    label = f"theta_E = {result.theta_E:.4g} arcsec, chi2 per pixel {result.chi2_per_pixel:.3g}"
    figure.suptitle(f"{title}: {label}" if title else label, fontsize=11, parse_math=False)
    return to_png(figure, compact=compact)
