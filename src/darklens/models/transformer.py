"""A vision transformer from images to maps: patches, self-attention, and transposed convolutions to pixels."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from darklens.config import Frozen

_SMOOTHING_CHANNELS = 8


class TransformerConfig(Frozen):
    """Settings of `Transformer`."""

    kind: Literal["transformer"] = "transformer"
    patch: int = Field(default=10, ge=2, le=4096, description="pixels along a side of a patch")
    width: int = Field(default=96, ge=4, le=4096, description="dimension of a token; a multiple of 4 and of heads")
    depth: int = Field(default=4, ge=1, le=100, description="layers")
    heads: int = Field(default=4, ge=1, le=100)

    @model_validator(mode="after")
    def _divisible(self) -> "TransformerConfig":
        if self.width % 4 or self.width % self.heads:
            raise ValueError(f"width ({self.width}) must be a multiple of 4 and of heads ({self.heads})")
        return self


class AttentionLayer(nn.Module):
    """Self-attention, then two linear layers, each after a layer norm and with a shortcut (Xiong et al. 2020)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self._heads = heads
        self.before_attention, self.before_mix = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_query_key_value, self.from_heads = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mix = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens: Float[Tensor, "b t w"]) -> Float[Tensor, "b t w"]:
        """Return the updated tokens."""
        joined = self.to_query_key_value(self.before_attention(tokens))
        query, key, value = joined.unflatten(2, (3, self._heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        tokens = tokens + self.from_heads(attended)
        mixed: Tensor = tokens + self.mix(self.before_mix(tokens))
        return mixed


class Transformer(nn.Module):
    """Image to a map of the same size, which is not bounded (after Dosovitskiy et al. 2021, arXiv:2010.11929).

    A token encodes a patch and its position relative to the image centre, since the lens equation depends on both
    radius and direction. Images are padded to a multiple of the patch by repeating their edge.
    """

    positions: Tensor

    def __init__(self, config: TransformerConfig, *, n_pixels: int) -> None:
        super().__init__()
        self._side = -(-n_pixels // config.patch)
        self._n_pixels, self._margin = n_pixels, self._side * config.patch - n_pixels
        self.embed = nn.Conv2d(1, config.width, config.patch, stride=config.patch)
        self.register_buffer("positions", sinusoids(self._side, config.width), persistent=False)
        self.layers = nn.Sequential(*(AttentionLayer(config.width, config.heads) for _ in range(config.depth)))
        self.normalise = nn.LayerNorm(config.width)
        self.to_pixels = nn.ConvTranspose2d(config.width, _SMOOTHING_CHANNELS, config.patch, stride=config.patch)
        # Two convolutions remove the discontinuities between patches.
        self.smooth = nn.Sequential(
            nn.GELU(),
            nn.Conv2d(_SMOOTHING_CHANNELS, _SMOOTHING_CHANNELS, 5, padding=2),
            nn.GELU(),
            nn.Conv2d(_SMOOTHING_CHANNELS, 1, 5, padding=2),
        )

    def forward(self, images: Float[Tensor, "b 1 n n"]) -> Float[Tensor, "b 1 n n"]:
        """Return the map."""
        before = self._margin // 2
        after = self._margin - before
        padded = F.pad(images, (before, after, before, after), mode="replicate")
        tokens = self.embed(padded).flatten(2).transpose(1, 2) + self.positions
        tokens = self.normalise(self.layers(tokens))
        pixels = self.to_pixels(tokens.transpose(1, 2).unflatten(2, (self._side, self._side)))
        smooth: Tensor = self.smooth(pixels)
        return smooth[..., before : before + self._n_pixels, before : before + self._n_pixels]


def sinusoids(side: int, width: int) -> Float[Tensor, "t w"]:
    """Return sines and cosines of the position of each patch relative to the centre, in octaves.

    Args:
        side: Patches along a side.
        width: Values per patch, a multiple of 4.
    """
    position = torch.linspace(-1, 1, side) if side > 1 else torch.zeros(1)
    frequency = math.pi / 2 * 2 ** torch.linspace(0, max(1.0, math.log2(side)), width // 4)
    phase = position[:, None] * frequency
    one = torch.cat([phase.sin(), phase.cos()], 1)
    along_y, along_x = one[:, None].expand(-1, side, -1), one[None].expand(side, -1, -1)
    return torch.cat([along_y, along_x], 2).flatten(0, 1)
