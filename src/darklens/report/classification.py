"""What the report says of a classifier."""

from typing import Any

import numpy as np

from darklens.data.store import Store
from darklens.evaluation import metrics
from darklens.evaluation.compare import format_metric
from darklens.evaluation.evaluate import EvaluationResult
from darklens.report import charts, figures, strata_section
from darklens.report.html import Picture, Section, Table
from darklens.report.sections import confusion_picture, roc_picture


def sections(result: EvaluationResult, store: Store) -> tuple[list[Section], str]:
    """Return the sections, and the sentence at the head of the report."""
    evaluation = result.evaluation
    found = [
        _results(result),
        _calibration(result),
        _selective(result),
        *_sets(evaluation),
        *strata_section.sections(evaluation.get("strata", []), evaluation["classes"]),
        _examples(result, store),
    ]
    lead = (
        f"Macro AUC {format_metric(evaluation['auc']['macro'])}, accuracy {format_metric(evaluation['accuracy'])} "
        f"on {evaluation['n']} images."
    )
    return found, lead


def calibration_picture(result: EvaluationResult) -> Picture:
    """Return the reliability diagram with the calibration error."""
    assert result.probabilities is not None
    bins = metrics.reliability(result.labels, result.probabilities)
    points = ", ".join(f"{confidence:.3f} {accuracy:.3f}" for confidence, accuracy, _ in bins)
    caption = (
        f"Accuracy against confidence in {len(bins)} bins of equal numbers of images. "
        f"ECE {format_metric(result.evaluation['ece'])}."
    )
    alt = f"Reliability diagram; confidence and accuracy of each bin: {points}."
    return Picture(figures.to_png(charts.calibration(bins)), alt, caption)


def _results(result: EvaluationResult) -> Section:
    evaluation, labels, probabilities = result.evaluation, result.labels, result.probabilities
    assert probabilities is not None
    classes, legacy = evaluation["classes"], evaluation["legacy_auc"]
    by_class = Table(
        ["class", "AUC", "average precision", "recall", "legacy AUC"],
        [
            [
                "mean" if name == "macro" else name,
                *(format_metric(evaluation[key][name]) for key in ("auc", "average_precision", "recall")),
                "-" if legacy[name] is None else f"{legacy[name]:.3f}",
            ]
            for name in [*classes, "macro"]
        ],
    )
    names = {"accuracy": "accuracy", "nll": "log loss, nats", "brier": "Brier score", "ece": "ECE", "aurc": "AURC"}
    overall = Table(
        ["over all images", "value"], [[label, format_metric(evaluation[key])] for key, label in names.items()]
    )
    areas = ", ".join(f"{name} {evaluation['average_precision'][name]['value']:.4f}" for name in classes)
    curves = figures.to_png(charts.precision_recall(labels, probabilities, classes))
    precision = Picture(
        curves,
        f"Precision against recall; average precision {areas}.",
        f"Precision against recall, one class against the others. Average precision: {areas}.",
    )
    return Section(
        "Results",
        "AUC is one-vs-rest, from probabilities; brackets are 95 % intervals over test images. Brier score: squared "
        "error of the probabilities, summed over classes. AURC: mean fraction of wrong answers when only the "
        "confident images are answered. Legacy AUC is the 2024 study's metric, on which random answers score 0.87: for "
        "its table only.",
        tables=[by_class, overall],
        pictures=[
            roc_picture(labels, probabilities, classes),
            precision,
            confusion_picture(np.array(evaluation["confusion"]), classes),
        ],
    )


def _calibration(result: EvaluationResult) -> Section:
    return Section(
        "Calibration",
        f"Expected calibration error {format_metric(result.evaluation['ece'])}, log loss "
        f"{format_metric(result.evaluation['nll'])}. Points below the line are predictions more confident than "
        "they are right. Scatter in the bins adds to the calibration error, the more the fewer the images; the "
        "interval allows for that, so that of a well calibrated system it may end below the error that is seen.",
        pictures=[calibration_picture(result)],
    )


def _selective(result: EvaluationResult) -> Section:
    evaluation, labels, probabilities = result.evaluation, result.labels, result.probabilities
    assert probabilities is not None
    right, confidence = probabilities.argmax(1) == labels, probabilities.max(1)
    risks = {f"{float(c):.0%}".replace("%", " %"): m for c, m in evaluation["risk_at_coverage"].items()}
    numbers = ", ".join(f"{m['value']:.4f} of {c}" for c, m in risks.items())
    caption = f"Wrong among the images answered: {numbers}; of all {1 - right.mean():.4f}."
    picture = Picture(
        figures.to_png(charts.risk_coverage(right, confidence)), f"Risk against coverage. {caption}", caption
    )
    tables = [Table(["images answered", "wrong among them"], [[c, format_metric(m)] for c, m in risks.items()])]
    promises = [
        [
            f"{row['risk']:.1%}",
            f"{row['certainty']:.0%}",
            "-" if row["confidence"] is None else f"{row['confidence']:.4f}",
            f"{row['accepted']:.4f}",
            "-" if row["wrong_of_accepted"] is None else f"{row['wrong_of_accepted']:.4f}",
        ]
        for row in evaluation.get("selective", [])
    ]
    if promises:
        header = ["promised risk", "certainty", "least confidence", "images answered", "wrong among them"]
        tables.append(Table(header, promises))
    text = "What it is worth to answer only the images the system is most sure of, and to leave the others to people."
    return Section("Selective prediction", text, tables=tables, pictures=[picture])


_KINDS = {
    "lac": "smallest (LAC)",
    "lac_by_class": "smallest, each class by itself",
    "aps": "APS, randomised",
    "aps_whole": "APS, whole",
}


def _sets(evaluation: dict[str, Any]) -> list[Section]:
    """Return how prediction sets and the score of unfamiliar images fare, where the bundle has them."""
    if "conformal" not in evaluation:
        return []
    rows = [
        [
            f"{level['level']:.0%}",
            label,
            f"{level[kind]['coverage']:.4f}",
            ", ".join("-" if v is None else f"{v:.3f}" for v in level[kind]["coverage_by_class"]),
            f"{level[kind]['mean_size']:.3f}",
            f"{level[kind]['empty']:.3f}",
        ]
        for level in evaluation["conformal"]
        for kind, label in _KINDS.items()
    ]
    header = ["asked", "sets", "cover", f"cover {', '.join(evaluation['classes'])}", "mean size", "empty"]
    text = (
        "Sets of classes that were promised to hold the true one; the promise is for images like the held-out ones on "
        f"which it was fitted ({evaluation['calibration']['threshold_images']} of them)."
    )
    if "ood" in evaluation:
        found = evaluation["ood"]
        text += (
            f" Of these images {found['beyond_p95']:.1%} are more unfamiliar than 95 % of the held-out ones, and "
            f"{found['beyond_p99']:.1%} than 99 %; the median score is {found['median_score']:.2f}."
        )
    return [Section("Prediction sets and unfamiliar images", text, tables=[Table(header, rows)])]


def _examples(result: EvaluationResult, store: Store) -> Section:
    """Show for each class the image the system is most sure of, and the mistake it is most sure of."""
    assert result.probabilities is not None
    labels, probabilities, classes = result.labels, result.probabilities, result.evaluation["classes"]
    predicted, confidence = probabilities.argmax(1), probabilities.max(1)
    chosen: list[tuple[int, str]] = []
    for right in (True, False):
        for i, name in enumerate(classes):
            members = np.flatnonzero((labels == i) & ((predicted == i) == right))
            if len(members):
                k = int(members[confidence[members].argmax()])
                verdict = "right" if right else f"called {classes[predicted[k]]}"
                chosen.append((k, f"{name}, {verdict}, {confidence[k]:.2f}"))
    images = _scaled(store.images([k for k, _ in chosen])[:, 0])
    picture = figures.gallery(images, [title for _, title in chosen], pixel_scale=store.index.pixel_scale)
    alt = "; ".join(f"image {result.names[k]}: {title}" for k, title in chosen)
    text = (
        "For each class the image the system is most sure of, then the mistake it is most sure of, with its confidence."
    )
    return Section("Examples", text, pictures=[Picture(figures.to_png(picture), alt)])


def _scaled(images: np.ndarray) -> list[np.ndarray]:
    low, high = images.min((1, 2), keepdims=True), images.max((1, 2), keepdims=True)
    return list((images - low) / np.maximum(high - low, np.finfo(images.dtype).tiny))
