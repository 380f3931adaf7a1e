"""All systems by `kind`: their settings, and how to build them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import nn

from darklens.config import Frozen, OneOf
from darklens.fit.cache import fit_settings_of
from darklens.models.autoencoder import Autoencoder, AutoencoderConfig
from darklens.models.classifiers import classifier
from darklens.models.informed import Informed, SISAutoencoder2Config, SISAutoencoderConfig
from darklens.models.lens_residual import LensResidual, LensResidualConfig
from darklens.models.resnet_18 import ResNet18Config
from darklens.models.resnet_simple import ResNetSimpleConfig
from darklens.models.two_stage import TwoStage, TwoStageConfig
from darklens.models.unrolled import UnrolledResidual, UnrolledResidualConfig
from darklens.registry import Registry

Task = Literal["classify", "reconstruct"]


@dataclass(frozen=True, kw_only=True)
class SystemSpec:
    """A sort of network that a recipe can name.

    Args:
        settings: Its settings; their `kind` is a literal, the name under which it is registered.
        build: Makes it with fresh weights from the settings, `n_pixels` along a side of what it receives, their
            `pixel_scale` in arcsec, and `n_classes`. A classifier takes images (b, 1, n, n) and returns logits
            (b, classes); the layer that makes them is its `head`, an `nn.Linear` or an `nn.Sequential` that ends
            with one.
        task: What its output is: logits of classes, or the image again.
    """

    settings: type[Frozen]
    build: Callable[..., nn.Module]
    task: Task = "classify"


SYSTEMS: Registry[SystemSpec] = Registry("system", extensible=True)
ModelConfig = Annotated[Any, OneOf(lambda kind: SYSTEMS[kind].settings, lambda: SYSTEMS)]


def _classifier(config: Any, *, n_pixels: int, pixel_scale: float, n_classes: int) -> nn.Module:
    return classifier(config, n_pixels=n_pixels, n_classes=n_classes)


def _two_stage(config: TwoStageConfig, *, n_pixels: int, pixel_scale: float, n_classes: int) -> nn.Module:
    return TwoStage(config, n_pixels=n_pixels, n_classes=n_classes)


def _autoencoder(config: AutoencoderConfig, *, n_pixels: int, pixel_scale: float, n_classes: int) -> nn.Module:
    return Autoencoder(config, n_pixels=n_pixels)


def _lens_residual(config: LensResidualConfig, *, n_pixels: int, pixel_scale: float, n_classes: int) -> nn.Module:
    return LensResidual(config, n_classes=n_classes)


def _unrolled(config: UnrolledResidualConfig, *, n_pixels: int, pixel_scale: float, n_classes: int) -> nn.Module:
    return UnrolledResidual(config, n_classes=n_classes)


SYSTEMS.add("resnet_simple", SystemSpec(settings=ResNetSimpleConfig, build=_classifier))
SYSTEMS.add("resnet_18", SystemSpec(settings=ResNet18Config, build=_classifier))
SYSTEMS.add("autoencoder_resnet_simple", SystemSpec(settings=AutoencoderConfig, build=_autoencoder, task="reconstruct"))
SYSTEMS.add("sis_autoencoder", SystemSpec(settings=SISAutoencoderConfig, build=Informed))
SYSTEMS.add("sis_autoencoder2", SystemSpec(settings=SISAutoencoder2Config, build=Informed))
SYSTEMS.add("two_stage", SystemSpec(settings=TwoStageConfig, build=_two_stage))
SYSTEMS.add("lens_residual", SystemSpec(settings=LensResidualConfig, build=_lens_residual))
SYSTEMS.add("unrolled_residual", SystemSpec(settings=UnrolledResidualConfig, build=_unrolled))


def build(config: Any, *, n_pixels: int, pixel_scale: float, n_classes: int) -> nn.Module:
    """Build a system with fresh weights.

    Args:
        config: The settings of one of `SYSTEMS`.
        n_pixels: Pixels along a side of what the model receives.
        pixel_scale: Pixel scale of what the model receives, arcsec.
        n_classes: Number of classes.
    """
    return SYSTEMS[config.kind].build(config, n_pixels=n_pixels, pixel_scale=pixel_scale, n_classes=n_classes)


def task_of(config: Any) -> Task:
    """Return what a system's output is: logits of classes, or the image again."""
    # An ensemble is no entry of its own: it is made of trained systems, and only of classifiers.
    return SYSTEMS[config.kind].task if config.kind in SYSTEMS else "classify"


def has_k_network(config: Any) -> bool:
    """Return whether the system makes k with a network that can be trained on reconstruction first."""
    return isinstance(config, SISAutoencoderConfig | SISAutoencoder2Config)


def requires_fitting(config: Any) -> bool:
    """Return whether a fit runs for each image: such systems take images as their population has them, and no ONNX."""
    return bool(getattr(config, "requires_fitting", False)) or fit_settings_of(config) is not None


def takes_any_size(config: Any) -> bool:
    """Return whether one set of weights takes images of several sizes, so that training can begin on small ones."""
    return isinstance(config, ResNet18Config)


def kinds() -> list[str]:
    """Return the names of all systems."""
    return list(SYSTEMS)


def descriptions(*, n_pixels: int = 150, n_classes: int = 3) -> dict[str, str]:
    """Return a line on each system: its parameters at that size of image, what it takes and gives, what it is."""
    lines = {}
    for kind in SYSTEMS:
        settings = SYSTEMS[kind].settings
        config: Any = settings()
        with torch.device("meta"):
            model = build(config, n_pixels=n_pixels, pixel_scale=0.05, n_classes=n_classes)
        gives = "an image" if task_of(config) == "reconstruct" else "logits of the classes"
        needs_scale = ", needs its pixel scale" if has_k_network(config) else ""
        about = (settings.__doc__ or "").split("\n")[0]
        size = f"{count_parameters(model) / 1e6:.2f} M parameters at {n_pixels} pixels"
        lines[kind] = f"{about} {size}; takes (b, 1, n, n) scaled to 0..1{needs_scale}; gives {gives}."
    return lines


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable numbers."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
