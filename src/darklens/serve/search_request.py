"""What a search of an uploaded telescope image can be asked for."""

from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from darklens.fit.perturber_profiles import PerturberKind
from darklens.scene import specification
from darklens.serve.responses import Choice

FILES = {
    "image": "the image, or a file (npz, HDF5, FITS) that also holds the others",
    "noise_map": "standard deviation, variance or weight of each pixel",
    "psf": "PSF image",
    "mask": "non-zero pixels are left out",
}
"""Fields of a request that hold files; only the first is required."""
_PERTURBERS: dict[PerturberKind, str] = {
    "tnfw": "Dark halo; its concentration follows from its mass",
    "tnfw_free": "Dark halo of free concentration",
    "point": "Point mass",
    "line": "Line mass",
}

if TYPE_CHECKING:
    SceneName = str
else:
    SceneName = Literal[tuple(specification.names())]


class SearchQuery(BaseModel):
    """Options of a search."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    scene: SceneName = Field(default="epl-shear", description="smooth model of the lens")
    perturber: PerturberKind = Field(default="tnfw", description="what is searched")
    pixel_scale: float | None = Field(
        default=None, ge=1e-4, le=100, description="pixel scale of the image, arcsec; overrides that of the file"
    )
    z_lens: float = Field(default=0.5, gt=0, le=20, description="redshift of lens and perturber, for masses")
    z_source: float = Field(default=1.0, gt=0, le=20, description="redshift of the source, above z_lens")
    half_width: float | None = Field(
        default=None, ge=1e-4, le=1000, description="half side of the central square to use, arcsec; by default all"
    )
    psf_fwhm: float | None = Field(default=None, ge=1e-4, le=100, description="FWHM of a Gaussian PSF, arcsec")
    background_rms: float | None = Field(
        default=None,
        gt=0,
        le=1e30,
        description="noise without light, unit of the image, if there is no noise map; by default measured",
    )
    exposure: float | None = Field(
        default=None, gt=0, le=1e30, description="counts per unit of the image, for photon noise without a noise map"
    )
    image: str | None = Field(
        default=None, max_length=200, description="name of the image in a file that holds several"
    )
    flip_rows: bool = Field(default=False, description="whether row 0 is at the top, as in files of PyAutoLens")


def scenes() -> list[Choice]:
    """Return the scenes that come with darklens."""
    return [Choice(name=name, description=specification.get(name).description) for name in specification.names()]


def perturbers() -> list[Choice]:
    """Return the kinds of perturbers."""
    return [Choice(name=name, description=_PERTURBERS[name]) for name in get_args(PerturberKind)]


def multipart_schema() -> dict[str, Any]:
    """Return the schema of the body of a request."""
    properties = {name: {"type": "string", "format": "binary", "description": text} for name, text in FILES.items()}
    return {"type": "object", "required": ["image"], "properties": properties, "additionalProperties": False}
