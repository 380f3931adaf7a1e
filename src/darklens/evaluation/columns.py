"""Prediction sets and out-of-distribution flags: columns of predictions.csv, and their rates on a test set."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from darklens.bundle import Bundle
from darklens.evaluation import conformal, ood


def prediction_columns(
    bundle: Bundle, probabilities: Float[np.ndarray, "n c"], features: Float[np.ndarray, "n f"]
) -> dict[str, list[str]]:
    """Return the columns `set`, `ood_score` and `ood` of predictions.csv, empty where the bundle has no calibration.

    `set` is the 90 % conformal prediction set with the most probable class added, so that it is never empty. `ood` is
    `yes` for a score above the 99 % quantile of held-out images.
    """
    n, calibration = len(probabilities), bundle.contract.calibration
    columns = {name: [""] * n for name in ("set", "ood_score", "ood")}
    if calibration is not None and calibration.conformal:
        members = conformal.lac_sets(probabilities, calibration.conformal[0])
        members[np.arange(n), probabilities.argmax(1)] = True
        names = np.array(bundle.contract.classes)
        columns["set"] = ["|".join(names[row]) for row in members]
    if calibration is not None and calibration.ood is not None and bundle.ood_reference is not None:
        scores = ood.scores(bundle.ood_reference, features)
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
        summary["ood"] = ood.summarise(ood.scores(bundle.ood_reference, features), calibration.ood)
    return summary
