"""Several trained classifiers as one: the mean of their probabilities (Lakshminarayanan et al. 2017)."""

from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from darklens.config import Frozen, OneOf
from darklens.fit.cache import FitSettings, fit_settings_of
from darklens.models.base import Inputs, NetworkOutput, forward_features, ood_features
from darklens.models.zoo import SYSTEMS, ModelConfig, build, requires_fitting


class EnsembleConfig(Frozen):
    """The mean of the probabilities of several classifiers that take the same images."""

    kind: Literal["ensemble"] = "ensemble"
    members: tuple[ModelConfig, ...] = Field(min_length=2, max_length=100)

    @property
    def fit_settings(self) -> FitSettings | None:
        """Settings of the fits whose `FitFeatures` all members take; None if they take images."""
        return fit_settings_of(self.members[0])

    @property
    def requires_fitting(self) -> bool:
        """Whether a member fits a lens to each image."""
        return any(requires_fitting(member) for member in self.members)


def _settings_of(kind: str) -> type[Frozen]:
    return EnsembleConfig if kind == "ensemble" else SYSTEMS[kind].settings


AnySystemConfig = Annotated[Any, OneOf(_settings_of, lambda: [*SYSTEMS, "ensemble"])]


class Ensemble(nn.Module):
    """The members of an ensemble, with their temperatures."""

    temperatures: Tensor

    def __init__(self, config: EnsembleConfig, *, n_pixels: int, pixel_scale: float, n_classes: int) -> None:
        super().__init__()
        self.members = nn.ModuleList(
            build(member, n_pixels=n_pixels, pixel_scale=pixel_scale, n_classes=n_classes) for member in config.members
        )
        self.register_buffer("temperatures", torch.ones(len(config.members)))

    def encode(self, inputs: Inputs) -> Tensor:
        """Return the representation of the first member."""
        first: Any = self.members[0]
        encoded: Tensor = first.encode(inputs)
        return encoded

    def forward(self, inputs: Inputs) -> Float[Tensor, "b classes"]:
        """Return the logarithm of the mean probabilities."""
        return self.forward_features(inputs).logits

    def forward_features(self, inputs: Inputs) -> NetworkOutput:
        """Return the logarithm of the mean probabilities, and the features of the first member."""
        first, features = forward_features(self.members[0], inputs)
        logits = [first, *(member(inputs) for member in self.members[1:])]
        log_probabilities = [
            (values.float() / temperature).log_softmax(1)
            for values, temperature in zip(logits, self.temperatures, strict=True)
        ]
        mean = torch.logsumexp(torch.stack(log_probabilities), 0) - torch.tensor(float(len(logits))).log()
        return NetworkOutput(mean, features)

    def ood_features(self, inputs: Inputs) -> Tensor:
        """Return the OOD features of the first member."""
        return ood_features(self.members[0], inputs)
