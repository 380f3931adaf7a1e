"""The metrics part of eval.json."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from darklens.evaluation import metrics
from darklens.evaluation.intervals import RESAMPLES, bootstrap, interval, scalars
from darklens.evaluation.metrics import Labels, Probabilities


def summarise(
    labels: Labels, probabilities: Probabilities, classes: Sequence[str], *, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """Return metrics with 95 % bootstrap intervals, ready for JSON.

    Raises:
        InputError: If a metric would be undefined; see `metrics.check`.
    """
    metrics.check(labels, probabilities)
    point = scalars(labels, probabilities)
    spread = bootstrap(labels, probabilities, seed=seed, resamples=resamples)

    def with_interval(name: str) -> dict[str, Any]:
        return {"value": point[name], "ci95": interval(spread[name])}

    legacy = metrics.legacy_auc(labels, probabilities)
    known = [value for value in legacy if value is not None]
    return {
        "n": len(labels),
        "classes": list(classes),
        "accuracy": with_interval("accuracy"),
        "auc": {name: with_interval(f"auc_{i}") for i, name in enumerate(classes)} | {"macro": with_interval("auc")},
        "legacy_auc": dict(zip(classes, legacy, strict=True))
        | {"macro": float(np.mean(known)) if len(known) == len(legacy) else None},
        "ece": with_interval("ece"),
        "nll": with_interval("nll"),
        "confusion": metrics.confusion(labels, probabilities).tolist(),
    }
