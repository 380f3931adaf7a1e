"""Arrays to figures: pure functions, one style, no global plotting state."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from darklens.evaluation import curves
from darklens.evaluation.metrics import Labels, Probabilities, binary_auc

# Okabe & Ito's colours, which stay distinct for colour-blind readers.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
_DPI = 110


def to_png(figure: Figure) -> bytes:
    """Return the figure as PNG; figures made from the same data give the same bytes."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=_DPI, metadata={"Software": None})
    return stream.getvalue()


def roc(labels: Labels, probabilities: Probabilities, classes: Sequence[str]) -> Figure:
    """Return one-vs-rest ROC curves."""
    figure, axes = _figure(4.3, 4.1)
    for i, name in enumerate(classes):
        false_rate, true_rate = curves.roc(labels == i, probabilities[:, i])
        area = binary_auc(labels == i, probabilities[:, i])
        axes.plot(false_rate, true_rate, color=COLOURS[i], label=f"{name}: AUC {area:.3f}")
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle=":")
    axes.set(xlabel="false positive rate", ylabel="true positive rate", aspect="equal")
    axes.legend(loc="lower right")
    return figure


def calibration(bins: Float[np.ndarray, "bins 3"]) -> Figure:
    """Return the reliability diagram of `metrics.reliability`'s bins."""
    figure, axes = _figure(4.3, 4.1)
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle=":", label="perfect calibration")
    axes.plot(bins[:, 0], bins[:, 1], "o-", color=COLOURS[0], label="this system")
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.legend(loc="upper left")
    return figure


def confusion(counts: Int[np.ndarray, "c c"], classes: Sequence[str]) -> Figure:
    """Return the confusion matrix with counts, shaded by the fraction of the true class."""
    figure, axes = _figure(4.1, 3.9)
    fraction = counts / counts.sum(1, keepdims=True)
    axes.imshow(fraction, cmap="Blues", vmin=0, vmax=1)
    for (i, j), n in np.ndenumerate(counts):
        axes.text(j, i, str(n), ha="center", va="center", color="white" if fraction[i, j] > 0.5 else "black")
    ticks = range(len(classes))
    axes.set(xlabel="predicted", ylabel="true", xticks=ticks, yticks=ticks, xticklabels=classes, yticklabels=classes)
    return figure


def learning_curves(rows: Sequence[Mapping[str, str]]) -> Figure:
    """Return loss by epoch for each stage of a run, from the rows of metrics.csv."""
    stages = sorted({int(row["stage"]) for row in rows})
    figure, first = _figure(5.0, 3.2 * len(stages), rows=len(stages))
    for axes, stage in zip(figure.axes or [first], stages, strict=True):
        own = [row for row in rows if int(row["stage"]) == stage]
        epochs = [int(row["epoch"]) + 1 for row in own]
        for name, colour in (("train_loss", COLOURS[0]), ("val_loss", COLOURS[1])):
            axes.plot(epochs, [float(row[name]) for row in own], color=colour, label=name.replace("_", " "))
        axes.set(xlabel="epoch", ylabel="loss", title=own[0]["task"], yscale="log")
        axes.legend()
    return figure


def gallery(images: Sequence[Float[np.ndarray, "n n"]], titles: Sequence[str], *, pixel_scale: float) -> Figure:
    """Return images side by side, y upwards, with axes in arcsec."""
    columns = min(len(images), 3)
    rows = -(-len(images) // columns)
    figure, _ = _figure(2.7 * columns, 2.9 * rows, columns=columns, rows=rows)
    for axes in figure.axes[len(images) :]:
        axes.set_axis_off()
    for axes, image, title in zip(figure.axes, images, titles, strict=False):
        half = image.shape[0] * pixel_scale / 2
        axes.imshow(np.sqrt(image.clip(min=0)), cmap="magma", origin="lower", extent=(-half, half, -half, half))
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
    """Return rows of images, of reconstructions, and of their differences in units of the noise."""
    figure, _ = _figure(2.7 * len(images) + 0.8, 8.2, columns=len(images), rows=3)
    half = images.shape[-1] * pixel_scale / 2
    grid = np.array(figure.axes).reshape(3, len(images))
    for column, title in enumerate(titles):
        for axes, image in zip(grid[:2, column], (images[column], outputs[column]), strict=True):
            axes.imshow(
                np.sqrt(image.clip(0)), cmap="magma", vmin=0, vmax=1, origin="lower", extent=(-half, half, -half, half)
            )
        shown = grid[2, column].imshow(
            deviations[column], cmap="RdBu_r", vmin=-5, vmax=5, origin="lower", extent=(-half, half, -half, half)
        )
        grid[0, column].set_title(title, fontsize=11)
    for axes, name in zip(grid[:, 0], ("image", "reconstruction", "difference"), strict=True):
        axes.set_ylabel(f"{name}\narcsec")
    figure.colorbar(shown, ax=list(grid[2]), label="in units of the noise")
    return figure


def lens_maps(
    maps: Sequence[Mapping[str, Float[np.ndarray, "n n"]]], names: Sequence[str], *, pixel_scale: float
) -> Figure:
    """Return a row for each image: itself, the source plane, k, and the deflection, with the true one if it is there.

    Args:
        maps: `image`, `source`, `k`, `alpha_x`, `alpha_y` and, where known, `true_x` and `true_y`; arcsec.
        names: What to call each image.
        pixel_scale: Of the maps, arcsec.
    """
    panels = ["image", "source plane", "k, arcsec", "deflection, arcsec"]
    panels += ["true deflection, arcsec"] if "true_x" in maps[0] else []
    figure, _ = _figure(2.7 * len(panels), 2.6 * len(maps) + 0.3, columns=len(panels), rows=len(maps))
    grid = np.array(figure.axes).reshape(len(maps), len(panels))
    for row, own, name in zip(grid, maps, names, strict=True):
        sizes = [np.hypot(own["alpha_x"], own["alpha_y"])]
        sizes += [np.hypot(own["true_x"], own["true_y"])] if "true_x" in own else []
        top = max(float(size.max()) for size in sizes)
        half = own["image"].shape[0] * pixel_scale / 2
        for axes, values in zip(row, [own["image"], own["source"], own["k"], *sizes], strict=True):
            light = axes in row[:2]
            image = axes.imshow(
                np.sqrt(values.clip(0)) if light else values,
                cmap="magma" if light else "viridis",
                vmin=0 if axes in row[3:] else None,
                vmax=top if axes in row[3:] else None,
                origin="lower",
                extent=(-half, half, -half, half),
            )
            axes.tick_params(labelsize=9)
            if not light:
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
    """Return a row for each image: itself, what the fits leave, and the evidence for a point mass at each place.

    The line and the first point mass that were found are drawn on the image.

    Args:
        maps: As `darklens.fit.table.CHANNELS` names them.
        names: What to call each image.
        findings: As `darklens.models.lens_residual.findings` names them.
        pixel_scale: Of the maps, arcsec.
    """
    panels = {
        "image": "image, and masses tried",
        "residual": "smooth lens leaves, sigma",
        "line_residual": "line leaves, sigma",
        "point_residual": "points leave, sigma",
        "evidence": "evidence for a point, sigma",
        "line_evidence": "the same beside the line",
    }
    figure, _ = _figure(2.7 * len(panels), 2.7 * len(maps) + 0.3, columns=len(panels), rows=len(maps))
    grid = np.array(figure.axes).reshape(len(maps), len(panels))
    for row, own, name, found in zip(grid, maps, names, findings, strict=True):
        half = own["image"].shape[0] * pixel_scale / 2
        for axes, key in zip(row, panels, strict=True):
            light, evidence = key == "image", key.endswith("evidence")
            top = None if light else max(5.0, float(np.abs(own["evidence" if evidence else "residual"]).max()))
            image = axes.imshow(
                np.sqrt(own[key].clip(0)) if light else own[key],
                cmap="magma" if light else "RdBu_r",
                vmin=None if top is None else -top,
                vmax=top,
                origin="lower",
                extent=(-half, half, -half, half),
            )
            axes.tick_params(labelsize=9)
            if not light:
                figure.colorbar(image, ax=axes, shrink=0.8)
        x, y, length, angle = (float(found[f"line_{key}"]) for key in ("x", "y", "length", "angle"))
        along = np.array([-0.5, 0.5]) * length
        row[0].plot(x + along * np.cos(np.radians(angle)), y + along * np.sin(np.radians(angle)), "c-", linewidth=1)
        row[0].plot(float(found["point_x"]), float(found["point_y"]), "w+", markersize=9)
        row[0].set(xlim=(-half, half), ylim=(-half, half))
        row[0].set_ylabel(f"{name}\narcsec", parse_math=False)
    for axes, title in zip(grid[0], panels.values(), strict=True):
        axes.set_title(title, fontsize=9)
    return figure


def auc_bars(systems: Sequence[Mapping[str, Any]]) -> Figure:
    """Return macro and per-class AUC of several systems with their 95 % intervals."""
    names = list(systems[0]["auc"])
    figure, axes = _figure(6.4, 1.4 + 0.42 * len(systems) * len(names) / 2)
    height = 0.8 / len(systems)
    for k, system in enumerate(systems):
        at = np.arange(len(names)) + (k - (len(systems) - 1) / 2) * height
        values = np.array([system["auc"][name]["value"] for name in names])
        low, high = np.array([system["auc"][name]["ci95"] for name in names]).T
        spread = np.clip([values - low, high - values], 0, None)
        axes.errorbar(
            values, at, xerr=spread, fmt="o", color=COLOURS[k % len(COLOURS)], capsize=3, label=system["name"]
        )
    axes.set(yticks=range(len(names)), yticklabels=names, xlabel="one-vs-rest AUC")
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _figure(width: float, height: float, *, columns: int = 1, rows: int = 1) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    return figure, axes[0, 0]
