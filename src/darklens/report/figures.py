"""Figures of images and maps, and the style of all figures, without global plotting state."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from darklens.fit.png import to_png as to_png

# Colours of Okabe & Ito, distinct for colour-blind readers.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]


def gallery(images: Sequence[Float[np.ndarray, "n n"]], titles: Sequence[str], *, pixel_scale: float) -> Figure:
    """Return images side by side, y upwards, with axes in arcsec."""
    columns = min(len(images), 3)
    rows = -(-len(images) // columns)
    figure, _ = new_figure(2.7 * columns, 2.9 * rows, columns=columns, rows=rows)
    for axes in figure.axes[len(images) :]:
        axes.set_axis_off()
    for axes, image, title in zip(figure.axes, images, titles, strict=False):
        show(axes, np.sqrt(image.clip(min=0)), pixel_scale, cmap="magma")
        axes.set_title(title, fontsize=11)
        axes.tick_params(labelsize=9)
    figure.supxlabel("arcsec (brightness on a square-root scale)", fontsize=11)
    return figure


def reconstructions(
    images: Float[np.ndarray, "b n n"],
    outputs: Float[np.ndarray, "b n n"],
    deviations: Float[np.ndarray, "b n n"],
    titles: Sequence[str],
    *,
    pixel_scale: float,
) -> Figure:
    """Return rows of images, of reconstructions, and of residuals in units of the noise."""
    figure, _ = new_figure(2.7 * len(images) + 0.8, 8.2, columns=len(images), rows=3)
    grid = np.array(figure.axes).reshape(3, len(images))
    for column, title in enumerate(titles):
        for axes, image in zip(grid[:2, column], (images[column], outputs[column]), strict=True):
            show(axes, np.sqrt(image.clip(0)), pixel_scale, cmap="magma", vmin=0, vmax=1)
        residual = show(grid[2, column], deviations[column], pixel_scale, cmap="RdBu_r", vmin=-5, vmax=5)
        grid[0, column].set_title(title, fontsize=11)
    for axes, name in zip(grid[:, 0], ("image", "reconstruction", "residual"), strict=True):
        axes.set_ylabel(f"{name}\narcsec")
    figure.colorbar(residual, ax=list(grid[2]), label="residual / noise")
    return figure


def lens_maps(
    maps: Sequence[Mapping[str, Float[np.ndarray, "n n"]]], names: Sequence[str], *, pixel_scale: float
) -> Figure:
    """Return a row for each image: image, source plane, k, deflection and, where known, the true deflection.

    Args:
        maps: `image`, `source`, `k`, `alpha_x`, `alpha_y` and, where known, `true_x` and `true_y`; arcsec.
        names: Of the images.
        pixel_scale: Of the maps, arcsec.
    """
    panels = ["image", "source plane", "k, arcsec", "deflection, arcsec"]
    panels += ["true deflection, arcsec"] if "true_x" in maps[0] else []
    figure, _ = new_figure(2.7 * len(panels), 2.6 * len(maps) + 0.3, columns=len(panels), rows=len(maps))
    grid = np.array(figure.axes).reshape(len(maps), len(panels))
    for row, image_maps, name in zip(grid, maps, names, strict=True):
        deflections = [np.hypot(image_maps["alpha_x"], image_maps["alpha_y"])]
        if "true_x" in image_maps:
            deflections.append(np.hypot(image_maps["true_x"], image_maps["true_y"]))
        top = max(float(deflection.max()) for deflection in deflections)
        panel_maps = [*(image_maps[key] for key in ("image", "source", "k")), *deflections]
        for axes, values in zip(row, panel_maps, strict=True):
            is_light = axes in row[:2]
            image = show(
                axes,
                np.sqrt(values.clip(0)) if is_light else values,
                pixel_scale,
                cmap="magma" if is_light else "viridis",
                vmin=0 if axes in row[3:] else None,
                vmax=top if axes in row[3:] else None,
            )
            axes.tick_params(labelsize=9)
            if not is_light:
                figure.colorbar(image, ax=axes, shrink=0.8)
        row[0].set_ylabel(f"{name}\narcsec", parse_math=False)
    for axes, title in zip(grid[0], panels, strict=True):
        axes.set_title(title, fontsize=11)
    return figure


def fit_maps(
    maps: Sequence[Mapping[str, Float[np.ndarray, "n n"]]],
    names: Sequence[str],
    findings: Sequence[Mapping[str, str]],
    *,
    pixel_scale: float,
) -> Figure:
    """Return a row for each image: image, residuals of the fits, and the evidence for a point mass at each position.

    The fitted line and the first fitted point mass are drawn on the image.

    Args:
        maps: As `darklens.fit.features.MAP_NAMES` names them.
        names: Of the images.
        findings: As `darklens.models.lens_residual.findings` names them.
        pixel_scale: Of the maps, arcsec.
    """
    panels = {
        "image": "image, fitted masses",
        "residual": "residual, smooth (sigma)",
        "line_residual": "residual, line (sigma)",
        "point_residual": "residual, points (sigma)",
        "evidence": "evidence for a point (sigma)",
        "line_evidence": "point, given the line (sigma)",
    }
    figure, _ = new_figure(2.7 * len(panels), 2.7 * len(maps) + 0.3, columns=len(panels), rows=len(maps))
    grid = np.array(figure.axes).reshape(len(maps), len(panels))
    for row, image_maps, name, fitted in zip(grid, maps, names, findings, strict=True):
        half = image_maps["image"].shape[0] * pixel_scale / 2
        for axes, key in zip(row, panels, strict=True):
            is_light, scaled_by = key == "image", "evidence" if key.endswith("evidence") else "residual"
            top = None if is_light else max(5.0, float(np.abs(image_maps[scaled_by]).max()))
            image = show(
                axes,
                np.sqrt(image_maps[key].clip(0)) if is_light else image_maps[key],
                pixel_scale,
                cmap="magma" if is_light else "RdBu_r",
                vmin=None if top is None else -top,
                vmax=top,
            )
            axes.tick_params(labelsize=9)
            if not is_light:
                figure.colorbar(image, ax=axes, shrink=0.8)
        x, y, length, angle = (float(fitted[f"line_{key}"]) for key in ("x", "y", "length", "angle"))
        along = np.array([-0.5, 0.5]) * length
        row[0].plot(x + along * np.cos(np.radians(angle)), y + along * np.sin(np.radians(angle)), "c-", linewidth=1)
        row[0].plot(float(fitted["point_x"]), float(fitted["point_y"]), "w+", markersize=9)
        row[0].set(xlim=(-half, half), ylim=(-half, half))
        row[0].set_ylabel(f"{name}\narcsec", parse_math=False)
    for axes, title in zip(grid[0], panels.values(), strict=True):
        axes.set_title(title, fontsize=9)
    return figure


def new_figure(width: float, height: float, *, columns: int = 1, rows: int = 1) -> tuple[Figure, Axes]:
    """Return a figure of this size in inches, and the first of its axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    return figure, axes[0, 0]


def show(axes: Axes, values: Float[np.ndarray, "n n"], pixel_scale: float, **style: Any) -> AxesImage:
    """Draw a square map, y upwards, with axes in arcsec about its centre."""
    half = len(values) * pixel_scale / 2
    return axes.imshow(values, origin="lower", extent=(-half, half, -half, half), **style)
