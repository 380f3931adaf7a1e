"""The coordinate convention: pixels to positions on the sky.

Arrays are `(batch, channel, y, x)`. Pixel (0, 0) is the lower left one, y grows with the row and x with the
column. The optical axis is at the centre of the array, pixel coordinate ((n - 1) / 2, (n - 1) / 2).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A square field of square pixels.

    Args:
        n_pixels: Pixels along a side.
        pixel_scale: Side of a pixel in arcsec.

    Raises:
        ValueError: If either is not positive.
    """

    n_pixels: int
    pixel_scale: float

    def __post_init__(self) -> None:
        if self.n_pixels < 1:
            raise ValueError(f"n_pixels must be at least 1, got {self.n_pixels}")
        if not self.pixel_scale > 0:
            raise ValueError(f"pixel_scale must be positive (arcsec), got {self.pixel_scale}")

    def axes(
        self, *, supersample: int = 1, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> tuple[Float[Tensor, "1 n"], Float[Tensor, "n 1"]]:
        """Return x (1, n) and y (n, 1) in arcsec of the centres of all pixels, or sub-pixels; they broadcast."""
        n = self.n_pixels * supersample
        # In float64, so that float32 coordinates are correctly rounded.
        index = torch.arange(n, dtype=torch.float64, device=device)
        axis = ((index - (n - 1) / 2) * (self.pixel_scale / supersample)).to(dtype)
        return axis[None, :], axis[:, None]

    def coordinates(
        self, *, supersample: int = 1, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> tuple[Float[Tensor, "n n"], Float[Tensor, "n n"]]:
        """Return x and y (arcsec) of the centres of all pixels, or of all sub-pixels, as (n, n) arrays."""
        x, y = self.axes(supersample=supersample, dtype=dtype, device=device)
        return x.repeat(y.shape[0], 1), y.repeat(1, x.shape[1])

    def to_pixels(self, angle: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the fractional pixel index along an axis of an angle in arcsec along that axis."""
        return angle / self.pixel_scale + (self.n_pixels - 1) / 2
