"""ResNet-18 for images of one channel (He et al. 2016, table 1), and the study's variant."""

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from darklens.config import Frozen
from darklens.errors import ConfigError
from darklens.models.base import HeadClassifier
from darklens.models.resnet_simple import ResidualBlock, conv_block, normalised_conv, shortcut

_WIDTHS = (64, 128, 256, 512)
MIN_PIXELS = 33  # with fewer, the feature maps of the last stage are a single pixel


class ResNet18Config(Frozen):
    """ResNet-18 with basic blocks; `legacy` is the study's variant."""

    kind: Literal["resnet_18"] = "resnet_18"
    dropout: float = Field(default=0.0, ge=0, lt=1, description="before the last layer")
    legacy: bool = Field(default=False, description="the study's variant: bottleneck blocks of expansion 4")


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut, four times as wide at the end (He et al. 2016, fig. 5)."""

    expansion = 4

    def __init__(self, inputs: int, width: int, *, stride: int = 1) -> None:
        super().__init__()
        outputs = self.expansion * width
        self.first = conv_block(inputs, width, kernel=1)
        self.second = conv_block(width, width, padding=1, stride=stride)
        self.third = normalised_conv(width, outputs, kernel=1)
        self.shortcut = shortcut(inputs, outputs, stride)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d p q"]:
        """Return relu(shortcut(x) + block(x))."""
        return nn.functional.relu_(self.shortcut(x) + self.third(self.second(self.first(x))))


class ResNet18(HeadClassifier):
    """A 7x7 stem, four stages of two blocks, global average pooling and a linear layer. It takes any image size.

    Raises:
        ConfigError: If the images are too small for five downsamplings.
    """

    def __init__(self, config: ResNet18Config, *, n_pixels: int, n_classes: int, in_channels: int = 1) -> None:
        super().__init__()
        if n_pixels < MIN_PIXELS:
            raise ConfigError(
                f"Images of {n_pixels} pixels are too small for this network; at least {MIN_PIXELS} are needed."
            )
        pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.stem = conv_block(in_channels, _WIDTHS[0], kernel=7, padding=3, stride=2, pool=pool)
        blocks: list[nn.Module] = []
        inputs = _WIDTHS[0]
        for i, width in enumerate(_WIDTHS):
            for stride in (1 if i == 0 else 2, 1):
                blocks.append((Bottleneck if config.legacy else ResidualBlock)(inputs, width, stride=stride))
                inputs = width * (Bottleneck.expansion if config.legacy else 1)
        self.stages = nn.Sequential(*blocks)
        self.head = nn.Sequential(nn.Dropout(config.dropout), nn.Linear(inputs, n_classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def encode(self, inputs: Float[Tensor, "b c n n"]) -> Float[Tensor, "b f"]:
        """Return the mean of each channel of images."""
        return torch.mean(self.stages(self.stem(inputs)), dim=(2, 3))
