"""Light profiles and their positions, as populations describe them."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from darklens.config import Frozen
from darklens.populations.priors import Constant, PositivePrior, Prior, unless

_AxisRatio = Annotated[Prior, unless(lambda low, high: low <= 0 or high > 1, "an axis ratio must lie in (0, 1]")]
# Below 0.36 the expansion of b_n fails (Ciotti & Bertin 1999).
_SersicIndex = Annotated[
    Prior, unless(lambda low, high: low < 0.36 or high > 10, "a Sersic index must lie in [0.36, 10]")
]


class PolarPosition(Frozen):
    """A position with a prior of the radius (not of the area) and a uniform direction."""

    kind: Literal["polar"] = "polar"
    radius: Prior = Field(description="arcsec")


class CartesianPosition(Frozen):
    """A position with independent priors of x and y."""

    kind: Literal["cartesian"] = "cartesian"
    x: Prior = Field(description="arcsec")
    y: Prior = Field(description="arcsec")


Position = Annotated[PolarPosition | CartesianPosition, Field(discriminator="kind")]


class Light(Frozen):
    """What all light profiles have: either `amplitude` or `magnitude`, a direction and a position."""

    amplitude: PositivePrior | None = Field(
        default=None, description="counts per pixel (or per second and pixel) at R_e"
    )
    magnitude: Prior | None = Field(default=None, description="total AB magnitude; needs noise of kind instrument")
    angle: Prior = Field(description="degrees")
    position: Position

    @model_validator(mode="after")
    def _one_brightness(self) -> "Light":
        if (self.amplitude is None) == (self.magnitude is None):
            raise ValueError("give either amplitude or magnitude")
        return self


class SersicLight(Light):
    """A Sersic profile."""

    kind: Literal["sersic"] = "sersic"
    R_e: PositivePrior = Field(description="effective radius, arcsec")
    n: _SersicIndex
    q: _AxisRatio = Field(description="axis ratio")
    b_n: Literal["ciotti_bertin", "linear"] = "ciotti_bertin"


class ImageLight(Light):
    """Cut-outs of real galaxies: one FITS or .npy file each, all with the same pixel scale.

    `amplitude` is the total brightness here. `size` scales the angular size at constant total brightness. `first` and
    `last` give training and test sets different galaxies.
    """

    kind: Literal["images"] = "images"
    folder: Path = Field(description="folder of square cut-outs (.fits, .npy), sky subtracted or not")
    pixel_scale: float = Field(gt=0, description="arcsec")
    size: PositivePrior = Constant(value=1.0)
    first: float = Field(default=0.0, ge=0, lt=1, description="use the files from this fraction of the sorted list on")
    last: float = Field(default=1.0, gt=0, le=1, description="use the files up to this fraction")
    sha256: str | None = Field(default=None, description="digest of the cut-outs, set when a population is loaded")

    @model_validator(mode="after")
    def _ordered(self) -> "ImageLight":
        if self.first >= self.last:
            raise ValueError(f"first ({self.first}) must be less than last ({self.last})")
        return self


Source = Annotated[SersicLight | ImageLight, Field(discriminator="kind")]
