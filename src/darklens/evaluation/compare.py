"""Comparison of systems on the same images: paired differences with intervals and tests."""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from darklens.errors import InputError
from darklens.evaluation import metrics
from darklens.evaluation.bootstrap import BootstrapMetrics, difference, mean_of_trainings
from darklens.evaluation.intervals import bootstrap_logit_interval, metric_with_interval
from darklens.evaluation.metrics import Labels
from darklens.evaluation.paired_tests import delong_test, mcnemar_test
from darklens.evaluation.runs import SystemRuns

_SINGLE = ("accuracy", "nll", "brier", "ece", "aurc")
_BY_CLASS = ("auc", "recall", "average_precision")


def compare(systems: Sequence[SystemRuns], *, seed: int = 0) -> dict[str, Any]:
    """Return the content of compare.json: the metrics of the systems and all paired differences.

    A system of several trainings has their mean; its intervals and bootstrap p-values include the scatter of trainings
    as well as of images. DeLong's test is of these trainings on new images, McNemar's of each pair of trainings.

    Raises:
        InputError: If there are fewer than two systems or they were evaluated on different images.
    """
    if len(systems) < 2:
        raise InputError("A comparison needs at least two evaluations.")
    first = systems[0].trainings[0]
    for system in systems:
        for training in system.trainings:
            metrics.check(training.labels, training.probabilities)
            same_data = first.evaluation["data"]["sha256"] == training.evaluation["data"]["sha256"]
            if not same_data or not np.array_equal(first.labels, training.labels):
                raise InputError(
                    f"{systems[0].name} and {system.name} were evaluated on different images; evaluate both on one "
                    "store."
                )
    classes, labels = first.evaluation["classes"], first.labels
    measured = [
        [BootstrapMetrics.of(t.labels, t.probabilities, seed=seed) for t in system.trainings] for system in systems
    ]
    return {
        "schema": 1,
        "n": first.evaluation["n"],
        "data": first.evaluation["data"],
        "systems": [_metrics_of(s, m, labels, classes, seed) for s, m in zip(systems, measured, strict=True)],
        "differences": [
            {
                "first": a.name,
                "second": b.name,
                "over": "images and seeds" if len(a.trainings) + len(b.trainings) > 2 else "images",
                "paired_seeds": a.is_paired_with(b),
                **_by_class(difference(metrics_a, metrics_b, paired=a.is_paired_with(b), seed=seed), classes),
                **_tests(a, b, labels, classes),
            }
            for (a, metrics_a), (b, metrics_b) in combinations(zip(systems, measured, strict=True), 2)
        ],
    }


def to_markdown(comparison: dict[str, Any]) -> str:
    """Return the comparison as Markdown tables."""
    parts = [systems_table(comparison), differences_table(comparison)]
    lines = []
    for header, rows in parts:
        lines += ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)] + [""]
    return "\n".join([*lines, footnote(comparison)]) + "\n"


def systems_table(comparison: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the metrics of each system."""
    classes = [name for name in comparison["systems"][0]["auc"] if name != "macro"]
    header = ["system", "seeds", "parameters", "training", "macro AUC", *(f"AUC {c}" for c in classes)]
    rows = [
        [
            s["name"],
            ", ".join("?" if seed is None else str(seed) for seed in s["seeds"]),
            f"{s['model']['parameters']:,}",
            f"{s['provenance']['train_images']:,} images, {s['provenance']['train_seconds']:.0f} s",
            *(format_metric(s["auc"][c]) for c in ["macro", *classes]),
            *(format_metric(s[name]) for name in ("accuracy", "ece", "brier", "aurc")),
        ]
        for s in comparison["systems"]
    ]
    return [*header, "accuracy", "ECE", "Brier", "AURC"], rows


def differences_table(comparison: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of all differences with their p-values."""
    header = ["difference", "macro AUC", "p, bootstrap", "p, DeLong", "accuracy", "p, bootstrap", "p, McNemar"]
    rows = []
    for d in comparison["differences"]:
        auc, accuracy = d["auc"]["macro"], d["accuracy"]
        rows.append(
            [
                f"{d['first']} - {d['second']}",
                format_metric(auc, signed=True),
                format_p_value(auc["p"]),
                format_p_value(d["delong"]["macro"]["p"]),
                format_metric(accuracy, signed=True),
                format_p_value(accuracy["p"]),
                ", ".join(format_p_value(test["p"]) for test in d["mcnemar"]) or "-",
            ]
        )
    return header, rows


def footnote(comparison: dict[str, Any]) -> str:
    """Return a sentence on what the intervals and p-values describe."""
    several = any(len(s["seeds"]) > 1 for s in comparison["systems"])
    resampled = "images and trainings" if several else "images"
    text = f"{comparison['n']} images of {comparison['data']['population']}; 95 % intervals from resampled {resampled}"
    tests = "; DeLong's p describes these trainings, McNemar's each pair of trainings" if several else ""
    count = len(comparison["differences"])
    adjusted = f"; p-values are not adjusted for the {count} comparisons" if count > 1 else ""
    return f"{text}{tests}{adjusted}."


def format_metric(metric: dict[str, Any], *, signed: bool = False) -> str:
    """Return a metric as text, such as `0.915 [0.897, 0.931]`, with more digits close to 0 and 1."""
    low, high = metric["ci95"]
    value = metric["value"]
    parts = [high - low] if signed else [high - low, value / 10, (1 - value) / 10]
    digits = max([3, *(min(math.ceil(-math.log10(part)), 6) for part in parts if part > 0)])
    form = f"{'+' if signed else ''}.{digits}f"
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"


def format_p_value(p: float | None) -> str:
    """Return a p-value as text, `-` for None."""
    return "-" if p is None else f"{p:.3f}" if p >= 0.001 else "< 0.001"


def _metrics_of(
    system: SystemRuns, trainings: Sequence[BootstrapMetrics], labels: Labels, classes: Sequence[str], seed: int
) -> dict[str, Any]:
    """Return a system's metrics; those of a single training are as in its eval.json."""
    mean, single = mean_of_trainings(trainings, seed=seed), len(trainings) == 1

    def metric(name: str) -> dict[str, Any]:
        value, resampled = mean.values[name], mean.resampled[name]
        if single:
            return metric_with_interval(name, value, resampled, labels, system.trainings[0].probabilities)
        by_seed = [t.values[name] for t in trainings]
        ci95 = bootstrap_logit_interval(name, value, resampled, labels)
        return {"value": value, "ci95": ci95, "by_seed": by_seed}

    evaluation = system.trainings[0].evaluation
    seconds = [t.evaluation["provenance"]["train_seconds"] for t in system.trainings]
    return {
        "name": system.name,
        "seeds": list(system.seeds),
        **{name: metric(name) for name in _SINGLE},
        **{
            name: {c: metric(f"{name}_{i}") for i, c in enumerate(classes)} | {"macro": metric(name)}
            for name in _BY_CLASS
        },
        "model": evaluation["model"],
        "provenance": {**evaluation["provenance"], "train_seconds": float(np.mean(seconds))},
    }


def _tests(a: SystemRuns, b: SystemRuns, labels: Labels, classes: Sequence[str]) -> dict[str, Any]:
    delong = delong_test(labels, [t.probabilities for t in a.trainings], [t.probabilities for t in b.trainings])
    pairs = list(zip(a.trainings, b.trainings, strict=True)) if a.is_paired_with(b) else []
    return {
        "delong": dict(zip([*classes, "macro"], delong, strict=True)),
        "mcnemar": [
            {"seeds": [x.seed, y.seed], **mcnemar_test(labels, x.probabilities, y.probabilities)} for x, y in pairs
        ],
    }


def _by_class(differences: dict[str, Any], classes: Sequence[str]) -> dict[str, Any]:
    by_class = {
        name: {c: differences[f"{name}_{i}"] for i, c in enumerate(classes)} | {"macro": differences[name]}
        for name in _BY_CLASS
    }
    return {**by_class, **{name: differences[name] for name in _SINGLE}}
