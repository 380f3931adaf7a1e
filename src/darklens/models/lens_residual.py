"""Fit the smooth lens, a line and some points in addition, and classify the residuals of each."""

from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from darklens import populations
from darklens.config import Frozen
from darklens.fit.cache import FitSettings
from darklens.fit.features import MAP_NAMES, FitFeatures, MapName
from darklens.fit.summary import N_SUMMARY_FEATURES, fit_succeeded, ood_features, summary_features
from darklens.models.tower import ConvEncoder
from darklens.populations.population import Population

# The image runs from 0 to 1, other maps are in standard deviations; divided by these, all are of order one.
_SCALES: dict[MapName, float] = {"image": 1.0, "residual": 3.0, "line_residual": 3.0, "point_residual": 3.0}
_SCALES |= {"evidence": 5.0, "line_evidence": 5.0}
_IMAGE_LOSS = 0.2  # weight of the loss of the branch that takes the image alone


class OnPopulation(Frozen):
    """Settings that systems share which fit the smooth lenses of a population."""

    requires_fitting: ClassVar[bool] = True

    population: Population = Field(
        description="whose smooth lenses are fitted: a name from `darklens populations`, or its contents"
    )
    overrides: tuple[str, ...] = Field(
        default=(), description="changes to a population that is given by name, such as field.n_pixels=100"
    )
    centred: bool = Field(
        default=False,
        description="fix the lens at the centre of the image; otherwise its position is fitted, within 0.3 arcsec",
    )

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, tree: Any) -> Any:
        """Replace a population's name by its contents with the overrides applied."""
        if not isinstance(tree, dict):
            return tree
        population = tree.get("population", "common-test-i")
        if not isinstance(population, str):
            return tree
        return tree | {"population": populations.get(population, tuple(tree.get("overrides", ()))), "overrides": ()}

    @property
    def fit_settings(self) -> FitSettings | None:
        """How images become the `FitFeatures` that the network takes; None if it takes images."""
        return FitSettings(self.population, self.centred)


class LensResidualConfig(OnPopulation):
    """Fits smooth lens, line and points, classifies the residuals; uses the image alone where the fit fails."""

    kind: Literal["lens_residual"] = "lens_residual"
    inputs: Literal["all", "maps", "summary", "image", "image_and_residual"] = Field(
        default="all", description="inputs of the classifier; less than all is for comparisons"
    )
    width: int = Field(default=24, ge=4, description="channels of the first convolution")


class LensResidual(nn.Module):
    """A small network on the residual and evidence maps of the fits, and on their summary.

    It takes `FitFeatures`, or images, which it fits.
    """

    temperature: Tensor

    def __init__(self, config: LensResidualConfig, *, n_classes: int) -> None:
        super().__init__()
        self._config = config
        w = config.width
        self.encoder = ConvEncoder(len(_channels(config)), w)
        self.summary_norm = nn.BatchNorm1d(N_SUMMARY_FEATURES)
        self.summary_mlp = nn.Sequential(
            *(nn.Linear(N_SUMMARY_FEATURES, 64), nn.ReLU(inplace=True)),
            *(nn.Linear(64, 64), nn.ReLU(inplace=True)),
        )
        both = ConvEncoder.features(w) + 64
        self.head = nn.Sequential(nn.Linear(both, 64), nn.ReLU(inplace=True), nn.Dropout(0.3), nn.Linear(64, n_classes))
        # Likelihood ratios almost separate the classes; a linear layer on them learns from the fewest images.
        self.summary_linear = nn.Linear(N_SUMMARY_FEATURES, n_classes)
        self.image_branch = nn.Sequential(ConvEncoder(1, w // 2), nn.Linear(ConvEncoder.features(w // 2), n_classes))
        # Always one since the bundle's calibration holds the temperature; weights of older bundles have theirs here.
        self.register_buffer("temperature", torch.ones(()))

    def extract_features(self, images: Float[Tensor, "b 1 n n"]) -> FitFeatures:
        """Return the fits of images."""
        settings = self._config.fit_settings
        assert settings is not None
        with torch.autocast(images.device.type, enabled=False):
            return settings.extract_features(images[:, 0].float())

    def forward(self, inputs: Tensor | FitFeatures) -> Float[Tensor, "b classes"]:
        """Return logits; where the fit failed, those of the image alone."""
        features = inputs if isinstance(inputs, FitFeatures) else self.extract_features(inputs)
        logits, of_image = self.branches(features)
        return torch.where(fit_succeeded(features)[:, None], logits, of_image) / self.temperature

    def branches(self, features: FitFeatures) -> tuple[Float[Tensor, "b classes"], Float[Tensor, "b classes"]]:
        """Return the logits of the fits, and of the image alone."""
        scaled = features.maps / features.maps.new_tensor([_SCALES[name] for name in MAP_NAMES])[:, None, None]
        maps = scaled[:, _channels(self._config)]
        if self._config.inputs == "summary":
            encoded = maps.new_zeros(len(maps), ConvEncoder.features(self._config.width))
        else:
            encoded = self.encoder(maps)
        summary = self.summary_norm(summary_features(features))
        if self._config.inputs not in ("all", "summary"):
            summary = torch.zeros_like(summary)
        logits = self.head(torch.cat([encoded, self.summary_mlp(summary)], 1)) + self.summary_linear(summary)
        return logits, self.image_branch(scaled[:, :1])

    def losses(self, inputs: Tensor | FitFeatures, labels: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Return each image's training loss: that of the fits, and a part of that of the image alone."""
        features = inputs if isinstance(inputs, FitFeatures) else self.extract_features(inputs)
        of_fit, of_image = (
            nn.functional.cross_entropy(logits.float(), labels, reduction="none") for logits in self.branches(features)
        )
        return of_fit + _IMAGE_LOSS * of_image

    def ood_features(self, features: FitFeatures) -> Float[Tensor, "b u"]:
        """Return numbers of the fits in which lenses of another population differ."""
        return ood_features(features)


def _channels(config: LensResidualConfig) -> list[int]:
    names = {"image": ("image",), "image_and_residual": ("image", "residual")}.get(config.inputs, MAP_NAMES)
    return [MAP_NAMES.index(name) for name in names]
