"""The study's light residual classifier: ten convolutions, two of them pairs in residual blocks."""

from typing import Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from darklens.config import Frozen
from darklens.errors import ConfigError


class ResNetSimpleConfig(Frozen):
    """The study's light residual classifier."""

    kind: Literal["resnet_simple"] = "resnet_simple"
    dropout: float = Field(default=0.3, ge=0, lt=1)


def normalised_conv(inputs: int, outputs: int, *, kernel: int = 3, padding: int = 0, stride: int = 1) -> nn.Sequential:
    """Convolution, batch normalisation. The normalisation's shift makes a bias of the convolution idle."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding, bias=False), nn.BatchNorm2d(outputs)
    )


def conv_block(inputs: int, outputs: int, *, kernel: int = 3, padding: int = 0, stride: int = 1) -> nn.Sequential:
    """Convolution, batch normalisation, ReLU."""
    block = normalised_conv(inputs, outputs, kernel=kernel, padding=padding, stride=stride)
    return block.append(nn.ReLU(inplace=True))


def pooled(kernel: int = 2, *, stride: int = 2, padding: int = 0) -> nn.Sequential:
    """Maximum, then ReLU: the numbers and gradients of ReLU then maximum, from a quarter of the memory's traffic."""
    return nn.Sequential(nn.MaxPool2d(kernel, stride=stride, padding=padding), nn.ReLU(inplace=True))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al. 2016, fig. 2)."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1) -> None:
        super().__init__()
        self.first = conv_block(inputs, outputs, padding=1, stride=stride)
        self.second = normalised_conv(outputs, outputs, padding=1)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs or stride > 1:
            self.shortcut = normalised_conv(inputs, outputs, kernel=1, stride=stride)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d p q"]:
        """Return activation(shortcut(x) + block(x))."""
        activated: Tensor = self.activation(self.shortcut(x) + self.second(self.first(x)))
        return activated


class Trunk(nn.Module):
    """The convolutions shared by the classifier and the autoencoder: (b, c, n, n) to (b, 128, m, m).

    At 150 pixels m = 14, as in the study.
    """

    channels = 128

    def __init__(self, in_channels: int = 1) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            normalised_conv(in_channels, 16, kernel=5, padding=2),
            pooled(),
            normalised_conv(16, 32),
            pooled(),
            conv_block(32, 32),
            normalised_conv(32, 32),
            pooled(),
            ResidualBlock(32, 64),
            ResidualBlock(64, 64),
            conv_block(64, self.channels),
        )

    @classmethod
    def features(cls, n_pixels: int) -> int:
        """Return the length of the flattened output for images of n_pixels.

        Raises:
            ConfigError: If the images are too small for three poolings.
        """
        m = ((n_pixels // 2 - 2) // 2 - 4) // 2 - 2
        if m < 1:
            raise ConfigError(f"Images of {n_pixels} pixels are too small for this network; at least 44 are needed.")
        return cls.channels * m * m

    def forward(self, x: Float[Tensor, "b c n n"]) -> Float[Tensor, "b 128 m m"]:
        """Return the feature maps."""
        features: Tensor = self.layers(x)
        return features


class ResNetSimple(nn.Module):
    """Trunk, then fully connected layers of 256 and 32 to one logit per class."""

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

    def forward(self, images: Float[Tensor, "b c n n"]) -> Float[Tensor, "b classes"]:
        """Return logits; softmax belongs to the loss and to prediction, once each."""
        logits: Tensor = self.head(self.trunk(images))
        return logits
