"""lens_residual: a classifier of the fits of a smooth lens, with a line mass and with point masses."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from darklens.constants import constant
from darklens.fit.features import MAP_NAMES, FitFeatures, MapName
from darklens.fit.summary import N_SUMMARY_FEATURES, fit_succeeded, ood_features, summary_features
from darklens.models.base import NetworkOutput, OnPopulation, apply_head
from darklens.models.conv_encoder import ConvEncoder

# Divisors that bring the maps to order one: the image has a maximum of 1, other maps are in standard deviations.
_SCALES: dict[MapName, float] = {"image": 1.0, "residual": 3.0, "line_residual": 3.0, "point_residual": 3.0}
_SCALES |= {"evidence": 5.0, "line_evidence": 5.0}
_IMAGE_LOSS = 0.2  # weight of the loss of the image branch


class LensResidualConfig(OnPopulation):
    """Fits smooth lens, line and points, and classifies the residuals; uses the image alone if the fit fails."""

    kind: Literal["lens_residual"] = "lens_residual"
    inputs: Literal["all", "maps", "summary", "image", "image_and_residual"] = Field(
        default="all", description="inputs of the classifier; subsets are for ablations"
    )
    width: int = Field(default=24, ge=4, le=4096, description="channels of the first convolution")


class LensResidual(nn.Module):
    """A small network on the residual and evidence maps of the fits and on their summary."""

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
        # Likelihood ratios almost separate the classes; a linear layer on them needs the fewest training images.
        self.summary_linear = nn.Linear(N_SUMMARY_FEATURES, n_classes)
        self.image_branch = nn.Sequential(ConvEncoder(1, w // 2), nn.Linear(ConvEncoder.features(w // 2), n_classes))
        # One for current models, whose temperature is in the calibration; older weights store theirs here.
        self.register_buffer("temperature", torch.ones(()))

    def encode(self, inputs: FitFeatures) -> Float[Tensor, "b f"]:
        """Return the concatenated representations of maps and summary."""
        return self._encode(self._scaled_maps(inputs), self._summary(inputs))

    def forward(self, inputs: FitFeatures) -> Float[Tensor, "b classes"]:
        """Return logits; those of the image branch if the fit failed."""
        return self.forward_features(inputs).logits

    def forward_features(self, inputs: FitFeatures) -> NetworkOutput:
        """Return logits, and the features before the last layer of the head."""
        of_fit, of_image, features = self._branches(inputs)
        logits = torch.where(fit_succeeded(inputs)[:, None], of_fit, of_image) / self.temperature
        return NetworkOutput(logits, features)

    def branches(self, inputs: FitFeatures) -> tuple[Float[Tensor, "b classes"], Float[Tensor, "b classes"]]:
        """Return the logits of the fit branch and of the image branch."""
        of_fit, of_image, _ = self._branches(inputs)
        return of_fit, of_image

    def losses(self, inputs: FitFeatures, labels: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Return the training loss of each image: that of the fit branch plus 0.2 times that of the image branch."""
        of_fit, of_image = (
            nn.functional.cross_entropy(logits.float(), labels, reduction="none") for logits in self.branches(inputs)
        )
        return of_fit + _IMAGE_LOSS * of_image

    def ood_features(self, inputs: FitFeatures) -> Float[Tensor, "b u"]:
        """Return the OOD features of the fits, see `darklens.fit.summary.ood_features`."""
        return ood_features(inputs)

    def _branches(self, inputs: FitFeatures) -> tuple[Tensor, Tensor, Tensor]:
        maps, summary = self._scaled_maps(inputs), self._summary(inputs)
        logits, features = apply_head(self.head, self._encode(maps, summary))
        return logits + self.summary_linear(summary), self.image_branch(maps[:, :1]), features

    def _encode(self, maps: Float[Tensor, "b c m m"], summary: Float[Tensor, "b s"]) -> Float[Tensor, "b f"]:
        if self._config.inputs == "summary":
            encoded = maps.new_zeros(len(maps), ConvEncoder.features(self._config.width))
        else:
            encoded = self.encoder(maps[:, constant(tuple(_channels(self._config)), torch.long, maps.device)])
        return torch.cat([encoded, self.summary_mlp(summary)], 1)

    def _scaled_maps(self, inputs: FitFeatures) -> Float[Tensor, "b c m m"]:
        maps = inputs.maps
        scales = constant(tuple(_SCALES[name] for name in MAP_NAMES), maps.dtype, maps.device)
        return maps / scales[:, None, None]

    def _summary(self, inputs: FitFeatures) -> Float[Tensor, "b s"]:
        summary: Tensor = self.summary_norm(summary_features(inputs))
        return summary if self._config.inputs in ("all", "summary") else torch.zeros_like(summary)


def _channels(config: LensResidualConfig) -> list[int]:
    names = {"image": ("image",), "image_and_residual": ("image", "residual")}.get(config.inputs, MAP_NAMES)
    return [MAP_NAMES.index(name) for name in names]
