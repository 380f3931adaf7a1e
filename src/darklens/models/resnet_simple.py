"""The study's light residual classifier: ten convolutions, two of them pairs in residual blocks."""

from collections import OrderedDict
from typing import Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from darklens.config import Frozen
from darklens.errors import ConfigError
from darklens.kernels.calls import Windows
from darklens.kernels.layers import first_layer, normalised, pooled
from darklens.kernels.linear import WideLinear
from darklens.kernels.products import convolved


class ResNetSimpleConfig(Frozen):
    """The study's light residual classifier."""

    kind: Literal["resnet_simple"] = "resnet_simple"
    dropout: float = Field(default=0.3, ge=0, lt=1)


class NormalisedConv(nn.Sequential):
    """Convolution, batch normalisation, and what is asked for of a sum, a maximum over windows and a ReLU.

    The normalisation's shift makes a bias of the convolution idle. ReLU comes after the maximum: the numbers and
    gradients of ReLU then maximum, from a quarter of the memory's traffic.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        kernel: int = 3,
        padding: int = 0,
        stride: int = 1,
        windows: Windows | None = None,
        activate: bool = True,
    ) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding, bias=False), nn.BatchNorm2d(outputs)
        )
        self._windows, self._activate = windows, activate

    def forward(self, x: Float[Tensor, "b c h w"], other: Tensor | None = None) -> Float[Tensor, "b d p q"]:
        """Return the maps; `other` is added before a ReLU, not before a maximum."""
        conv, norm = self
        windows = self._windows
        assert isinstance(conv, nn.Conv2d)
        if windows is not None and (fused := first_layer(conv, norm, x, windows)) is not None:
            return fused
        if (maps := convolved(conv, x)) is None:
            maps = conv(x)
        if windows is None:
            return self._without_maximum(maps, norm, other)
        if (fused := pooled(norm, maps, windows)) is not None:
            return fused
        return nn.functional.relu_(nn.functional.max_pool2d(norm(maps), *windows))

    def _without_maximum(self, maps: Tensor, norm: nn.Module, other: Tensor | None) -> Tensor:
        if (fused := normalised(norm, maps, other, activate=self._activate)) is not None:
            return fused
        maps = norm(maps) if other is None else other + norm(maps)
        return nn.functional.relu_(maps) if self._activate else maps


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al. 2016, fig. 2)."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1) -> None:
        super().__init__()
        self.first = NormalisedConv(inputs, outputs, padding=1, stride=stride)
        self.second = NormalisedConv(outputs, outputs, padding=1)
        self.shortcut = shortcut(inputs, outputs, stride)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d p q"]:
        """Return relu(shortcut(x) + block(x))."""
        activated: Tensor = self.second(self.first(x), self.shortcut(x))
        return activated


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    """Return the identity, or a projection where a block changes its input's shape."""
    if inputs == outputs and stride == 1:
        return nn.Identity()
    return NormalisedConv(inputs, outputs, kernel=1, stride=stride, activate=False)


class Trunk(nn.Module):
    """The convolutions shared by the classifier and the autoencoder: (b, c, n, n) to (b, 128, m, m).

    At 150 pixels m = 14, as in the study.
    """

    channels = 128

    def __init__(self, in_channels: int = 1) -> None:
        super().__init__()
        layers = {
            "0": NormalisedConv(in_channels, 16, kernel=5, padding=2, windows=Windows()),
            "2": NormalisedConv(16, 32, windows=Windows()),
            "4": NormalisedConv(32, 32),
            "5": NormalisedConv(32, 32, windows=Windows()),
            "7": ResidualBlock(32, 64),
            "8": ResidualBlock(64, 64),
            "9": NormalisedConv(64, self.channels),
        }
        self.layers = nn.Sequential(OrderedDict(layers))  # named as in bundles, where the maxima had numbers

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
            WideLinear(Trunk.features(n_pixels), 256),
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
