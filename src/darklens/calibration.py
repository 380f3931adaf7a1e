"""What held-out images taught of a trained classifier, as records that travel in its bundle; fitted in `evaluation`."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from pydantic import Field, model_validator

from darklens.config import Frozen
from darklens.errors import InputError


class ConformalThresholds(Frozen):
    """The largest scores of classes that belong to the prediction set, see `evaluation.conformal`."""

    level: float = Field(gt=0, lt=1, description="of the sets that hold the true class, at least, on average")
    lac: float = Field(description="of 1 - p")
    lac_by_class: tuple[float, ...] = Field(description="the same, for each class by itself")
    aps: float = Field(description="of the randomised sum of probabilities down to the class")
    aps_whole: float = Field(description="of the same sum, not randomised")


class SelectiveThreshold(Frozen):
    """The confidence above which at most a part `risk` of the images are wrong, see `evaluation.conformal`."""

    risk: float = Field(gt=0, lt=1)
    certainty: float = Field(gt=0, lt=1, description="probability, over draws of the held-out images, that it holds")
    confidence: float | None = Field(description="none: the held-out images are too few to promise it")


class OODThresholds(Frozen):
    """Scores that 95 % and 99 % of held-out images stay below, see `evaluation.ood`."""

    p95: float
    p99: float


class Curve(Frozen):
    """How often a class is true where it was given a probability; straight lines between points, see `isotonic`."""

    given: tuple[float, ...] = Field(min_length=1, description="probabilities, rising")
    meant: tuple[float, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _one_to_one(self) -> "Curve":
        if len(self.given) != len(self.meant) or any(np.diff(self.given) <= 0):
            raise ValueError("given must rise and have as many numbers as meant")
        if not all(0 < value < 1 for value in self.meant):
            raise ValueError("meant must be above 0 and below 1")
        return self


class Calibration(Frozen):
    """Fitted on images that no weight was fitted to: the temperature on one half, all thresholds on the other."""

    temperature: float = Field(default=1.0, gt=0, description="logits are divided by it")
    temperature_images: int = Field(default=0, ge=0, description="0: too few to fit it")
    curves: tuple[Curve, ...] = Field(default=(), description="of each class, after the temperature; none: that alone")
    threshold_images: int = Field(default=0, ge=0)
    images: str = Field(default="", description="where the images come from")
    conformal: tuple[ConformalThresholds, ...] = ()
    selective: tuple[SelectiveThreshold, ...] = ()
    ood: OODThresholds | None = None

    def probabilities(self, logits: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "n c"]:
        """Return softmax(logits / temperature), passed through the curves if there are any, float64."""
        plain = softmax(logits / self.temperature)
        if not self.curves:
            return plain
        columns = [np.interp(p, c.given, c.meant) for p, c in zip(plain.T, self.curves, strict=True)]
        meant = np.stack(columns, 1)
        return np.asarray(meant / meant.sum(1, keepdims=True))

    def require_temperature_alone(self, purpose: str) -> None:
        """Raise `InputError` if there are curves, which not everything that takes logits can follow."""
        if self.curves:
            raise InputError(
                f"The model is calibrated by curves, and {purpose} takes a temperature alone; "
                "calibrate it again without --method isotonic."
            )


def softmax(logits: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "n c"]:
    """Return the probabilities that logits stand for, float64."""
    shifted = logits.astype(np.float64)
    powers = np.exp(shifted - shifted.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


class MahalanobisStats(NamedTuple):
    """What features of familiar images look like: of f features and c classes.

    `whiten` turns standardised features into ones of unit covariance about their class' mean.
    """

    centre: Float[np.ndarray, " f"]
    scale: Float[np.ndarray, " f"]
    means: Float[np.ndarray, "c f"]
    whiten: Float[np.ndarray, "f f"]
