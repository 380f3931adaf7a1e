"""The registry of systems by `kind`: their configurations and networks."""

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
    """A registered kind of system, for recipes.

    Args:
        settings: Configuration class. Its field `kind` is a literal, the registered name.
        build: Builds the network with newly initialised weights from the configuration, `n_pixels` along a side of
            its inputs, their `pixel_scale` in arcsec, and `n_classes`. A classifier takes images (b, 1, n, n) and
            returns logits (b, classes). Its last layer is its `head`, an `nn.Linear` or an `nn.Sequential` that ends
            with one.
        task: `classify` if the output is logits, `reconstruct` if it is an image.
    """

    settings: type[Frozen]
    build: Callable[..., nn.Module]
    task: Task = "classify"


SYSTEMS: Registry[SystemSpec] = Registry("system", extensible=True)
ModelConfig = Annotated[Any, OneOf(lambda kind: SYSTEMS[kind].settings, lambda: SYSTEMS)]


def _with(make: Callable[..., nn.Module], *names: str) -> Callable[..., nn.Module]:
    """Return the `build` of a network that takes only the named ones of its arguments."""
    return lambda config, **arguments: make(config, **{name: arguments[name] for name in names})


_classifier = _with(classifier, "n_pixels", "n_classes")
SYSTEMS.add("resnet_simple", SystemSpec(settings=ResNetSimpleConfig, build=_classifier))
SYSTEMS.add("resnet_18", SystemSpec(settings=ResNet18Config, build=_classifier))
SYSTEMS.add(
    "autoencoder_resnet_simple",
    SystemSpec(settings=AutoencoderConfig, build=_with(Autoencoder, "n_pixels"), task="reconstruct"),
)
SYSTEMS.add("sis_autoencoder", SystemSpec(settings=SISAutoencoderConfig, build=Informed))
SYSTEMS.add("sis_autoencoder2", SystemSpec(settings=SISAutoencoder2Config, build=Informed))
SYSTEMS.add("two_stage", SystemSpec(settings=TwoStageConfig, build=_with(TwoStage, "n_pixels", "n_classes")))
SYSTEMS.add("lens_residual", SystemSpec(settings=LensResidualConfig, build=_with(LensResidual, "n_classes")))
SYSTEMS.add(
    "unrolled_residual", SystemSpec(settings=UnrolledResidualConfig, build=_with(UnrolledResidual, "n_classes"))
)


def build(config: Any, *, n_pixels: int, pixel_scale: float, n_classes: int) -> nn.Module:
    """Build a system with newly initialised weights.

    Args:
        config: Configuration of one of `SYSTEMS`.
        n_pixels: Pixels along a side of the network inputs.
        pixel_scale: Pixel scale of the network inputs, arcsec.
        n_classes: Number of classes.
    """
    return SYSTEMS[config.kind].build(config, n_pixels=n_pixels, pixel_scale=pixel_scale, n_classes=n_classes)


def task_of(config: Any) -> Task:
    """Return the task of a system, `classify` or `reconstruct`."""
    # Ensembles are not registered; they consist of trained classifiers.
    return SYSTEMS[config.kind].task if config.kind in SYSTEMS else "classify"


def has_lens_step(config: Any) -> bool:
    """Return whether the system maps the image to the source plane with k(x, y), and so has these maps."""
    return isinstance(config, SISAutoencoderConfig | SISAutoencoder2Config)


def has_k_network(config: Any) -> bool:
    """Return whether a network of the system predicts k(x, y) and can be pretrained on reconstruction."""
    return has_lens_step(config) and not requires_fitting(config)


def requires_fitting(config: Any) -> bool:
    """Return whether a fit runs for each image. Such systems need raw images and cannot be exported to ONNX."""
    return bool(getattr(config, "requires_fitting", False)) or fit_settings_of(config) is not None


def takes_any_size(config: Any) -> bool:
    """Return whether the same weights accept several image sizes, so that training can start on small images."""
    return isinstance(config, ResNet18Config)


def kinds() -> list[str]:
    """Return the names of all systems."""
    return list(SYSTEMS)


def descriptions() -> dict[str, str]:
    """Return one line on each system: description, number of parameters at 150 pixels, inputs and outputs."""
    lines = {}
    for kind in SYSTEMS:
        settings = SYSTEMS[kind].settings
        config: Any = settings()
        with torch.device("meta"):
            model = build(config, n_pixels=150, pixel_scale=0.05, n_classes=3)
        gives = "an image" if task_of(config) == "reconstruct" else "logits of the classes"
        needs_scale = ", needs its pixel scale" if has_lens_step(config) else ""
        about = (settings.__doc__ or "").split("\n")[0]
        size = f"{count_parameters(model) / 1e6:.2f} M parameters at 150 pixels"
        lines[kind] = f"{about} {size}; takes (b, 1, n, n) scaled to 0..1{needs_scale}; gives {gives}."
    return lines


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
