"""Prediction sets and out-of-distribution flags: columns of predictions.csv, and their rates on a test set."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from darklens.bundle import Bundle
from darklens.config import UNKNOWN
from darklens.evaluation import conformal, ood


def prediction_columns(
    bundle: Bundle,
    probabilities: Float[np.ndarray, "n c"],
    features: Float[np.ndarray, "n f"],
    doubts: Sequence[tuple[str, ...]] | None = None,
) -> dict[str, list[str]]:
    """Return columns of predictions.csv: `verdict`, `reason`, `set`, `ood_score`, `ood`.

    `verdict` is the predicted class, or `unknown` if there is a `reason` not to trust it; both are left out if `doubts`
    is None. `set` is the 90 % conformal prediction set with the most probable class added, so that it is never empty,
    or all classes if the verdict is `unknown`. `ood` is `yes` for a score above the 99 % quantile of held-out images.
    `set`, `ood_score` and `ood` are empty without a calibration.
    """
    n, calibration, classes = len(probabilities), bundle.contract.calibration, np.array(bundle.contract.classes)
    columns = {} if doubts is None else {name: [""] * n for name in ("verdict", "reason")}
    columns |= {name: [""] * n for name in ("set", "ood_score", "ood")}
    if doubts is not None:
        predicted = classes[probabilities.argmax(1)]
        columns["verdict"] = [
            UNKNOWN if reasons else str(name) for reasons, name in zip(doubts, predicted, strict=True)
        ]
        columns["reason"] = ["; ".join(reasons) for reasons in doubts]
    if calibration is not None and calibration.conformal:
        members = conformal.lac_sets(probabilities, calibration.conformal[0])
        members[np.arange(n), probabilities.argmax(1)] = True
        members[[i for i, reasons in enumerate(doubts or ()) if reasons]] = True
        columns["set"] = ["|".join(classes[row]) for row in members]
    if calibration is not None and calibration.ood is not None and bundle.ood_reference is not None:
        scores = bundle.ood_reference.scores(features)
        columns["ood_score"] = [f"{score:.5g}" for score in scores]
        columns["ood"] = ["yes" if score > calibration.ood.p99 else "no" for score in scores]
    return columns


def summarise_calibration(
    bundle: Bundle,
    probabilities: Float[np.ndarray, "n c"],
    features: Float[np.ndarray, "n f"],
    labels: Int[np.ndarray, " n"],
) -> dict[str, Any]:
    """Return the entries `calibration`, `conformal`, `selective` and `ood` of eval.json: each rate on the test images.

    Empty for a bundle without calibration.
    """
    calibration = bundle.contract.calibration
    if calibration is None:
        return {}
    summary: dict[str, Any] = {
        "calibration": calibration.model_dump(mode="json", include={"temperature", "threshold_images", "images"}),
        "conformal": conformal.summarise_sets(probabilities, labels, calibration.conformal),
        "selective": conformal.summarise_selective(probabilities, labels, calibration.selective),
    }
    if calibration.ood is not None and bundle.ood_reference is not None:
        summary["ood"] = ood.summarise(bundle.ood_reference.scores(features), calibration.ood)
    return summary
