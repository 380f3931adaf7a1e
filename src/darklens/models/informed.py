"""The study's physics-informed classifiers: k(x, y) from a network or a fit, delensing, and a classifier."""

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from darklens.config import Frozen
from darklens.models.autoencoder import Autoencoder, AutoencoderConfig
from darklens.models.base import NetworkOutput
from darklens.models.classifiers import ClassifierConfig, classifier
from darklens.models.lens_layer import KRange, LensLayer, Reduction
from darklens.models.macro_fit_k import MacroFitConfig, MacroFitK
from darklens.models.resnet_simple import ResNetSimpleConfig
from darklens.models.transformer import Transformer, TransformerConfig
from darklens.physics.grid import Grid


class _InformedConfig(Frozen):
    """Settings of `Informed`. Each `legacy_*` switch restores one error of the study."""

    k_network: Annotated[AutoencoderConfig | TransformerConfig | MacroFitConfig, Field(discriminator="kind")] = (
        AutoencoderConfig()
    )
    classifier: ClassifierConfig = ResNetSimpleConfig()
    grad_k: Literal["ignore", "exact"] = "ignore"
    k_low: float = Field(default=0.3, gt=0, description="initial lower bound of k, arcsec")
    k_high: float = Field(default=2.1, gt=0, description="initial upper bound of k, arcsec")
    inputs: Literal["image_and_source", "source"] = Field(
        default="image_and_source", description="inputs of the classifier"
    )
    legacy_rounding: bool = Field(default=False, description="round positions to pixels: no gradient reaches k")
    legacy_pixel_k: bool = Field(default=False, description="fix the bounds of k at 0.8 and 1.2 pixels")
    legacy_batch_scale: bool = Field(default=False, description="divide by the maximum of the batch, not the image")
    legacy_drop_origin: bool = Field(default=False, description="set the pixel on the optical axis to zero")

    @model_validator(mode="after")
    def _ordered(self) -> "_InformedConfig":
        if self.k_low >= self.k_high:
            raise ValueError(f"k_low ({self.k_low}) must be below k_high ({self.k_high})")
        if self.legacy_pixel_k and self.requires_fitting:
            raise ValueError("legacy_pixel_k bounds the k of a network; omit it where k is fitted")
        return self

    @property
    def requires_fitting(self) -> bool:
        """Whether k is fitted to each image."""
        return isinstance(self.k_network, MacroFitConfig)


class SISAutoencoderConfig(_InformedConfig):
    """SIS_autoencoder: of the pixels that land on one source pixel, the last in raster order remains."""

    kind: Literal["sis_autoencoder"] = "sis_autoencoder"

    @property
    def reduction(self) -> Reduction:
        """How the light on one source pixel is combined."""
        return "overwrite"


class SISAutoencoder2Config(_InformedConfig):
    """SIS_autoencoder2: pixels that land on one source pixel are summed."""

    kind: Literal["sis_autoencoder2"] = "sis_autoencoder2"
    reduction: Literal["sum", "normalised", "gather"] = Field(
        default="sum",
        description="normalised: the mean, since surface brightness is conserved; "
        "gather: sample the image at the source position, which is wrong and serves as a comparison",
    )


InformedConfig = SISAutoencoderConfig | SISAutoencoder2Config


class Informed(nn.Module):
    """A network predicts k(x, y), the lens layer delenses the image, and a classifier takes both.

    These are the two SIS autoencoders of the study, but k is in arcsec and the classification loss trains it. With the
    `k_network` macro_fit, k is the fitted Einstein radius, so the lens layer inverts an SIS at the fitted position.
    """

    def __init__(self, config: InformedConfig, *, n_pixels: int, pixel_scale: float, n_classes: int) -> None:
        super().__init__()
        self._config = config
        self.k_network: nn.Module
        if isinstance(config.k_network, MacroFitConfig):
            self.k_network = MacroFitK(config.k_network, n_pixels=n_pixels, pixel_scale=pixel_scale)
        elif isinstance(config.k_network, TransformerConfig):
            self.k_network = Transformer(config.k_network, n_pixels=n_pixels)
        else:
            self.k_network = Autoencoder(config.k_network, n_pixels=n_pixels)
        if not config.requires_fitting:
            bounds = (0.8 * pixel_scale, 1.2 * pixel_scale) if config.legacy_pixel_k else (config.k_low, config.k_high)
            self.k_range = KRange(*bounds, learn=not config.legacy_pixel_k)
        self.lens = LensLayer(
            Grid(n_pixels=n_pixels, pixel_scale=pixel_scale),
            reduction=config.reduction,
            grad_k=config.grad_k,
            legacy_rounding=config.legacy_rounding,
            legacy_drop_origin=config.legacy_drop_origin,
        )
        channels = 2 if config.inputs == "image_and_source" else 1
        self.classifier = classifier(config.classifier, n_pixels=n_pixels, n_classes=n_classes, in_channels=channels)

    def k_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the network and of the bounds of k."""
        return [p for name, p in self.named_parameters() if name.startswith(("k_network.", "k_range."))]

    def maps(self, images: Float[Tensor, "b 1 n n"]) -> dict[str, Float[Tensor, "b n n"]]:
        """Return k, alpha_x and alpha_y in arcsec, and the source-plane image with a maximum of one."""
        raw = self.k_network(images)
        centre = None
        # Positions need float32, also where the network runs in bfloat16.
        with torch.autocast(images.device.type, enabled=False):
            if self._config.requires_fitting:
                theta_E, centre = raw
                k = theta_E[:, None, None].expand_as(images[:, 0])
            else:
                k = self.k_range(raw[:, 0].float())
            alpha_x, alpha_y = self.lens.deflection(k, centre)
            source = self.lens(images.float(), k, centre)
            top = source.amax() if self._config.legacy_batch_scale else source.amax((1, 2, 3), keepdim=True)
            source = source / top.clamp_min(torch.finfo(source.dtype).tiny)
        return {"k": k, "alpha_x": alpha_x, "alpha_y": alpha_y, "source": source[:, 0]}

    def encode(self, inputs: Float[Tensor, "b 1 n n"]) -> Tensor:
        """Return the representation of images and their source planes by the classifier."""
        return self.classifier.encode(self._classifier_inputs(inputs))

    def forward(self, inputs: Float[Tensor, "b 1 n n"]) -> Float[Tensor, "b classes"]:
        """Return logits."""
        return self.forward_features(inputs).logits

    def forward_features(self, inputs: Float[Tensor, "b 1 n n"]) -> NetworkOutput:
        """Return logits, and the features that the classifier's last layer receives."""
        return self.classifier.forward_features(self._classifier_inputs(inputs))

    def _classifier_inputs(self, images: Float[Tensor, "b 1 n n"]) -> Float[Tensor, "b c n n"]:
        source = self.maps(images)["source"][:, None]
        return torch.cat([images, source], dim=1) if self._config.inputs == "image_and_source" else source
