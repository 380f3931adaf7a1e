"""The folder of `evaluate`: eval.json, curves.json, predictions.csv, figures and the report."""

from collections.abc import Sequence
from pathlib import Path

from darklens.bundle import Bundle
from darklens.data.store import Store
from darklens.evaluation import metrics
from darklens.evaluation.evaluate import EvaluationResult
from darklens.evaluation.runs import read_csv
from darklens.files import write_bytes, write_json, write_text
from darklens.predict import Row, to_csv
from darklens.report import charts, classification, figures, maps, reconstruction_section
from darklens.report.html import Picture, Section, page
from darklens.report.sections import provenance, roc_picture

FILES = ("report.html", "eval.json", "curves.json", "predictions.csv", "roc.png", "calibration.png")
_HISTORY = "metrics.csv"


def write_evaluation(out: Path, result: EvaluationResult, bundle: Bundle, store: Store, *, run: Path) -> None:
    """Write the folder; files of an earlier evaluation are replaced.

    Args:
        out: Folder.
        result: From `evaluate`.
        bundle: The system, for maps and reconstructions.
        store: The test images, for the examples.
        run: The run folder or the bundle; the metrics.csv of a run gives the learning curves.
    """
    evaluation = result.evaluation
    if result.probabilities is None:
        sections, lead = reconstruction_section.sections(evaluation, bundle, store)
    else:
        _write_tables(out, result)
        sections, lead = classification.sections(result, store)
    if bundle.has_maps:
        sections.append(maps.section(bundle, store))
    history = read_csv(run / _HISTORY) if (run / _HISTORY).exists() else []
    if history:
        sections.append(_learning(history))
    sections.append(provenance(evaluation))
    title = f"{evaluation['model']['recipe']} on {evaluation['data']['population']}"
    text = page(title, lead=lead, sections=sections, warnings=evaluation["warnings"])
    write_text(out / "report.html", text)
    write_json(out / "eval.json", evaluation)


def _write_tables(out: Path, result: EvaluationResult) -> None:
    labels, probabilities, classes = result.labels, result.probabilities, result.evaluation["classes"]
    assert probabilities is not None
    rows = [Row(name, [float(v) for v in p]) for name, p in zip(result.names, probabilities, strict=True)]
    columns: dict[str, Sequence[object]] = {**result.columns, "label": [classes[i] for i in labels]}
    write_text(out / "predictions.csv", to_csv(rows, classes, columns))
    write_json(out / "curves.json", metrics.curves(labels, probabilities, classes))
    write_bytes(out / "roc.png", roc_picture(labels, probabilities, classes).png)
    write_bytes(out / "calibration.png", classification.calibration_picture(result).png)


def _learning(history: list[dict[str, str]]) -> Section:
    last = history[-1]
    caption = f"Epoch {int(last['epoch']) + 1}: training {last['train_loss']}, validation {last['val_loss']}."
    alt = f"Training and validation loss by epoch, for each stage. {caption}"
    picture = Picture(figures.to_png(charts.learning_curves(history)), alt, caption)
    text = "Loss on the training images, and on the validation images that choose the best epoch."
    return Section("Learning curves", text, pictures=[picture])
