"""The folder of `compare`: compare.json, compare.md, compare.png and the report."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from darklens.errors import InputError
from darklens.evaluation import metrics
from darklens.evaluation.compare import (
    compare,
    differences_table,
    footnote,
    format_metric,
    systems_table,
    to_markdown,
)
from darklens.evaluation.runs import SystemRuns, group_runs, read_csv, read_run
from darklens.files import write_bytes, write_json, write_text
from darklens.report import charts, figures
from darklens.report.html import Picture, Section, Table, page
from darklens.report.sections import confusion_picture, provenance, roc_picture

FILES = ("compare.json", "compare.md", "compare.png", "report.html")


def write_comparison(out: Path, folders: Sequence[Path], *, predictions: Path | None = None) -> None:
    """Compare evaluation folders; trainings of one recipe that differ only in their seed form one system.

    Args:
        out: Folder; files of an earlier comparison are replaced.
        folders: What `evaluate` wrote.
        predictions: A table that `predict` wrote, for the report.

    Raises:
        InputError: If a folder is not an evaluation of a classifier, or the test images differ.
    """
    systems = group_runs([read_run(folder) for folder in folders], folders)
    comparison = compare(systems)
    trainings = [(s.name, t) for s in systems for t in s.trainings]
    warnings = [f"{name}: {warning}" for name, t in trainings for warning in t.evaluation["warnings"]]
    sections = [*_sections(comparison), *(_curves(s) for s in systems)]
    if predictions is not None:
        sections.append(_predictions(predictions))
    sections += [provenance(s.trainings[0].evaluation, f"Provenance of {_first(s)}") for s in systems]
    best = max(comparison["systems"], key=lambda s: s["auc"]["macro"]["value"])
    independent = "" if warnings else ", which are in no training set"
    lead = (
        f"{len(systems)} systems evaluated on the same {comparison['n']} images of {comparison['data']['population']}"
        f"{independent}. Best: {best['name']}, macro AUC {format_metric(best['auc']['macro'])}."
    )
    title = f"{', '.join(s['name'] for s in comparison['systems'])} on {comparison['data']['population']}"
    write_json(out / "compare.json", comparison)
    write_text(out / "compare.md", to_markdown(comparison))
    write_bytes(out / "compare.png", figures.to_png(charts.differences(comparison["differences"])))
    write_text(out / "report.html", page(title, lead=lead, sections=sections, warnings=warnings))


def _sections(comparison: dict[str, Any]) -> list[Section]:
    header, rows = systems_table(comparison)
    areas = "; ".join(f"{s['name']} {format_metric(s['auc']['macro'])}" for s in comparison["systems"])
    bars = Picture(
        figures.to_png(charts.auc_bars(comparison["systems"])),
        f"AUC of each system. Macro: {areas}.",
        f"Macro AUC: {areas}.",
    )
    numbers = "; ".join(
        f"{d['first']} - {d['second']} {format_metric(d['auc']['macro'], signed=True)}"
        for d in comparison["differences"]
    )
    chart = Picture(
        figures.to_png(charts.differences(comparison["differences"])),
        f"Differences with 95 % intervals. Macro AUC: {numbers}.",
        f"Differences in macro AUC: {numbers}.",
    )
    return [
        Section(
            "Results",
            "AUC: one-vs-rest area under the ROC curve, 0.5 for random predictions. ECE: expected calibration error. "
            "Brier: squared error of the probabilities, summed over classes. AURC: area under the risk-coverage curve. "
            "Brackets: 95 % confidence intervals.",
            tables=[Table(header, rows)],
            pictures=[bars],
        ),
        Section(
            "Differences", _interpretation(comparison), tables=[Table(*differences_table(comparison))], pictures=[chart]
        ),
    ]


def _interpretation(comparison: dict[str, Any]) -> str:
    several = any(d["over"] == "images and seeds" for d in comparison["differences"])
    spread = (
        "For systems trained with several seeds, trainings are resampled as well; three seeds constrain the scatter of "
        "trainings poorly, so these intervals are lower limits."
        if several
        else "With one training each, these intervals do not include the scatter between seeds."
    )
    return (
        "Both systems are evaluated on the same resampled images. If an interval contains zero, the difference is not "
        f"significant. {spread} {footnote(comparison)}"
    )


def _curves(system: SystemRuns) -> Section:
    run = system.trainings[0]
    classes = run.evaluation["classes"]
    counts = metrics.confusion(run.labels, run.probabilities)
    pictures = [roc_picture(run.labels, run.probabilities, classes), confusion_picture(counts, classes)]
    return Section(f"{_first(system)}: ROC curves and confusion matrix", pictures=pictures)


def _first(system: SystemRuns) -> str:
    return system.name if len(system.trainings) == 1 else f"{system.name}, seed {system.seeds[0]}"


def _predictions(path: Path) -> Section:
    rows = read_csv(path)
    if not rows:
        raise InputError(f"{path} holds no predictions.")
    text = "The table that `darklens predict` wrote for single image files."
    return Section("Predictions", text, tables=[Table(list(rows[0]), [list(row.values()) for row in rows])])
