"""What bundles take and return: images, outputs of a network, classes with their doubts."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Shaped
from torch import Tensor

from darklens.fit.evidence import Evidence
from darklens.fit.features import FitFeatures
from darklens.fit.macro import MacroFit
from darklens.models.base import Inputs, NetworkOutput

Images = Shaped[np.ndarray, "b 1 n n"] | Shaped[Tensor, "b 1 n n"]  # real numbers of any type


class Output(NamedTuple):
    """Logits (b, classes) before calibration, and OOD features (b, f) for `evaluation.ood`; float64."""

    logits: np.ndarray
    ood_features: np.ndarray


class SmoothFit(NamedTuple):
    """The smooth lens fitted on all pixels, with covariances, and the evidence for one mass in addition."""

    macro: MacroFit
    evidence: Evidence


class Classification(NamedTuple):
    """The classes of b images.

    Attributes:
        probabilities: Calibrated probabilities (b, classes).
        findings: Fitted parameters as columns of text by name; empty for systems that take images.
        maps: Maps by name (b, m, m): `MAP_NAMES` for systems that take fits, otherwise `Bundle.maps` if requested.
        ood_features: Features for `evaluation.ood` (b, f).
        inputs: Inputs of the network, from `Bundle.inputs_of`.
        doubts: Reasons not to trust the class of each image; empty if there are none. Probabilities are then widened.
    """

    probabilities: np.ndarray
    findings: dict[str, list[str]]
    maps: dict[str, np.ndarray]
    ood_features: np.ndarray
    inputs: Inputs
    doubts: Sequence[tuple[str, ...]] = ()

    def rows(self, indices: Sequence[int]) -> "Classification":
        """Return the classification of some of the images."""
        chosen = list(indices)
        inputs = self.inputs.rows(chosen) if isinstance(self.inputs, FitFeatures) else self.inputs[chosen]
        return Classification(
            self.probabilities[chosen],
            {name: [column[i] for i in chosen] for name, column in self.findings.items()},
            {name: values[chosen] for name, values in self.maps.items()},
            self.ood_features[chosen],
            inputs,
            [self.doubts[i] for i in chosen],
        )


@runtime_checkable
class InferenceBackend(Protocol):
    """Computes inputs and outputs of the network of a bundle. A bundle is its own eager backend."""

    def inputs_of(self, images: Images, *, exposure: Images | None = None) -> Inputs:
        """Return the inputs of the network for images."""

    def forward(self, inputs: Inputs) -> NetworkOutput:
        """Return the network's output."""
