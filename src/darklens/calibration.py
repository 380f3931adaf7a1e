"""What held-out images taught of a trained classifier, as records that travel in its bundle; fitted in `evaluation`."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from pydantic import Field

from darklens.config import Frozen


class ConformalThresholds(Frozen):
    """The largest scores of classes that belong to the prediction set, see `evaluation.conformal`."""

    level: float = Field(gt=0, lt=1, description="of the sets that hold the true class, at least, on average")
    lac: float = Field(description="of 1 - p")
    lac_by_class: tuple[float, ...] = Field(description="the same, for each class by itself")
    aps: float = Field(description="of the randomised sum of probabilities down to the class")
    aps_whole: float = Field(description="of the same sum, not randomised")


class SelectiveThreshold(Frozen):
    """The confidence above which at most a part `risk` of the images are wrong, see `evaluation.selective`."""

    risk: float = Field(gt=0, lt=1)
    certainty: float = Field(gt=0, lt=1, description="probability, over draws of the held-out images, that it holds")
    confidence: float | None = Field(description="none: the held-out images are too few to promise it")


class FamiliarThresholds(Frozen):
    """Scores that 95 % and 99 % of held-out images stay below, see `evaluation.ood`."""

    p95: float
    p99: float


class Calibration(Frozen):
    """Fitted on images that no weight was fitted to: the temperature on one half, all thresholds on the other."""

    temperature: float = Field(default=1.0, gt=0, description="logits are divided by it")
    temperature_images: int = Field(default=0, ge=0, description="0: too few to fit it")
    threshold_images: int = Field(default=0, ge=0)
    images: str = Field(default="", description="where the images come from")
    conformal: tuple[ConformalThresholds, ...] = ()
    selective: tuple[SelectiveThreshold, ...] = ()
    ood: FamiliarThresholds | None = None

    def probabilities(self, logits: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "n c"]:
        """Return softmax(logits / temperature), float64."""
        return softmax(logits / self.temperature)


def softmax(logits: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "n c"]:
    """Return the probabilities that logits stand for, float64."""
    shifted = logits.astype(np.float64)
    powers = np.exp(shifted - shifted.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


class Familiar(NamedTuple):
    """What features of familiar images look like: of f features and c classes.

    `whiten` turns standardised features into ones of unit covariance about their class' mean.
    """

    centre: Float[np.ndarray, " f"]
    scale: Float[np.ndarray, " f"]
    means: Float[np.ndarray, "c f"]
    whiten: Float[np.ndarray, "f f"]
