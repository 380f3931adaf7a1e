"""Parts that reports of evaluations and of comparisons share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from darklens.evaluation import metrics
from darklens.evaluation.metrics import Labels, Probabilities
from darklens.files import atomic_path
from darklens.report import charts, figures
from darklens.report.html import Picture, Section, Table


def roc_picture(labels: Labels, probabilities: Probabilities, classes: Sequence[str]) -> Picture:
    """Return the ROC curves with the areas below them."""
    areas = zip(classes, metrics.class_auc(labels, probabilities), strict=True)
    numbers = ", ".join(f"{name} {area:.4f}" for name, area in areas)
    png = figures.to_png(charts.roc(labels, probabilities, classes))
    return Picture(png, f"ROC curves; areas {numbers}.", f"ROC, one class against the others. Areas: {numbers}.")


def confusion_picture(counts: np.ndarray, classes: Sequence[str]) -> Picture:
    """Return the confusion matrix with the number of mistakes of each kind."""
    alt = f"Confusion matrix of {', '.join(classes)}, true classes in rows: {counts.tolist()}."
    mistakes = [
        f"{counts[i, j]} {a} as {b}"
        for i, a in enumerate(classes)
        for j, b in enumerate(classes)
        if i != j and counts[i, j]
    ]
    caption = f"{np.trace(counts)} of {counts.sum()} right; mistakes: {', '.join(mistakes) or 'none'}."
    return Picture(figures.to_png(charts.confusion(counts, classes)), alt, caption)


def provenance(evaluation: dict[str, Any], title: str = "Where this comes from") -> Section:
    """Return what was judged, on what, and how it was made."""
    rows = [
        [f"{part}: {key.replace('_', ' ')}", str(value)]
        for part in ("model", "data", "training_data", "provenance")
        for key, value in evaluation[part].items()
    ]
    return Section(title, tables=[Table(["item", "value"], rows)])


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
