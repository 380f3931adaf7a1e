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
from darklens.files import write_json, write_text
from darklens.report import charts, figures
from darklens.report.html import Picture, Section, Table, page
from darklens.report.sections import confusion_picture, provenance, roc_picture, write_bytes


def write_comparison(out: Path, folders: Sequence[Path], *, predictions: Path | None = None) -> None:
    """Compare evaluation folders; trainings of one recipe that differ only in their seed count as one system.

    Args:
        out: Folder; files of an earlier comparison in it are replaced.
        folders: What `evaluate` wrote.
        predictions: A table of `predict` to show in the report.

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
    sections += [provenance(s.trainings[0].evaluation, f"Where {_first(s)} comes from") for s in systems]
    best = max(comparison["systems"], key=lambda s: s["auc"]["macro"]["value"])
    unseen = "" if warnings else " that none of them was trained on"
    lead = (
        f"{len(systems)} systems judged on the same {comparison['n']} images of {comparison['data']['population']}"
        f"{unseen}. Best: {best['name']}, macro AUC {format_metric(best['auc']['macro'])}."
    )
    title = f"{' and '.join(s['name'] for s in comparison['systems'])} on {comparison['data']['population']}"
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
    apart = "; ".join(
        f"{d['first']} - {d['second']} {format_metric(d['auc']['macro'], signed=True)}"
        for d in comparison["differences"]
    )
    chart = Picture(
        figures.to_png(charts.differences(comparison["differences"])),
        f"Differences with intervals. Macro AUC: {apart}.",
        f"Differences in macro AUC: {apart}.",
    )
    return [
        Section(
            "Results",
            "AUC: the chance that an image of the class gets a higher probability for it than an image of the others; "
            "0.5 is guessing. ECE: how far stated confidence is from the fraction that is right. Brier: squared error "
            "of the probabilities, summed over classes. AURC: mean fraction of wrong answers when only the confident "
            "images are answered. Brackets: 95 % intervals.",
            tables=[Table(header, rows)],
            pictures=[bars],
        ),
        Section("Differences", _meaning(comparison), tables=[Table(*differences_table(comparison))], pictures=[chart]),
    ]


def _meaning(comparison: dict[str, Any]) -> str:
    several = any(d["over"] == "images and seeds" for d in comparison["differences"])
    spread = (
        "Where a system was trained with several seeds, trainings are resampled as well; three seeds show little of "
        "how trainings scatter, so take such an interval as a lower limit."
        if several
        else "One training each: the spread between seeds is not in these intervals."
    )
    return (
        "Both systems on the same resampled images. An interval that holds zero means that these images cannot tell "
        f"the two apart. {spread} {footnote(comparison)}"
    )


def _curves(system: SystemRuns) -> Section:
    own = system.trainings[0]
    classes = own.evaluation["classes"]
    counts = metrics.confusion(own.labels, own.probabilities)
    pictures = [roc_picture(own.labels, own.probabilities, classes), confusion_picture(counts, classes)]
    return Section(f"{_first(system)}: ROC and confusion", pictures=pictures)


def _first(system: SystemRuns) -> str:
    return system.name if len(system.trainings) == 1 else f"{system.name}, seed {system.seeds[0]}"


def _predictions(path: Path) -> Section:
    rows = read_csv(path)
    if not rows:
        raise InputError(f"{path} holds no predictions.")
    text = "What a system says of single image files, whatever it says."
    return Section("Predictions", text, tables=[Table(list(rows[0]), [list(row.values()) for row in rows])])
