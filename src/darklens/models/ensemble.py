"""Several trained classifiers as one: the mean of their probabilities (Lakshminarayanan et al. 2017)."""

from typing import Annotated, Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from darklens.config import Frozen, OneOf
from darklens.models.lens_residual import LensResidual, LensResidualConfig
from darklens.models.zoo import SYSTEMS, ModelConfig, build
from darklens.populations.population import Population
from darklens.simulate.backend import Backend


class EnsembleConfig(Frozen):
    """The mean of the probabilities of several classifiers that take the same images."""

    kind: Literal["ensemble"] = "ensemble"
    members: tuple[ModelConfig, ...] = Field(min_length=2)


def _settings_of(kind: str) -> type[Frozen]:
    return EnsembleConfig if kind == "ensemble" else SYSTEMS[kind].settings


System = Annotated[Any, OneOf(_settings_of, lambda: [*SYSTEMS, "ensemble"])]


def first_of(config: Any) -> Any:
    """Return the settings of a system, or of an ensemble's first member."""
    return config.members[0] if isinstance(config, EnsembleConfig) else config


class LensFit(NamedTuple):
    """How a system fits lenses: those of a population, held at the middle of the image or not."""

    population: Population
    centred: bool


def fit_of(config: Any) -> LensFit | None:
    """Return how a system fits lenses to images; None if it fits none."""
    first = first_of(config)
    return LensFit(first.population, first.centred) if isinstance(first, LensResidualConfig) else None


class Ensemble(nn.Module):
    """The members, each with the temperature that its logits are divided by."""

    temperatures: Tensor

    def __init__(self, config: EnsembleConfig, *, n_pixels: int, pixel_scale: float, n_classes: int) -> None:
        super().__init__()
        self.members = nn.ModuleList(
            build(member, n_pixels=n_pixels, pixel_scale=pixel_scale, n_classes=n_classes) for member in config.members
        )
        self.register_buffer("temperatures", torch.ones(len(config.members)))

    def see(self, images: Float[Tensor, "b 1 n n"], *, engine: Backend = "eager") -> Any:
        """Return the fits of images, which all members are shown; only of members that fit lenses."""
        first = self.members[0]
        assert isinstance(first, LensResidual)
        return first.see(images, engine=engine)

    def forward(self, images: Any) -> Float[Tensor, "b classes"]:
        """Return the logarithm of the mean probabilities."""
        answers = [
            (member(images).float() / temperature).log_softmax(1)
            for member, temperature in zip(self.members, self.temperatures, strict=True)
        ]
        return torch.logsumexp(torch.stack(answers), 0) - torch.tensor(float(len(answers))).log()
