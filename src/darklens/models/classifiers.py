"""The classifiers that systems are composed of, by `kind`."""

from typing import Annotated

from pydantic import Field

from darklens.models.base import HeadClassifier
from darklens.models.resnet_18 import ResNet18, ResNet18Config
from darklens.models.resnet_simple import ResNetSimple, ResNetSimpleConfig

ClassifierConfig = Annotated[ResNetSimpleConfig | ResNet18Config, Field(discriminator="kind")]


def classifier(
    config: ResNetSimpleConfig | ResNet18Config, *, n_pixels: int, n_classes: int, in_channels: int = 1
) -> HeadClassifier:
    """Return a classifier with new weights."""
    if isinstance(config, ResNet18Config):
        return ResNet18(config, n_pixels=n_pixels, n_classes=n_classes, in_channels=in_channels)
    return ResNetSimple(config, n_pixels=n_pixels, n_classes=n_classes, in_channels=in_channels)
