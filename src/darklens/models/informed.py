"""The study's physics-informed classifiers: an autoencoder makes k(x, y), light is traced back, a network decides."""

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from darklens.config import Frozen
from darklens.models.autoencoder import Autoencoder, AutoencoderConfig
from darklens.models.classifiers import ClassifierConfig, classifier
from darklens.models.lens_layer import Collide, KRange, LensLayer
from darklens.models.resnet_simple import ResNetSimpleConfig
from darklens.models.transformer import Transformer, TransformerConfig
from darklens.physics.grid import Grid


class _InformedConfig(Frozen):
    """Settings of `Informed`. The `legacy_*` switches bring back the study's faults, one each."""

    k_network: Annotated[AutoencoderConfig | TransformerConfig, Field(discriminator="kind")] = AutoencoderConfig()
    classifier: ClassifierConfig = ResNetSimpleConfig()
    grad_k: Literal["ignore", "exact"] = "ignore"
    k_low: float = Field(default=0.3, gt=0, description="arcsec, where training starts")
    k_high: float = Field(default=2.1, gt=0, description="arcsec, where training starts")
    inputs: Literal["image_and_source", "source"] = Field(
        default="image_and_source", description="what the classifier sees"
    )
    legacy_rounding: bool = Field(default=False, description="positions rounded to pixels: no gradient reaches k")
    legacy_pixel_k: bool = Field(default=False, description="k between 0.8 and 1.2 pixels, for good")
    legacy_batch_scale: bool = Field(default=False, description="divide by the maximum over the batch, not the image")
    legacy_drop_origin: bool = Field(default=False, description="lose the pixel at the optical axis")

    @model_validator(mode="after")
    def _ordered(self) -> "_InformedConfig":
        if self.k_low >= self.k_high:
            raise ValueError(f"k_low ({self.k_low}) must be below k_high ({self.k_high})")
        return self


class SISAutoencoderConfig(_InformedConfig):
    """SIS_autoencoder: of the pixels that land on one source pixel, the last in raster order wins."""

    kind: Literal["sis_autoencoder"] = "sis_autoencoder"

    @property
    def collide(self) -> Collide:
        """The rule where pixels land together."""
        return "overwrite"


class SISAutoencoder2Config(_InformedConfig):
    """SIS_autoencoder2: pixels that land on one source pixel are summed."""

    kind: Literal["sis_autoencoder2"] = "sis_autoencoder2"
    collide: Literal["sum", "normalised", "gather"] = Field(
        default="sum",
        description="normalised: divide by the number of pixels that landed, as surface brightness asks; "
        "gather: sample the image at the source position, which is wrong and there for comparison",
    )


InformedConfig = SISAutoencoderConfig | SISAutoencoder2Config


class Informed(nn.Module):
    """A network makes k(x, y), the lens layer delenses, a classifier decides.

    The two SIS autoencoders of the study, with physics that learns: k is in arcsec and the classification loss
    reaches it.
    """

    def __init__(self, config: InformedConfig, *, n_pixels: int, pixel_scale: float, n_classes: int) -> None:
        super().__init__()
        self._config = config
        self.k_network: nn.Module = (
            Transformer(config.k_network, n_pixels=n_pixels)
            if isinstance(config.k_network, TransformerConfig)
            else Autoencoder(config.k_network, n_pixels=n_pixels)
        )
        if config.legacy_pixel_k:
            self.k_range = KRange(0.8 * pixel_scale, 1.2 * pixel_scale, learn=False)
        else:
            self.k_range = KRange(config.k_low, config.k_high)
        self.lens = LensLayer(
            Grid(n_pixels=n_pixels, pixel_scale=pixel_scale),
            collide=config.collide,
            grad_k=config.grad_k,
            legacy_rounding=config.legacy_rounding,
            legacy_drop_origin=config.legacy_drop_origin,
        )
        channels = 2 if config.inputs == "image_and_source" else 1
        self.classifier = classifier(config.classifier, n_pixels=n_pixels, n_classes=n_classes, in_channels=channels)

    def k_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that make k."""
        return [p for module in (self.k_network, self.k_range) for p in module.parameters()]

    def maps(self, images: Float[Tensor, "b 1 n n"]) -> dict[str, Float[Tensor, "b n n"]]:
        """Return what the physics made of the images: k, alpha_x, alpha_y (arcsec) and the source-plane image."""
        raw = self.k_network(images)
        # Positions need float32 even where the network runs in bfloat16.
        with torch.autocast(images.device.type, enabled=False):
            k = self.k_range(raw[:, 0].float())
            alpha_x, alpha_y = self.lens.deflection(k)
            source = self.lens(images.float(), k)
            top = source.amax() if self._config.legacy_batch_scale else source.amax((1, 2, 3), keepdim=True)
            source = source / top.clamp_min(torch.finfo(source.dtype).tiny)
        return {"k": k, "alpha_x": alpha_x, "alpha_y": alpha_y, "source": source[:, 0]}

    def forward(self, images: Float[Tensor, "b 1 n n"]) -> Float[Tensor, "b classes"]:
        """Return logits."""
        source = self.maps(images)["source"][:, None]
        seen = torch.cat([images, source], dim=1) if self._config.inputs == "image_and_source" else source
        logits: Tensor = self.classifier(seen)
        return logits
