"""Systems judged on the same images, side by side: paired differences with intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from darklens.errors import InputError
from darklens.evaluation import metrics
from darklens.evaluation.intervals import paired_difference
from darklens.evaluation.metrics import Labels, Probabilities


@dataclass(frozen=True)
class Judged:
    """One system's eval.json and predictions."""

    name: str
    evaluation: dict[str, Any]
    labels: Labels
    probabilities: Probabilities


def compare(systems: Sequence[Judged], *, seed: int = 0) -> dict[str, Any]:
    """Return the systems' metrics and all paired differences, ready for JSON.

    Raises:
        InputError: If there are fewer than two systems or they were judged on different images.
    """
    if len(systems) < 2:
        raise InputError("A comparison needs at least two evaluations.")
    for system in systems:
        metrics.check(system.labels, system.probabilities)
    first = systems[0]
    for other in systems[1:]:
        same_data = first.evaluation["data"]["sha256"] == other.evaluation["data"]["sha256"]
        if not same_data or not np.array_equal(first.labels, other.labels):
            raise InputError(
                f"{first.name} and {other.name} were evaluated on different images; evaluate both on one store."
            )
    classes = first.evaluation["classes"]
    return {
        "schema": 1,
        "n": first.evaluation["n"],
        "data": first.evaluation["data"],
        "systems": [{"name": s.name, **{key: s.evaluation[key] for key in _SHOWN}} for s in systems],
        "differences": [
            {
                "first": a.name,
                "second": b.name,
                **_named(paired_difference(a.labels, a.probabilities, b.probabilities, seed=seed), classes),
            }
            for a, b in combinations(systems, 2)
        ],
    }


def to_markdown(comparison: dict[str, Any]) -> str:
    """Return the comparison as two Markdown tables."""
    classes = [name for name in comparison["systems"][0]["auc"] if name != "macro"]
    lines = [
        f"| system | parameters | macro AUC | {' | '.join(f'AUC {name}' for name in classes)} | accuracy | ECE |",
        "|" + " --- |" * (5 + len(classes)),
    ]
    for system in comparison["systems"]:
        aucs = " | ".join(with_interval(system["auc"][name]) for name in ["macro", *classes])
        rest = f"{with_interval(system['accuracy'])} | {with_interval(system['ece'])}"
        lines.append(f"| {system['name']} | {system['model']['parameters']:,} | {aucs} | {rest} |")
    lines += ["", "| difference | macro AUC | p | accuracy | p |", "|" + " --- |" * 5]
    for d in comparison["differences"]:
        auc, accuracy = d["auc"]["macro"], d["accuracy"]
        lines.append(
            f"| {d['first']} - {d['second']} | {with_interval(auc, signed=True)} | {auc['p']:.3f} | "
            f"{with_interval(accuracy, signed=True)} | {accuracy['p']:.3f} |"
        )
    lines += ["", f"{comparison['n']} images of {comparison['data']['population']}; 95 % bootstrap intervals."]
    return "\n".join(lines) + "\n"


def with_interval(metric: dict[str, Any], *, signed: bool = False) -> str:
    """Return a metric as text, such as `0.915 [0.897, 0.931]`."""
    form = "+.3f" if signed else ".3f"
    low, high = metric["ci95"]
    return f"{metric['value']:{form}} [{low:{form}}, {high:{form}}]"


_SHOWN = ["accuracy", "auc", "ece", "nll", "model", "provenance"]


def _named(differences: dict[str, Any], classes: Sequence[str]) -> dict[str, Any]:
    by_class = {name: differences[f"auc_{i}"] for i, name in enumerate(classes)}
    rest = {key: value for key, value in differences.items() if not key.startswith("auc")}
    return {"auc": {**by_class, "macro": differences["auc"]}, **rest}
