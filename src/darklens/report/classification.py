"""Sections of the report on a classifier."""

from typing import Any

import numpy as np

from darklens.data.store import Store
from darklens.evaluation import metrics
from darklens.evaluation.compare import format_metric
from darklens.evaluation.evaluate import EvaluationResult
from darklens.report import charts, figures, strata_section
from darklens.report.html import Picture, Section, Table
from darklens.report.sections import confusion_picture, percent, roc_picture


def sections(result: EvaluationResult, store: Store) -> tuple[list[Section], str]:
    """Return the sections, and the lead sentence of the report."""
    evaluation = result.evaluation
    parts = [
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
    return parts, lead


def calibration_picture(result: EvaluationResult) -> Picture:
    """Return the reliability diagram with the expected calibration error."""
    assert result.probabilities is not None
    bins = metrics.reliability(result.labels, result.probabilities)
    points = ", ".join(f"{confidence:.3f} {accuracy:.3f}" for confidence, accuracy, _ in bins)
    caption = (
        f"Accuracy against confidence in {len(bins)} bins of equal numbers of images. "
        f"Expected calibration error (ECE) {format_metric(result.evaluation['ece'])}."
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
    overall = Table(["all images", "value"], [[label, format_metric(evaluation[key])] for key, label in names.items()])
    areas = ", ".join(f"{name} {evaluation['average_precision'][name]['value']:.4f}" for name in classes)
    curves = figures.to_png(charts.precision_recall(labels, probabilities, classes))
    precision = Picture(
        curves,
        f"Precision-recall curves; average precision {areas}.",
        f"One-vs-rest precision-recall curves. Average precision: {areas}.",
    )
    return Section(
        "Results",
        "AUC: one-vs-rest area under the ROC curve. Brier score: squared error of the probabilities, summed over "
        "classes. ECE: expected calibration error. AURC: area under the risk-coverage curve. Legacy AUC: the metric of "
        "the 2024 study, for comparison with its table only; random probabilities score 0.87. Brackets: 95 % intervals "
        "over test images.",
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
        f"{format_metric(result.evaluation['nll'])}. Points below the diagonal are overconfident. Scatter in the "
        "bins adds to the measured calibration error, more so for few images. The interval corrects for this bias and "
        "may therefore lie below the measured value.",
        pictures=[calibration_picture(result)],
    )


def _selective(result: EvaluationResult) -> Section:
    evaluation, labels, probabilities = result.evaluation, result.labels, result.probabilities
    assert probabilities is not None
    correct, confidence = probabilities.argmax(1) == labels, probabilities.max(1)
    risks = {percent(float(c)): m for c, m in evaluation["risk_at_coverage"].items()}
    numbers = ", ".join(f"{m['value']:.4f} at {c}" for c, m in risks.items())
    caption = f"Risk by coverage: {numbers}; {1 - correct.mean():.4f} for all images."
    picture = Picture(
        figures.to_png(charts.risk_coverage(correct, confidence)), f"Risk-coverage curve. {caption}", caption
    )
    tables = [Table(["coverage", "risk"], [[c, format_metric(m)] for c, m in risks.items()])]
    guarantees = [
        [
            percent(row["risk"], 1),
            percent(row["certainty"]),
            "-" if row["confidence"] is None else f"{row['confidence']:.4f}",
            f"{row['accepted']:.4f}",
            "-" if row["wrong_of_accepted"] is None else f"{row['wrong_of_accepted']:.4f}",
        ]
        for row in evaluation.get("selective", [])
    ]
    if guarantees:
        header = ["guaranteed risk", "certainty", "confidence threshold", "coverage", "risk"]
        tables.append(Table(header, guarantees))
    text = (
        "Error rate (risk) if only the most confident images are classified and the others are left to experts. "
        "Coverage: the fraction of images that are classified."
    )
    return Section("Selective prediction", text, tables=tables, pictures=[picture])


_KINDS = {
    "lac": "LAC",
    "lac_by_class": "LAC, class-conditional",
    "aps": "APS, randomised",
    "aps_whole": "APS, deterministic",
}


def _sets(evaluation: dict[str, Any]) -> list[Section]:
    """Return the section on prediction sets and the out-of-distribution score; none without a calibration."""
    if "conformal" not in evaluation:
        return []
    rows = [
        [
            percent(level["level"]),
            label,
            f"{level[kind]['coverage']:.4f}",
            ", ".join("-" if v is None else f"{v:.3f}" for v in level[kind]["coverage_by_class"]),
            f"{level[kind]['mean_size']:.3f}",
            f"{level[kind]['empty']:.3f}",
        ]
        for level in evaluation["conformal"]
        for kind, label in _KINDS.items()
    ]
    header = ["level", "kind", "coverage", f"coverage of {', '.join(evaluation['classes'])}", "mean size", "empty"]
    text = (
        "Conformal prediction sets contain the true class with a probability of at least the stated level, for images "
        f"of the same distribution as the {evaluation['calibration']['threshold_images']} held-out images that set the "
        "thresholds."
    )
    if "ood" in evaluation:
        ood = evaluation["ood"]
        text += (
            f" The out-of-distribution score has a median of {ood['median_score']:.2f}; "
            f"{percent(ood['beyond_p95'], 1)} of these images exceed the 95 % quantile of the held-out images, "
            f"{percent(ood['beyond_p99'], 1)} the 99 % quantile."
        )
    return [Section("Prediction sets and out-of-distribution score", text, tables=[Table(header, rows)])]


def _examples(result: EvaluationResult, store: Store) -> Section:
    """Return the most confident correct and the most confident wrong prediction of each class."""
    assert result.probabilities is not None
    labels, probabilities, classes = result.labels, result.probabilities, result.evaluation["classes"]
    predicted, confidence = probabilities.argmax(1), probabilities.max(1)
    chosen: list[tuple[int, str]] = []
    for correct in (True, False):
        for i, name in enumerate(classes):
            members = np.flatnonzero((labels == i) & ((predicted == i) == correct))
            if len(members):
                k = int(members[confidence[members].argmax()])
                verdict = "correct" if correct else f"predicted {classes[predicted[k]]}"
                chosen.append((k, f"{name}, {verdict}, {confidence[k]:.2f}"))
    images = _scaled(store.images([k for k, _ in chosen])[:, 0])
    picture = figures.gallery(images, [title for _, title in chosen], pixel_scale=store.index.pixel_scale)
    alt = "; ".join(f"image {result.names[k]}: {title}" for k, title in chosen)
    text = (
        "The most confident correct prediction of each class, then the most confident wrong one, with the confidence."
    )
    return Section("Examples", text, pictures=[Picture(figures.to_png(picture), alt)])


def _scaled(images: np.ndarray) -> list[np.ndarray]:
    low, high = images.min((1, 2), keepdims=True), images.max((1, 2), keepdims=True)
    return list((images - low) / np.maximum(high - low, np.finfo(images.dtype).tiny))
