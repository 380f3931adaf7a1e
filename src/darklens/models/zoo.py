"""All systems by `kind`: their settings, and how to build them."""

from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args

import torch
from pydantic import Field
from torch import nn

from darklens.models.autoencoder import Autoencoder, AutoencoderConfig
from darklens.models.classifiers import classifier
from darklens.models.informed import Informed, SISAutoencoder2Config, SISAutoencoderConfig
from darklens.models.lens_residual import LensResidual, LensResidualConfig, OnPopulation
from darklens.models.resnet_18 import ResNet18Config
from darklens.models.resnet_simple import ResNetSimpleConfig
from darklens.models.two_stage import TwoStage, TwoStageConfig
from darklens.models.unrolled import UnrolledResidual, UnrolledResidualConfig

ModelConfig = Annotated[
    ResNetSimpleConfig
    | ResNet18Config
    | AutoencoderConfig
    | SISAutoencoderConfig
    | SISAutoencoder2Config
    | TwoStageConfig
    | LensResidualConfig
    | UnrolledResidualConfig,
    Field(discriminator="kind"),
]
Task = Literal["classify", "reconstruct"]


def build(config: Any, *, n_pixels: int, pixel_scale: float, n_classes: int) -> nn.Module:
    """Build a system with fresh weights.

    Args:
        config: One of the settings of `ModelConfig`.
        n_pixels: Pixels along a side of what the model receives.
        pixel_scale: Pixel scale of what the model receives, arcsec.
        n_classes: Number of classes.
    """
    builders: dict[type, Callable[[], nn.Module]] = {
        **dict.fromkeys(
            (ResNetSimpleConfig, ResNet18Config), lambda: classifier(config, n_pixels=n_pixels, n_classes=n_classes)
        ),
        LensResidualConfig: lambda: LensResidual(config, n_classes=n_classes),
        UnrolledResidualConfig: lambda: UnrolledResidual(config, n_classes=n_classes),
        TwoStageConfig: lambda: TwoStage(config, n_pixels=n_pixels, n_classes=n_classes),
        AutoencoderConfig: lambda: Autoencoder(config, n_pixels=n_pixels),
        **dict.fromkeys(
            (SISAutoencoderConfig, SISAutoencoder2Config),
            lambda: Informed(config, n_pixels=n_pixels, pixel_scale=pixel_scale, n_classes=n_classes),
        ),
    }
    return builders[type(config)]()


def task_of(config: Any) -> Task:
    """Return what a system's output is: logits of classes, or the image again."""
    return "reconstruct" if isinstance(config, AutoencoderConfig) else "classify"


def has_k_network(config: Any) -> bool:
    """Return whether the system makes k with a network that can be trained on reconstruction first."""
    return isinstance(config, SISAutoencoderConfig | SISAutoencoder2Config)


def fits_lenses(config: Any) -> bool:
    """Return whether the system fits lenses to images, and so needs them whole and as their population has them."""
    return isinstance(config, OnPopulation)


def last_layer(network: nn.Module) -> nn.Linear:
    """Return the layer that makes the logits, whose input is what a classifier makes of an image.

    Of a system of several networks it is that of the one that knows all classes.
    """
    inner = network.first if isinstance(network, TwoStage) else network
    inner = inner.classifier if isinstance(inner, Informed) else inner
    head = inner.get_submodule("head")
    assert isinstance(head, nn.Sequential)
    layer = head[-1]
    assert isinstance(layer, nn.Linear)
    return layer


def kinds() -> list[str]:
    """Return the names of all systems."""
    union = get_args(ModelConfig)[0]
    return [member.model_fields["kind"].default for member in get_args(union)]


def descriptions(*, n_pixels: int = 150, n_classes: int = 3) -> dict[str, str]:
    """Return a line on each system: its parameters at that size of image, what it takes and gives, what it is."""
    union = get_args(ModelConfig)[0]
    found = {}
    for member in get_args(union):
        config = member()
        with torch.device("meta"):
            model = build(config, n_pixels=n_pixels, pixel_scale=0.05, n_classes=n_classes)
        gives = "an image" if task_of(config) == "reconstruct" else "logits of the classes"
        needs_scale = ", needs its pixel scale" if has_k_network(config) else ""
        about = (member.__doc__ or "").split("\n")[0]
        size = f"{count_parameters(model) / 1e6:.2f} M parameters at {n_pixels} pixels"
        found[config.kind] = f"{about} {size}; takes (b, 1, n, n) scaled to 0..1{needs_scale}; gives {gives}."
    return found


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable numbers."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
