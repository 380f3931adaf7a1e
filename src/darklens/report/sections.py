"""Parts shared by the reports of evaluations and of comparisons."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from darklens.evaluation import metrics
from darklens.evaluation.metrics import Labels, Probabilities
from darklens.report import charts, figures
from darklens.report.html import Picture, Section, Table


def roc_picture(labels: Labels, probabilities: Probabilities, classes: Sequence[str]) -> Picture:
    """Return the ROC curves with their AUCs."""
    areas = zip(classes, metrics.class_auc(labels, probabilities), strict=True)
    numbers = ", ".join(f"{name} {area:.4f}" for name, area in areas)
    png = figures.to_png(charts.roc(labels, probabilities, classes))
    return Picture(png, f"ROC curves; AUC {numbers}.", f"One-vs-rest ROC curves. AUC: {numbers}.")


def confusion_picture(counts: np.ndarray, classes: Sequence[str]) -> Picture:
    """Return the confusion matrix with the number of errors of each kind."""
    alt = f"Confusion matrix of {', '.join(classes)}, true classes in rows: {counts.tolist()}."
    errors = [
        f"{counts[i, j]} {a} as {b}"
        for i, a in enumerate(classes)
        for j, b in enumerate(classes)
        if i != j and counts[i, j]
    ]
    caption = f"{np.trace(counts)} of {counts.sum()} correct; errors: {', '.join(errors) or 'none'}."
    return Picture(figures.to_png(charts.confusion(counts, classes)), alt, caption)


def provenance(evaluation: dict[str, Any], title: str = "Provenance") -> Section:
    """Return the table of the model, the test data, the training data and the provenance."""
    rows = [
        [f"{part}: {key}".replace("_", " "), str(value)]
        for part in ("model", "data", "training_data", "provenance")
        for key, value in evaluation[part].items()
    ]
    return Section(title, tables=[Table(["item", "value"], rows)])


def percent(fraction: float, digits: int = 0) -> str:
    """Return a fraction as text, such as `95 %`."""
    return f"{100 * fraction:.{digits}f} %"
