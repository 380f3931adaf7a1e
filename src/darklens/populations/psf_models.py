"""The point-spread functions of populations: a Gaussian, or an image."""

import base64
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BeforeValidator, Field, ValidationError, model_validator

from darklens.config import Frozen
from darklens.errors import ConfigError, InputError
from darklens.scene.observation_planes import plane_of
from darklens.scene.psf import PSF
from darklens.units import FWHM_PER_SIGMA

_MAX_SIDE = 513  # pixels of a PSF image
_SAME_SCALE = 1e-3  # relative difference below which two pixel scales count as equal


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
        if self.values is None:
            if self.file is None:
                raise ValueError("psf of kind image needs a file")
            return self
        if self.shape is None or not all(1 <= side <= _MAX_SIDE for side in self.shape):
            raise ValueError(f"the values of the PSF need a shape of 1 to {_MAX_SIDE} pixels a side")
        try:
            content = base64.b64decode(self.values, validate=True)
        except ValueError:
            raise ValueError("the values of the PSF are not base64") from None
        if len(content) != 4 * self.shape[0] * self.shape[1]:
            raise ValueError("the values of the PSF do not have its shape")
        try:
            self.kernel(1.0)
        except InputError as error:
            raise ValueError(str(error)) from None
        return self

    def with_values(self, folder: Path, pixel_scale: float) -> "ImagePSF":
        """Return the PSF with the values of its file.

        Args:
            folder: Folder from which the path of the file starts.
            pixel_scale: Pixel scale of the population, arcsec.

        Raises:
            ConfigError: If the file cannot be read, is no PSF, or states another pixel scale.
        """
        if self.values is not None:
            return self
        path = folder / str(self.file)
        try:
            values, stated, _ = plane_of(str(path), "psf").read()
        except InputError as error:
            raise ConfigError(f"psf.file: {error}") from None
        if max(values.shape) > _MAX_SIDE:
            raise ConfigError(f"psf.file: {path} has {values.shape} pixels; cut it to {_MAX_SIDE} or fewer a side.")
        if stated is not None and abs(stated * self.oversampling / pixel_scale - 1) > _SAME_SCALE:
            raise ConfigError(
                f"psf.file: {path} has pixels of {stated:.4g} arcsec, which does not agree with psf.oversampling="
                f"{self.oversampling} for a population of {pixel_scale:.4g}; resample it, or correct the wrong one."
            )
        with np.errstate(over="ignore"):  # becomes infinite, which is refused
            array = np.asarray(values, dtype="<f4")
        content = {"values": base64.b64encode(array.tobytes()).decode(), "shape": array.shape}
        try:
            return type(self).model_validate(self.model_dump() | content)
        except ValidationError as error:
            problem = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise ConfigError(f"psf.file: {path}: {problem}") from None

    def kernel(self, pixel_scale: float) -> PSF:
        """Return the PSF for pixels of `pixel_scale` arcsec."""
        return _image_kernel(self, pixel_scale)

    def width(self, pixel_scale: float) -> float:
        """Return the standard deviation of the Gaussian with the same FWHM, arcsec."""
        return self.kernel(pixel_scale).fwhm / FWHM_PER_SIGMA


@lru_cache(maxsize=32)
def _image_kernel(spec: ImagePSF, pixel_scale: float) -> PSF:
    assert spec.shape is not None, "populations.get reads the file"
    values = np.frombuffer(base64.b64decode(str(spec.values)), dtype="<f4").reshape(spec.shape)
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
