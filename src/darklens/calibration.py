"""Calibration of a trained classifier, saved with its bundle; fitted in `evaluation`."""

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float
from pydantic import Field, model_validator

from darklens.config import Frozen
from darklens.errors import InputError

_ONE = 1.001  # with rounding errors
Score = Annotated[float, Field(ge=0, le=_ONE)]
MAX_SCORE = 1e6  # out-of-distribution score, also of features that overflow


class ConformalThresholds(Frozen):
    """Thresholds of conformal prediction sets: the largest score of a class in the set; see `evaluation.conformal`."""

    level: float = Field(gt=0, lt=1, description="smallest average coverage")
    lac: Score = Field(description="of the score 1 - p")
    lac_by_class: tuple[Score, ...] = Field(description="of the same score, for each class")
    aps: Score = Field(description="of the randomised sum of probabilities down to the class")
    aps_whole: Score = Field(description="of the same sum without randomisation")


class SelectiveThreshold(Frozen):
    """Confidence threshold above which at most a fraction `risk` of the images is wrong; see `evaluation.conformal`."""

    risk: float = Field(gt=0, lt=1)
    certainty: float = Field(gt=0, lt=1, description="probability, over samples of held-out images, that it holds")
    confidence: float | None = Field(ge=0, le=_ONE, description="none: too few held-out images for a guarantee")


class OODThresholds(Frozen):
    """The 95 % and 99 % quantiles of the out-of-distribution score of held-out images; see `evaluation.ood`."""

    p95: float = Field(ge=0)
    p99: float = Field(ge=0, le=MAX_SCORE)

    @model_validator(mode="after")
    def _check_order(self) -> "OODThresholds":
        if self.p95 > self.p99:
            raise ValueError("p95 must not exceed p99")
        return self


class CalibrationCurve(Frozen):
    """Calibrated against predicted probability of a class, linear between points; see `evaluation.scaling`."""

    predicted: tuple[float, ...] = Field(min_length=1, description="probabilities, increasing")
    calibrated: tuple[float, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check_points(self) -> "CalibrationCurve":
        if len(self.predicted) != len(self.calibrated) or any(np.diff(self.predicted) <= 0):
            raise ValueError("predicted must increase and have as many values as calibrated")
        if not all(0 < value < 1 for value in self.calibrated):
            raise ValueError("calibrated must be above 0 and below 1")
        return self


class Calibration(Frozen):
    """Calibration on held-out images: one half fits the temperature and the curves, the other all thresholds."""

    temperature: float = Field(default=1.0, ge=1e-3, le=1e3, description="logits are divided by it")
    temperature_images: int = Field(default=0, ge=0, description="0: too few for a fit")
    curves: tuple[CalibrationCurve, ...] = Field(default=(), description="of each class, applied after the temperature")
    threshold_images: int = Field(default=0, ge=0)
    images: str = Field(default="", description="origin of the held-out images")
    conformal: tuple[ConformalThresholds, ...] = ()
    selective: tuple[SelectiveThreshold, ...] = ()
    ood: OODThresholds | None = None

    def probabilities(self, logits: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "n c"]:
        """Return softmax(logits / temperature), float64, corrected by the curves if there are any."""
        plain = softmax(logits / self.temperature)
        if not self.curves:
            return plain
        columns = [np.interp(p, c.predicted, c.calibrated) for p, c in zip(plain.T, self.curves, strict=True)]
        calibrated = np.stack(columns, 1)
        return np.asarray(calibrated / calibrated.sum(1, keepdims=True))

    def require_classes(self, n: int) -> None:
        """Raise `ValueError` unless curves and thresholds are those of n classes."""
        if len(self.curves) not in (0, n) or any(len(item.lac_by_class) != n for item in self.conformal):
            raise ValueError(f"the calibration is not that of {n} classes")

    def require_temperature_alone(self, purpose: str) -> None:
        """Raise `InputError` if there are curves."""
        if self.curves:
            raise InputError(
                f"The model is calibrated with curves, but {purpose} takes a temperature alone; "
                "calibrate it again without --method isotonic."
            )


def softmax(logits: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "n c"]:
    """Return the softmax over classes, float64."""
    shifted = logits.astype(np.float64)
    powers = np.exp(shifted - shifted.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


def widened(probabilities: Float[np.ndarray, "n c"], doubtful: Sequence[bool]) -> Float[np.ndarray, "n c"]:
    """Return the mean of probabilities and equal probabilities for doubtful images; the order of classes stays.

    Where the model does not describe the image, about half of its confident classes are wrong
    (`experiments/confidence.yaml`).
    """
    mean = (probabilities + 1 / probabilities.shape[1]) / 2
    return np.where(np.asarray(doubtful, dtype=bool)[:, None], mean, probabilities)


class MahalanobisStats(NamedTuple):
    """Reference of the out-of-distribution score: class means and covariance of f features and c classes.

    Attributes:
        centre: Mean of each feature over the training images.
        scale: Standard deviation of each feature.
        means: Class means of the standardised features.
        whiten: Transform of the standardised features to unit covariance about the class means.
    """

    centre: Float[np.ndarray, " f"]
    scale: Float[np.ndarray, " f"]
    means: Float[np.ndarray, "c f"]
    whiten: Float[np.ndarray, "f f"]

    def scores(self, features: Float[np.ndarray, "n f"]) -> Float[np.ndarray, " n"]:
        """Return the out-of-distribution score of each image, at most `MAX_SCORE`; see `evaluation.ood`."""
        with np.errstate(over="ignore", invalid="ignore"):
            z = (features.astype(np.float64) - self.centre) / self.scale
            white = (z[:, None] - self.means) @ self.whiten.T
            distance = np.sqrt((white**2).mean(2).min(1))
        return np.asarray(np.nan_to_num(distance, nan=MAX_SCORE, posinf=MAX_SCORE).clip(max=MAX_SCORE))
