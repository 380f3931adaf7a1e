"""The autoencoder with the trunk of `resnet_simple` as encoder and transposed convolutions as decoder."""

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from darklens.config import Frozen
from darklens.models.resnet_simple import Trunk


class AutoencoderConfig(Frozen):
    """The study's autoencoder, trained to reconstruct images."""

    kind: Literal["autoencoder_resnet_simple"] = "autoencoder_resnet_simple"
    latent: int = Field(default=512, ge=1, le=65_536, description="dimension of the latent space")


class Autoencoder(nn.Module):
    """Image to latent vector to a map of the same size, which is not bounded."""

    def __init__(self, config: AutoencoderConfig, *, n_pixels: int) -> None:
        super().__init__()
        self.n_pixels = n_pixels
        # Two transposed convolutions of stride 3, with kernels of 5 and 3, turn m pixels into 9 m + 6: 16 into 150.
        self._n_coarse = max(1, -(-(n_pixels - 6) // 9))
        self.encoder = nn.Sequential(Trunk(), nn.Flatten(), nn.Linear(Trunk.features(n_pixels), config.latent))
        self.expand = nn.Sequential(nn.ReLU(), nn.Linear(config.latent, 8 * self._n_coarse**2), nn.ReLU(inplace=True))
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(8, 16, 5, stride=3, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(16, 1, 3, stride=3),
        )

    def forward(self, images: Float[Tensor, "b 1 n n"]) -> Float[Tensor, "b 1 n n"]:
        """Return the map: after training on reconstruction, an approximation of the image."""
        coarse = self.expand(self.encoder(images)).unflatten(1, (8, self._n_coarse, self._n_coarse))
        decoded: Tensor = self.decoder(coarse)
        margin = (decoded.shape[-1] - self.n_pixels) // 2
        return decoded[..., margin : margin + self.n_pixels, margin : margin + self.n_pixels]


def reconstruction_error(output: Float[Tensor, "b 1 n n"], images: Float[Tensor, "b 1 n n"]) -> Float[Tensor, " b"]:
    """Return the mean squared error of each image."""
    return torch.mean((output.float() - images.float()) ** 2, dim=(1, 2, 3))
