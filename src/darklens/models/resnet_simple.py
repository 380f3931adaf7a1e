"""The study's light residual classifier: ten convolutions, of which four form two residual blocks."""

from collections import OrderedDict
from typing import Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from darklens.config import Frozen
from darklens.errors import ConfigError
from darklens.models.base import HeadClassifier


class ResNetSimpleConfig(Frozen):
    """The study's light residual classifier."""

    kind: Literal["resnet_simple"] = "resnet_simple"
    dropout: float = Field(default=0.3, ge=0, lt=1)


def conv_block(
    inputs: int, outputs: int, *, kernel: int = 3, padding: int = 0, stride: int = 1, pool: nn.MaxPool2d | None = None
) -> nn.Sequential:
    """Return a convolution, batch normalisation, max-pooling if given, and ReLU.

    The convolution needs no bias, since the normalisation has a shift. ReLU after the pooling gives the same values and
    gradients as before it, at a quarter of the memory traffic.
    """
    layers = [*normalised_conv(inputs, outputs, kernel=kernel, padding=padding, stride=stride)]
    return nn.Sequential(*layers, *([] if pool is None else [pool]), nn.ReLU(inplace=True))


def normalised_conv(inputs: int, outputs: int, *, kernel: int, padding: int = 0, stride: int = 1) -> nn.Sequential:
    """Return a convolution without bias and batch normalisation."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016, fig. 2)."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1) -> None:
        super().__init__()
        self.first = conv_block(inputs, outputs, padding=1, stride=stride)
        self.second = normalised_conv(outputs, outputs, kernel=3, padding=1)
        self.shortcut = shortcut(inputs, outputs, stride)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d p q"]:
        """Return relu(shortcut(x) + block(x))."""
        return nn.functional.relu_(self.shortcut(x) + self.second(self.first(x)))


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    """Return the identity, or a projection where a block changes its input's shape."""
    if inputs == outputs and stride == 1:
        return nn.Identity()
    return normalised_conv(inputs, outputs, kernel=1, stride=stride)


class Trunk(nn.Module):
    """The convolutional layers of the classifier and the autoencoder: (b, c, n, n) to (b, 128, m, m).

    At 150 pixels m = 14, as in the study.
    """

    channels = 128

    def __init__(self, in_channels: int = 1) -> None:
        super().__init__()
        layers = {  # names as in stored weights
            "0": conv_block(in_channels, 16, kernel=5, padding=2, pool=nn.MaxPool2d(2)),
            "2": conv_block(16, 32, pool=nn.MaxPool2d(2)),
            "4": conv_block(32, 32),
            "5": conv_block(32, 32, pool=nn.MaxPool2d(2)),
            "7": ResidualBlock(32, 64),
            "8": ResidualBlock(64, 64),
            "9": conv_block(64, self.channels),
        }
        self.layers = nn.Sequential(OrderedDict(layers))

    @classmethod
    def features(cls, n_pixels: int) -> int:
        """Return the length of the flattened output for images of n_pixels along a side.

        Raises:
            ConfigError: If the images are too small for three pooling layers.
        """
        m = ((n_pixels // 2 - 2) // 2 - 4) // 2 - 2
        if m < 1:
            raise ConfigError(f"Images of {n_pixels} pixels are too small for this network; at least 44 are needed.")
        return cls.channels * m * m

    def forward(self, x: Float[Tensor, "b c n n"]) -> Float[Tensor, "b 128 m m"]:
        """Return the feature maps."""
        features: Tensor = self.layers(x)
        return features


class ResNetSimple(HeadClassifier):
    """The trunk, then fully connected layers of 256 and 32 units and one logit per class."""

    def __init__(self, config: ResNetSimpleConfig, *, n_pixels: int, n_classes: int, in_channels: int = 1) -> None:
        super().__init__()
        self.trunk = Trunk(in_channels)
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(Trunk.features(n_pixels), 256),
            nn.ReLU(inplace=True),
            nn.Dropout(config.dropout),
            nn.Linear(256, 32),
            nn.ReLU(inplace=True),
            nn.Dropout(config.dropout),
            nn.Linear(32, n_classes),
        )

    def encode(self, inputs: Float[Tensor, "b c n n"]) -> Float[Tensor, "b 128 m m"]:
        """Return the feature maps of images."""
        features: Tensor = self.trunk(inputs)
        return features
