"""Figure of a search for perturbers: image, residuals, gain and detectable mass."""

from typing import TYPE_CHECKING, Any

import numpy as np

from darklens.fit.png import to_png

if TYPE_CHECKING:
    from darklens.fit.perturbers import SearchResult

_PANEL, _COMPACT_PANEL = (3.4, 3.8), (3.4, 3.0)  # inches


def draw(search: "SearchResult", title: str = "", *, compact: bool = False) -> bytes:
    """Return the figure of a search as PNG: image, residuals, gain and detectable mass, with the perturbers.

    Args:
        search: The search.
        title: First words of the heading.
        compact: Whether it is for a page with many figures: in two rows.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    gains, observation = search.gains, search.smooth.observation
    rows, columns = observation.image.shape
    half_x, half_y = (n * observation.pixel_scale / 2 for n in (columns, rows))
    image_extent = (-half_x, half_x, -half_y, half_y)
    step_x, step_y = (float(v[1] - v[0]) / 2 for v in (gains.x, gains.y))
    extent = (gains.x[0] - step_x, gains.x[-1] + step_x, gains.y[0] - step_y, gains.y[-1] + step_y)
    noise = float(np.median(observation.noise_map[observation.used]))
    residuals = {"cmap": "RdBu_r", "vmin": -5.0, "vmax": 5.0}
    panels: list[tuple[str, np.ndarray, tuple[float, ...], dict[str, Any]]] = [
        ("data", np.arcsinh(observation.image / noise), image_extent, {"cmap": "magma"}),
        ("residual / noise, smooth", search.smooth.residual, image_extent, residuals),
        ("residual / noise, with perturber", search.best.residual, image_extent, residuals),
        ("first-order gain in chi2", gains.gain, extent, {"cmap": "viridis", "vmin": 0.0}),
        ("detectable log10 M / M_sun", gains.detectable(search.threshold), extent, {"cmap": "cividis_r"}),
    ]
    across, down = (3, 2) if compact else (len(panels), 1)
    width, height = _COMPACT_PANEL if compact else _PANEL
    figure = Figure(figsize=(across * width, down * height), layout="constrained")
    FigureCanvasAgg(figure)
    frames = list(figure.subplots(down, across).flat)
    for axes in frames[len(panels) :]:
        axes.set_axis_off()
    for axes, (name, plane, size, style) in zip(frames, panels, strict=False):
        picture = axes.imshow(plane, origin="lower", extent=size, interpolation="nearest", **style)
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("x (arcsec)")
        axes.set(xlim=image_extent[:2], ylim=image_extent[2:])
        figure.colorbar(picture, ax=axes, shrink=0.8)
        for perturber in search.perturbers if search.detected else ():
            axes.plot(perturber.x, perturber.y, "+", color="tab:cyan", markersize=10)
    heading = f"{title}   delta chi2 {search.delta_chi2:.1f}, threshold {search.threshold:.1f}".strip()
    figure.suptitle(heading, fontsize=10, parse_math=False)
    return to_png(figure, compact=compact)
