"""Systems judged on the same images, side by side: paired differences with intervals and tests."""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from darklens.errors import InputError
from darklens.evaluation import bounds, delong, metrics
from darklens.evaluation.intervals import Training, difference, over_seeds
from darklens.evaluation.judged import System
from darklens.evaluation.mcnemar import mcnemar
from darklens.evaluation.metrics import Labels

_SINGLE = ("accuracy", "nll", "brier", "ece", "aurc")
_BY_CLASS = ("auc", "recall", "average_precision")


def compare(systems: Sequence[System], *, seed: int = 0) -> dict[str, Any]:
    """Return the systems' metrics and all paired differences, ready for JSON.

    A system of several trainings counts by their mean; intervals and bootstrap p-values are then over trainings as
    well as images. DeLong's test is of these trainings on other images, McNemar's of each pair of trainings.

    Raises:
        InputError: If there are fewer than two systems or they were judged on different images.
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
    judged = [[Training.of(t.labels, t.probabilities, seed=seed) for t in system.trainings] for system in systems]
    return {
        "schema": 1,
        "n": first.evaluation["n"],
        "data": first.evaluation["data"],
        "systems": [_shown(s, own, labels, classes, seed) for s, own in zip(systems, judged, strict=True)],
        "differences": [
            {
                "first": a.name,
                "second": b.name,
                "over": "images and seeds" if len(a.trainings) + len(b.trainings) > 2 else "images",
                "paired_seeds": a.paired_with(b),
                **_named(difference(own_a, own_b, paired=a.paired_with(b), seed=seed), classes),
                **_tests(a, b, labels, classes),
            }
            for (a, own_a), (b, own_b) in combinations(zip(systems, judged, strict=True), 2)
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
    """Return header and rows of the systems' metrics."""
    classes = [name for name in comparison["systems"][0]["auc"] if name != "macro"]
    header = ["system", "seeds", "parameters", "training", "macro AUC", *(f"AUC {c}" for c in classes)]
    rows = [
        [
            s["name"],
            ", ".join("?" if seed is None else str(seed) for seed in s["seeds"]),
            f"{s['model']['parameters']:,}",
            f"{s['provenance']['train_images']:,} images, {s['provenance']['train_seconds']:.0f} s",
            *(with_interval(s["auc"][c]) for c in ["macro", *classes]),
            *(with_interval(s[name]) for name in ("accuracy", "ece", "brier", "aurc")),
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
                with_interval(auc, signed=True),
                p_value(auc["p"]),
                p_value(d["delong"]["macro"]["p"]),
                with_interval(accuracy, signed=True),
                p_value(accuracy["p"]),
                ", ".join(p_value(test["p"]) for test in d["mcnemar"]) or "-",
            ]
        )
    return header, rows


def footnote(comparison: dict[str, Any]) -> str:
    """Return what intervals and p-values are of."""
    several = any(len(s["seeds"]) > 1 for s in comparison["systems"])
    over = "images and trainings" if several else "images"
    text = f"{comparison['n']} images of {comparison['data']['population']}; 95 % intervals from resampled {over}"
    more = "; DeLong's p is of these trainings, McNemar's of each pair of trainings" if several else ""
    count = len(comparison["differences"])
    adjusted = f"; p-values are not adjusted for the {count} comparisons" if count > 1 else ""
    return f"{text}{more}{adjusted}."


def with_interval(metric: dict[str, Any], *, signed: bool = False) -> str:
    """Return a metric as text, such as `0.915 [0.897, 0.931]`, with more digits close to 0 and 1."""
    low, high = metric["ci95"]
    value = metric["value"]
    parts = [high - low] if signed else [high - low, value / 10, (1 - value) / 10]
    digits = max([3, *(min(math.ceil(-math.log10(part)), 6) for part in parts if part > 0)])
    form = f"{'+' if signed else ''}.{digits}f"
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"


def p_value(p: float | None) -> str:
    """Return a p-value as text; `-` where there is none."""
    return "-" if p is None else f"{p:.3f}" if p >= 0.001 else "< 0.001"


def _shown(
    system: System, trainings: Sequence[Training], labels: Labels, classes: Sequence[str], seed: int
) -> dict[str, Any]:
    """Return a system's metrics; those of a single training are as in its eval.json."""
    mean, alone = over_seeds(trainings, seed=seed), len(trainings) == 1

    def metric(name: str) -> dict[str, Any]:
        value, drawn = mean.point[name], mean.drawn[name]
        if alone:
            return bounds.with_interval(name, value, drawn, labels, system.trainings[0].probabilities)
        each = [t.point[name] for t in trainings]
        return {"value": value, "ci95": bounds.logit_normal(name, value, drawn, labels), "by_seed": each}

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


def _tests(a: System, b: System, labels: Labels, classes: Sequence[str]) -> dict[str, Any]:
    found = delong.difference(labels, [t.probabilities for t in a.trainings], [t.probabilities for t in b.trainings])
    pairs = list(zip(a.trainings, b.trainings, strict=True)) if a.paired_with(b) else []
    return {
        "delong": dict(zip([*classes, "macro"], found, strict=True)),
        "mcnemar": [{"seeds": [x.seed, y.seed], **mcnemar(labels, x.probabilities, y.probabilities)} for x, y in pairs],
    }


def _named(differences: dict[str, Any], classes: Sequence[str]) -> dict[str, Any]:
    by_class = {
        name: {c: differences[f"{name}_{i}"] for i, c in enumerate(classes)} | {"macro": differences[name]}
        for name in _BY_CLASS
    }
    return {**by_class, **{name: differences[name] for name in _SINGLE}}
