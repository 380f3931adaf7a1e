"""Learning curves of trainings on a stream, finished or not: validation AUC against images and processor hours."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from darklens.report.figures import COLOURS
from darklens.training.epoch_metrics import read_rows
from darklens.training.recipe import Recipe

CONVERGED = 0.003  # gain in AUC of a doubling of the images, below which a training counts as converged


class Point(NamedTuple):
    """The validation AUC after a number of images, of all stages and epochs so far."""

    images: int
    auc: float


def of_run(run: Path, recipe: Recipe) -> list[Point]:
    """Return the learning curve of a run on a stream, from the epochs on the population itself.

    Stages with stronger substructure and stages of reconstruction count as images, but have no points.
    """
    points, images = [], 0
    for row in read_rows(run / "metrics.csv"):
        stage = recipe.stages[int(row["stage"])]
        batches = (stage.images_per_epoch or recipe.data.images_per_epoch) // stage.batch_size
        images += batches * stage.batch_size
        if stage.task == "classify" and stage.substructure_scale == 1:
            points.append(Point(images, float(row["val_auc"])))
    return points


def doubling_gain(points: list[Point]) -> float | None:
    """Return the gain in AUC of the last doubling of the images, interpolated; None if the curve is too short."""
    images, aucs = np.array([list(point) for point in points]).T if points else (np.empty(0), np.empty(0))
    if not len(images) or images[0] > images[-1] / 2:
        return None
    return float(aucs[-1] - np.interp(np.log(images[-1] / 2), np.log(images), aucs))


def table(curves: list[dict[str, Any]]) -> list[list[str]]:
    """Return the state of each training: images, processor hours, AUC, and the gain of the last doubling."""
    rows = [["system", "seed", "images", "processor hours", "validation AUC", "gain of the last doubling", "state"]]
    for curve in curves:
        last, gain = Point(*curve["points"][-1]), doubling_gain([Point(*p) for p in curve["points"]])
        state = "unfinished" if not curve["finished"] else "converged" if (gain or 1) < CONVERGED else "not converged"
        hours = f"{last.images / curve['images_per_second'] / 3600:.1f}"
        numbers = [f"{last.images:,}", hours, f"{last.auc:.4f}", "-" if gain is None else f"{gain:+.4f}"]
        rows.append([curve["system"], str(curve["seed"]), *numbers, state])
    return rows


def decades(limits: tuple[float, float]) -> tuple[float, float]:
    """Return the powers of ten that enclose limits."""
    return 10 ** np.floor(np.log10(limits[0])), 10 ** np.ceil(np.log10(limits[1]))


def draw(curves: list[dict[str, Any]], differences: list[dict[str, Any]]) -> Figure:
    """Draw 1 - AUC against the images and the processor hours, and the paired differences if there are any."""
    drawing = Figure(figsize=(15 if differences else 10, 4.4), layout="constrained")
    *sides, last = drawing.subplots(1, 3 if differences else 2)
    sides = [*sides, last][:2]
    names = list(dict.fromkeys(curve["system"] for curve in curves))
    for curve in curves:
        images, aucs = np.array(curve["points"]).T
        i = names.index(curve["system"])
        style = {"color": COLOURS[i % len(COLOURS)], "linestyle": "-" if i < len(COLOURS) else "--"}
        label = curve["system"] if curve["seed"] == 0 else None
        for axes, x in zip(sides, (images, images / curve["images_per_second"] / 3600), strict=True):
            axes.plot(x, 1 - aucs, marker=".", label=label, **style)
    sides[0].set_xlabel("simulated images")
    sides[1].set_xlabel("processor hours")
    for axes in sides:
        axes.set(xscale="log", yscale="log", ylabel="1 - macro AUC on validation images")
        axes.grid(alpha=0.3, which="both")
        axes.set(xlim=decades(axes.get_xlim()), ylim=decades(axes.get_ylim()))
    sides[0].legend(fontsize=8)
    for y, difference in enumerate(differences):
        value, (low, high) = difference["auc"]["value"], difference["auc"]["ci95"]
        spread = [[max(0.0, value - low)], [max(0.0, high - value)]]
        last.errorbar([value], [y], xerr=spread, fmt="o", color=COLOURS[1], capsize=3)
    if differences:
        labels = [f"{difference['first']} - {difference['second']}" for difference in differences]
        last.set(yticks=range(len(labels)), yticklabels=labels, xlabel="paired difference in macro AUC")
        last.axvline(0, color="0.6", linewidth=1, linestyle=":")
        last.invert_yaxis()
    return drawing
