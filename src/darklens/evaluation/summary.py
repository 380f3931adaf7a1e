"""The metrics part of eval.json."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from darklens.evaluation import bounds, metrics
from darklens.evaluation.intervals import COVERAGES, RESAMPLES, bootstrap, scalars
from darklens.evaluation.metrics import Labels, Probabilities


def summarise(
    labels: Labels, probabilities: Probabilities, classes: Sequence[str], *, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """Return metrics with 95 % intervals (see `bounds`), ready for JSON.

    Raises:
        InputError: If a metric would be undefined; see `metrics.check`.
    """
    metrics.check(labels, probabilities)
    point = scalars(labels, probabilities)
    spread = bootstrap(labels, probabilities, seed=seed, resamples=resamples)

    def with_interval(name: str) -> dict[str, Any]:
        return bounds.with_interval(name, point[name], spread[name], labels, probabilities)

    def by_class(name: str) -> dict[str, Any]:
        return {c: with_interval(f"{name}_{i}") for i, c in enumerate(classes)} | {"macro": with_interval(name)}

    legacy = metrics.legacy_auc(labels, probabilities)
    known = [value for value in legacy if value is not None]
    return {
        "n": len(labels),
        "classes": list(classes),
        "accuracy": with_interval("accuracy"),
        "auc": by_class("auc"),
        "legacy_auc": dict(zip(classes, legacy, strict=True))
        | {"macro": float(np.mean(known)) if len(known) == len(legacy) else None},
        "recall": by_class("recall"),
        "average_precision": by_class("average_precision"),
        "ece": with_interval("ece"),
        "nll": with_interval("nll"),
        "brier": with_interval("brier"),
        "aurc": with_interval("aurc"),
        "risk_at_coverage": {f"{c:g}": with_interval(f"risk_at_{c:g}") for c in COVERAGES},
        "confusion": metrics.confusion(labels, probabilities).tolist(),
    }
