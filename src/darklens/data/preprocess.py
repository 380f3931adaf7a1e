"""What happens to an image before a model sees it, and the study's augmentation; whole batches, on the device.

The same `Preprocess` is part of a bundle's contract, so training, evaluation and prediction cannot disagree.
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
Prepared = Float[Tensor, "b c m m"]


class Draws(NamedTuple):
    """Random numbers of a batch of images, or of a part of one: those that the part's images have in the whole.

    Attributes:
        generator: Where they come from.
        first: Place of the part's first image in the whole batch.
        total: Images in the whole batch; None if this is the whole.
    """

    generator: torch.Generator
    first: int = 0
    total: int | None = None

    def uniform(self, n: int) -> Float[Tensor, " n"]:
        """Return a number in [0, 1) for each of n images."""
        return torch.rand(self.total or n, generator=self.generator)[self.first : self.first + n]

    def integers(self, n: int, high: int) -> Int[Tensor, " n"]:
        """Return an integer from 0 to high - 1 for each of n images."""
        return torch.randint(0, high, (self.total or n,), generator=self.generator)[self.first : self.first + n]


class Preprocess(Frozen):
    """Scale each image by its own minimum and maximum, crop its centre, average blocks of pixels."""

    scale: Literal["minmax"] = "minmax"
    crop: int | None = Field(default=None, ge=8, description="pixels along a side to keep; none: all")
    bin: int = Field(default=1, ge=1, le=8, description="side of the blocks of pixels to average")

    def output_size(self, n_pixels: int) -> int:
        """Return the pixels along a side that a model receives for images of `n_pixels`.

        Raises:
            ConfigError: If the crop is larger than the image, off its centre, or not a multiple of the bin.
        """
        kept = self.crop or n_pixels
        if kept > n_pixels:
            raise ConfigError(f"data.preprocess.crop: {kept} pixels cannot be cropped from images of {n_pixels}.")
        if (n_pixels - kept) % 2:
            raise ConfigError(f"data.preprocess.crop: {kept} of {n_pixels} pixels is off centre by half a pixel.")
        if kept % self.bin:
            raise ConfigError(f"data.preprocess.bin: {kept} pixels cannot be divided in blocks of {self.bin}.")
        return kept // self.bin

    def normalise(self, images: Images) -> Images:
        """Map each image's minimum to 0 and maximum to 1, whatever the rest of the batch holds."""
        low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
        return (images - low) / (high - low).clamp_min(torch.finfo(images.dtype).tiny)

    def __call__(self, images: Images) -> Prepared:
        """Return what the model receives for these images."""
        return self.cut(self.normalise(images))

    def cut(self, images: Images) -> Prepared:
        """Crop and average images that are scaled already."""
        return self._bin(self._crop(images))

    def augmented(self, images: Images, augment: "Augment", draws: Draws) -> Prepared:
        """Return what the model receives for randomly moved copies of these images."""
        images = self.normalise(images)
        if augment.kind == "affine":
            moved = augment.apply(images, self.crop or images.shape[-1], draws)
        else:
            moved = self._crop(augment.apply(images, draws)) if augment.kind == "dihedral" else self._crop(images)
        return self._bin(moved)

    def _crop(self, images: Tensor) -> Tensor:
        if self.crop is None:
            return images
        start = (images.shape[-1] - self.crop) // 2
        return images[..., start : start + self.crop, start : start + self.crop]

    def _bin(self, images: Tensor) -> Tensor:
        return F.avg_pool2d(images, self.bin) if self.bin > 1 else images


class NoAugment(Frozen):
    """Images as they are."""

    kind: Literal["none"] = "none"


class Dihedral(Frozen):
    """One of the eight rotations by quarter turns and reflections: exact, no pixel is interpolated."""

    kind: Literal["dihedral"] = "dihedral"

    def apply(self, images: Images, draws: Draws) -> Images:
        """Return each image moved by its own random element of the group."""
        choice = draws.integers(images.shape[0], 8).to(images.device)
        out = torch.empty_like(images)
        for element in range(8):
            rows = torch.nonzero(choice == element)[:, 0]
            turned = torch.rot90(images[rows], element % 4, (-2, -1))
            out[rows] = turned.flip(-1) if element >= 4 else turned
        return out


class Affine(Frozen):
    """The study's augmentation: a random rotation and a random change of scale about the centre."""

    kind: Literal["affine"] = "affine"
    rotation: float = Field(default=180.0, ge=0, le=180, description="degrees, either way")
    scale_low: float = Field(default=0.8, gt=0)
    scale_high: float = Field(default=1.2, gt=0)
    interpolation: Literal["nearest", "bilinear"] = Field(
        default="nearest", description="nearest keeps the noise of a pixel; bilinear smooths it"
    )

    @model_validator(mode="after")
    def _ordered(self) -> "Affine":
        if self.scale_low > self.scale_high:
            raise ValueError(f"scale_low ({self.scale_low}) must not exceed scale_high ({self.scale_high})")
        return self

    def apply(self, images: Images, size: int, draws: Draws) -> Prepared:
        """Return the central `size` x `size` pixels of the moved images.

        Only the pixels kept are sampled, from the whole image, so a crop has real pixels in its corners.
        Where a moved image does not reach, it is continued by reflection.
        """
        batch = images.shape[0]
        turn = (draws.uniform(batch) * 2 - 1) * math.radians(self.rotation)
        scale = self.scale_low + (self.scale_high - self.scale_low) * draws.uniform(batch)
        # In grid_sample's units the whole image spans [-1, 1], so the kept part spans a fraction of it.
        shrink = size / images.shape[-1] / scale
        cos, sin = ((law(turn) * shrink).to(images)[:, None, None] for law in (torch.cos, torch.sin))
        x = (torch.arange(size, device=images.device, dtype=images.dtype) + 0.5) * (2 / size) - 1
        y = x[:, None]
        # affine_grid makes the same by a product of matrices for each pixel, which takes longer.
        grid = torch.stack([cos * x - sin * y, sin * x + cos * y], -1)
        return F.grid_sample(images, grid, mode=self.interpolation, padding_mode="reflection", align_corners=False)


Augment = NoAugment | Dihedral | Affine
