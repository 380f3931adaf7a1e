"""A small convolutional encoder from maps to features."""

from collections import OrderedDict

import torch
from jaxtyping import Float
from torch import Tensor, nn

from darklens.models.resnet_simple import conv_block


class ConvEncoder(nn.Module):
    """Convolutions to 1/8 of the size, then the mean and the maximum of each channel.

    Args:
        inputs: Channels of the maps.
        w: Channels of the first convolution; the last has 3 w.
    """

    def __init__(self, inputs: int, w: int) -> None:
        super().__init__()
        layers = {  # names as in stored weights
            "0": conv_block(inputs, w, kernel=5, padding=2, stride=2),
            "1": conv_block(w, w + w // 2, padding=1, pool=nn.MaxPool2d(2)),
            "3": conv_block(w + w // 2, 2 * w, padding=1),
            "4": conv_block(2 * w, 2 * w, padding=1, pool=nn.MaxPool2d(2)),
            "6": conv_block(2 * w, 3 * w, padding=1),
        }
        self.layers = nn.Sequential(OrderedDict(layers))

    @classmethod
    def features(cls, w: int) -> int:
        """Return the number of features for w channels."""
        return 6 * w

    def forward(self, maps: Float[Tensor, "b c m m"]) -> Float[Tensor, "b f"]:
        """Return the mean and the maximum of each channel of the last convolution."""
        features = self.layers(maps)
        return torch.cat([features.mean((2, 3)), features.amax((2, 3))], 1)
