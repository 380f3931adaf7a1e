"""Preprocessing of network inputs and augmentation of training images, for whole batches on the device.

`Preprocess` is part of the contract of a bundle, so training, evaluation and prediction use the same one.
"""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from darklens.config import Frozen
from darklens.errors import ConfigError

Images = Float[Tensor, "b c n n"]
NetworkInput = Float[Tensor, "b c m m"]


class BatchRandom(NamedTuple):
    """Random numbers for a batch of images, or for a slice of it: an image has the same numbers in both.

    Attributes:
        generator: Generator of the whole batch.
        first: Index in the whole batch of the first image of the slice.
        total: Number of images in the whole batch; None if there is no slice.
    """

    generator: torch.Generator
    first: int = 0
    total: int | None = None

    def uniform(self, n: int) -> Float[Tensor, " n"]:
        """Return a uniform number in [0, 1) for each of n images."""
        return torch.rand(self.total or n, generator=self.generator)[self.first : self.first + n]

    def integers(self, n: int, high: int) -> Int[Tensor, " n"]:
        """Return a uniform integer from 0 to high - 1 for each of n images."""
        return torch.randint(0, high, (self.total or n,), generator=self.generator)[self.first : self.first + n]


class Preprocess(Frozen):
    """Scale each image to [0, 1], crop its centre, and average blocks of pixels."""

    scale: Literal["minmax"] = "minmax"
    crop: int | None = Field(default=None, ge=8, description="side of the central crop, pixels; null: no crop")
    bin: int = Field(default=1, ge=1, le=8, description="side of the blocks of pixels that are averaged, pixels")

    def output_size(self, n_pixels: int) -> int:
        """Return the side, in pixels, of the network input for images of `n_pixels`.

        Raises:
            ConfigError: If the crop is larger than the image, off its centre, or not a multiple of the bin.
        """
        side = self.crop or n_pixels
        if side > n_pixels:
            raise ConfigError(f"data.preprocess.crop: {side} pixels cannot be cropped from images of {n_pixels}.")
        if (n_pixels - side) % 2:
            raise ConfigError(f"data.preprocess.crop: {side} of {n_pixels} pixels is off centre by half a pixel.")
        if side % self.bin:
            raise ConfigError(f"data.preprocess.bin: {side} pixels cannot be divided into blocks of {self.bin}.")
        return side // self.bin

    def normalise(self, images: Images) -> Images:
        """Scale each image so that its minimum is 0 and its maximum 1."""
        low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
        return (images - low) / (high - low).clamp_min(torch.finfo(images.dtype).tiny)

    def __call__(self, images: Images) -> NetworkInput:
        """Return the network inputs for images (b, c, n, n) in any linear unit."""
        return self.cut(self.normalise(images))

    def cut(self, images: Images) -> NetworkInput:
        """Crop images that are already scaled, and average blocks of pixels."""
        return self._bin(self._crop(images))

    def augmented(self, images: Images, augment: "Augment", random: BatchRandom) -> NetworkInput:
        """Return the network inputs for augmented copies of the images."""
        images = self.normalise(images)
        if augment.kind == "affine":
            augmented = augment.apply(images, self.crop or images.shape[-1], random)
        else:
            augmented = self._crop(augment.apply(images, random)) if augment.kind == "dihedral" else self._crop(images)
        return self._bin(augmented)

    def _crop(self, images: Tensor) -> Tensor:
        if self.crop is None:
            return images
        start = (images.shape[-1] - self.crop) // 2
        return images[..., start : start + self.crop, start : start + self.crop]

    def _bin(self, images: Tensor) -> Tensor:
        return F.avg_pool2d(images, self.bin) if self.bin > 1 else images


class NoAugment(Frozen):
    """No augmentation."""

    kind: Literal["none"] = "none"


class Dihedral(Frozen):
    """A random element of the dihedral group: quarter turns and reflections, without interpolation."""

    kind: Literal["dihedral"] = "dihedral"

    def apply(self, images: Images, random: BatchRandom) -> Images:
        """Return each image after a random element of the group."""
        choice = random.integers(images.shape[0], 8).to(images.device)
        out = torch.empty_like(images)
        for element in range(8):
            rows = torch.nonzero(choice == element)[:, 0]
            turned = torch.rot90(images[rows], element % 4, (-2, -1))
            out[rows] = turned.flip(-1) if element >= 4 else turned
        return out


class Affine(Frozen):
    """A random rotation and rescaling about the centre: the augmentation of the 2024 study."""

    kind: Literal["affine"] = "affine"
    rotation: float = Field(default=180.0, ge=0, le=180, description="largest rotation in either direction, degrees")
    scale_low: float = Field(default=0.8, gt=0)
    scale_high: float = Field(default=1.2, gt=0)
    interpolation: Literal["nearest", "bilinear"] = Field(
        default="nearest", description="nearest preserves the noise of each pixel; bilinear smooths it"
    )

    @model_validator(mode="after")
    def _ordered(self) -> "Affine":
        if self.scale_low > self.scale_high:
            raise ValueError(f"scale_low ({self.scale_low}) must not exceed scale_high ({self.scale_high})")
        return self

    def apply(self, images: Images, size: int, random: BatchRandom) -> NetworkInput:
        """Return the central `size` x `size` pixels of the transformed images.

        They are sampled from the whole image, so the corners of a crop contain real pixels. Positions outside the image
        are filled by reflection.
        """
        batch = images.shape[0]
        turn = (random.uniform(batch) * 2 - 1) * math.radians(self.rotation)
        scale = self.scale_low + (self.scale_high - self.scale_low) * random.uniform(batch)
        # In the units of grid_sample the image spans [-1, 1], so the crop spans a fraction of it.
        shrink = size / images.shape[-1] / scale
        cos, sin = ((function(turn) * shrink).to(images)[:, None, None] for function in (torch.cos, torch.sin))
        x = (torch.arange(size, device=images.device, dtype=images.dtype) + 0.5) * (2 / size) - 1
        y = x[:, None]
        # affine_grid gives the same with a matrix product per pixel, which is slower.
        grid = torch.stack([cos * x - sin * y, sin * x + cos * y], -1)
        return F.grid_sample(images, grid, mode=self.interpolation, padding_mode="reflection", align_corners=False)


Augment = NoAugment | Dihedral | Affine
