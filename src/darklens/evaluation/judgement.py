"""What a calibration says of single images: the set of classes, and whether the image is one of a kind it knows."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from darklens.bundle import Bundle
from darklens.evaluation import conformal, ood, selective


def columns(
    bundle: Bundle, probabilities: Float[np.ndarray, "n c"], features: Float[np.ndarray, "n f"]
) -> dict[str, list[str]]:
    """Return the columns `set`, `ood_score` and `ood` of predictions.csv, empty where the bundle does not know.

    `set` holds the true class with a probability of at least 90 %, for images like those the bundle was calibrated on.
    The most probable class is always in it: a classifier that is right more often than that would have to leave sets
    empty of images that it knows well. `ood` is `yes` beyond the score that 99 % of those images stay below.
    """
    n, calibration = len(probabilities), bundle.contract.calibration
    found = {name: [""] * n for name in ("set", "ood_score", "ood")}
    if calibration is not None and calibration.conformal:
        members = conformal.lac_sets(probabilities, calibration.conformal[0])
        members[np.arange(n), probabilities.argmax(1)] = True
        names = np.array(bundle.contract.classes)
        found["set"] = ["|".join(names[row]) for row in members]
    if calibration is not None and calibration.ood is not None and bundle.familiar is not None:
        scores = ood.scores(bundle.familiar, features)
        found["ood_score"] = [f"{score:.5g}" for score in scores]
        found["ood"] = ["yes" if score > calibration.ood.p99 else "no" for score in scores]
    return found


def summarise(
    bundle: Bundle,
    probabilities: Float[np.ndarray, "n c"],
    features: Float[np.ndarray, "n f"],
    labels: Int[np.ndarray, " n"],
) -> dict[str, Any]:
    """Return how sets, promised risks and thresholds fare on test images: `conformal`, `selective` and `ood`.

    Empty for a bundle without calibration.
    """
    calibration = bundle.contract.calibration
    if calibration is None:
        return {}
    found: dict[str, Any] = {
        "calibration": calibration.model_dump(mode="json", include={"temperature", "threshold_images", "images"}),
        "conformal": conformal.summarise(probabilities, labels, calibration.conformal),
        "selective": selective.summarise(probabilities, labels, calibration.selective),
    }
    if calibration.ood is not None and bundle.familiar is not None:
        found["ood"] = ood.summarise(ood.scores(bundle.familiar, features), calibration.ood)
    return found
