"""The point-spread functions of populations: a Gaussian, or an image."""

import base64
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BeforeValidator, Field, model_validator

from darklens.config import Frozen
from darklens.data.readers import read_image
from darklens.errors import ConfigError, InputError
from darklens.scene.psf import PSF
from darklens.units import FWHM_PER_SIGMA

_MAX_SIDE = 513  # pixels of a PSF image


class GaussianPSF(Frozen):
    """Gaussian point-spread function, cut at `truncate` standard deviations."""

    kind: Literal["gaussian"] = "gaussian"
    sigma: float = Field(gt=0, description="arcsec")
    truncate: float = Field(default=4.0, gt=0, description="standard deviations")
    known: bool = Field(default=True, description="false: fits determine the width; images are made with sigma")

    def kernel(self, pixel_scale: float) -> PSF:
        """Return the PSF for pixels of `pixel_scale` arcsec."""
        fwhm = self.sigma * FWHM_PER_SIGMA
        return PSF.gaussian(fwhm=fwhm, pixel_scale=pixel_scale, truncate=self.truncate)

    def width(self, _: float) -> float:
        """Return the standard deviation, arcsec."""
        return self.sigma


class ImagePSF(Frozen):
    """An image of a point source, of any size, on the pixels of the population or finer ones.

    A population that is loaded from a file contains the image itself, as `values`, so that stores and models do not
    depend on the file.
    """

    kind: Literal["image"] = "image"
    known: ClassVar[bool] = True
    truncate: ClassVar[float] = 4.0  # of the Gaussian of the same width, for the bank of starts
    file: str | None = Field(default=None, description="FITS, npy, npz or HDF5; relative to the YAML file")
    oversampling: int = Field(default=1, ge=1, le=16, description="PSF pixels along an image pixel")
    normalise: bool = Field(default=False, description="divide by the sum")
    recentre: bool = Field(default=False, description="use the centroid as the origin")
    shape: tuple[int, int] | None = Field(default=None, description="rows and columns; set when the file is read")
    values: str | None = Field(default=None, description="float32, base64; set when the file is read", repr=False)

    @model_validator(mode="after")
    def _complete(self) -> "ImagePSF":
        if self.values is None and self.file is None:
            raise ValueError("psf of kind image needs a file")
        if self.values is not None and (self.shape is None or len(self._bytes()) != 4 * self.shape[0] * self.shape[1]):
            raise ValueError("the values of the PSF do not have its shape")
        return self

    def _bytes(self) -> bytes:
        try:
            return base64.b64decode(self.values or "", validate=True)
        except ValueError:
            raise ValueError("the values of the PSF are not base64") from None

    def with_values(self, folder: Path) -> "ImagePSF":
        """Return the PSF with the values of its file, whose path is relative to a folder.

        Raises:
            ConfigError: If the file cannot be read, or is no PSF.
        """
        if self.values is not None:
            return self
        path = folder / str(self.file)
        try:
            array = np.asarray(read_image(path).pixels, dtype="<f4")
            PSF.image(array, pixel_scale=1.0, normalise=self.normalise, recentre=self.recentre)
        except InputError as error:
            raise ConfigError(f"psf.file: {error}") from None
        if max(array.shape) > _MAX_SIDE:
            raise ConfigError(f"psf.file: {path} has {array.shape} pixels; cut it to {_MAX_SIDE} or fewer a side.")
        shape = (int(array.shape[0]), int(array.shape[1]))
        return self.model_copy(update={"values": base64.b64encode(array.tobytes()).decode(), "shape": shape})

    def kernel(self, pixel_scale: float) -> PSF:
        """Return the PSF for pixels of `pixel_scale` arcsec."""
        return _image_kernel(self, pixel_scale)

    def width(self, pixel_scale: float) -> float:
        """Return the standard deviation of the Gaussian with the same FWHM, arcsec."""
        return self.kernel(pixel_scale).fwhm / FWHM_PER_SIGMA


@lru_cache(maxsize=32)
def _image_kernel(spec: ImagePSF, pixel_scale: float) -> PSF:
    assert spec.shape is not None, "populations.get reads the file"
    values = np.frombuffer(spec._bytes(), dtype="<f4").reshape(spec.shape)
    return PSF.image(
        values,
        pixel_scale=pixel_scale,
        oversampling=spec.oversampling,
        normalise=spec.normalise,
        recentre=spec.recentre,
    )


def _gaussian_by_default(value: Any) -> Any:
    return {"kind": "gaussian", **value} if isinstance(value, dict) else value


PSFModel = Annotated[
    Annotated[GaussianPSF | ImagePSF, Field(discriminator="kind")], BeforeValidator(_gaussian_by_default)
]
