"""Delensing as a layer: from an image and a map k(x, y) to the source-plane image."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from darklens.kernels import splat_sum
from darklens.physics import splat
from darklens.physics.grid import Grid
from darklens.physics.raytrace import k_map_deflection

Map = Float[Tensor, "b n n"]
Centre = tuple[Float[Tensor, " b"], Float[Tensor, " b"]]
Reduction = Literal["sum", "normalised", "overwrite", "gather"]


class KRange(nn.Module):
    """Maps real numbers to k in arcsec, between two learned bounds.

    Args:
        low: Initial lower bound, arcsec, positive.
        high: Initial upper bound, arcsec.
        learn: Whether training changes the bounds. Both stay positive.
    """

    def __init__(self, low: float, high: float, *, learn: bool = True) -> None:
        super().__init__()
        self.raw_low = nn.Parameter(_inverse_softplus(low), requires_grad=learn)
        self.raw_width = nn.Parameter(_inverse_softplus(high - low), requires_grad=learn)

    def bounds(self) -> tuple[Tensor, Tensor]:
        """Return the bounds in arcsec."""
        low = nn.functional.softplus(self.raw_low)
        return low, low + nn.functional.softplus(self.raw_width)

    def forward(self, raw: Map) -> Map:
        """Return k = low + (high - low) sigmoid(raw)."""
        low, high = self.bounds()
        return low + (high - low) * torch.sigmoid(raw)


class LensLayer(nn.Module):
    """Moves the light of each pixel to beta = theta - alpha, with alpha from the study's ansatz psi = k |theta|.

    Args:
        grid: Grid of the images and of the source-plane image.
        reduction: How the light of pixels that land on the same source pixel is combined: "sum", "normalised" (mean) or
            "overwrite" (the last one remains). "gather" samples the image at beta instead, which is wrong, for
            comparison.
        grad_k: "ignore" or "exact", see `physics.raytrace.k_map_deflection`.
        legacy_rounding: Round positions to whole pixels, as the study does. Then no gradient reaches k.
        legacy_drop_origin: Set the pixel on the optical axis to zero, as the study does.
    """

    x: Tensor
    y: Tensor

    def __init__(
        self,
        grid: Grid,
        *,
        reduction: Reduction,
        grad_k: Literal["ignore", "exact"] = "ignore",
        legacy_rounding: bool = False,
        legacy_drop_origin: bool = False,
    ) -> None:
        super().__init__()
        self.grid = grid
        self._reduction = reduction
        self._grad_k = grad_k
        self._legacy_rounding = legacy_rounding
        self._legacy_drop_origin = legacy_drop_origin
        x, y = grid.coordinates()
        self.register_buffer("x", x, persistent=False)
        self.register_buffer("y", y, persistent=False)

    def deflection(self, k: Map, centre: Centre | None = None) -> tuple[Map, Map]:
        """Return alpha_x and alpha_y in arcsec for k in arcsec and lenses at `centre` (x, y), by default the origin."""
        x, y = self.x, self.y
        if centre is not None:
            x, y = x - centre[0][:, None, None], y - centre[1][:, None, None]
        return k_map_deflection(x, y, k, grad_k=self._grad_k)

    def forward(self, images: Float[Tensor, "b c n n"], k: Map, centre: Centre | None = None) -> Tensor:
        """Return the source-plane image (b, c, n, n); arguments as for `deflection`."""
        alpha_x, alpha_y = self.deflection(k, centre)
        beta_x, beta_y = self.x - alpha_x, self.y - alpha_y
        if self._legacy_rounding:
            beta_x, beta_y = self._rounded(beta_x), self._rounded(beta_y)
        if self._legacy_drop_origin:
            images = images * ((self.x != 0) | (self.y != 0))
        if self._reduction == "overwrite":
            return splat.overwrite(images, beta_x, beta_y, self.grid)
        if self._reduction == "gather":
            return splat.gather(images, beta_x, beta_y, self.grid)
        if self._reduction == "normalised":
            return splat.normalised(images, beta_x, beta_y, self.grid)
        if self.training:
            source = splat_sum.summed(images, self.grid.to_pixels(beta_x), self.grid.to_pixels(beta_y))
            if source is not None:
                return source
        return splat.summed(images, beta_x, beta_y, self.grid)

    def _rounded(self, beta: Tensor) -> Tensor:
        half = (self.grid.n_pixels - 1) / 2
        return (self.grid.to_pixels(beta.detach()).round() - half) * self.grid.pixel_scale


def _inverse_softplus(value: float) -> Tensor:
    return torch.log(torch.expm1(torch.tensor(value, dtype=torch.float64))).float()
