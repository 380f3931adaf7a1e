"""Point-spread functions: a Gaussian, or an image of any size, optionally oversampled or off-centre."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import max_pool2d

from darklens.errors import InputError
from darklens.physics import optics

_FWHM_PER_SIGMA = 2.3548200450309493
_CENTRED_TO = 0.05  # pixels; a larger offset of the centroid from the centre of the array is noted
_CORE = 0.05  # of the peak; brighter pixels are the core
_NORMALISED_TO = 1e-3
_LARGEST_FWHM = 1000.0  # kernel pixels, of a Gaussian
_LARGEST_SUM = 1e12  # and the inverse of the smallest, for an image in float32
_SAME_SCALE = 1e-3  # relative difference below which two pixel scales count as equal
_LARGEST_NEGATIVE = 0.05  # of the peak, in a wing


@dataclass(frozen=True, eq=False)
class PSF:
    """A point-spread function sampled on square pixels.

    By default the origin is the centre of the array, ((width - 1)/2, (height - 1)/2): the centre of a pixel if the size
    is odd, the common corner of four pixels if it is even. In both cases the detector chooses the sampling positions so
    that no interpolation is necessary.

    Attributes:
        kernel: Values (height, width) in float64, row 0 at the bottom.
        pixel_scale: Side of a kernel pixel, arcsec.
        oversampling: Number of kernel pixels along a side of an image pixel.
        origin: Position (x, y) of the point source relative to the centre of the array, in kernel pixels; (0, 0) unless
            recentred.
        notes: Anomalies of the input and how they were treated, one phrase each.
    """

    kernel: Float[Tensor, "h w"] = field(repr=False)
    pixel_scale: float
    oversampling: int = 1
    origin: tuple[float, float] = (0.0, 0.0)
    notes: tuple[str, ...] = ()

    @classmethod
    def gaussian(cls, *, fwhm: float, pixel_scale: float, oversampling: int = 1, truncate: float = 4.0) -> "PSF":
        """Return a normalised circular Gaussian.

        Args:
            fwhm: Full width at half maximum, arcsec.
            pixel_scale: Side of an image pixel, arcsec.
            oversampling: Number of kernel pixels along a side of an image pixel.
            truncate: Truncation radius in standard deviations.

        Raises:
            InputError: If the FWHM exceeds 1000 pixels.
        """
        scale = pixel_scale / oversampling
        if not fwhm <= _LARGEST_FWHM * scale:
            raise InputError(f"A PSF of {fwhm:g} arcsec is too wide for pixels of {scale:g} arcsec.")
        row = optics.gaussian_psf(sigma=fwhm / _FWHM_PER_SIGMA / scale, truncate=truncate)
        return cls(row[:, None] * row, scale, oversampling)

    @classmethod
    def image(
        cls,
        values: Any,
        *,
        pixel_scale: float,
        oversampling: int = 1,
        normalise: bool = False,
        recentre: bool = False,
    ) -> "PSF":
        """Return a PSF from a measured or simulated image of a point source.

        Args:
            values: Array (height, width), each side odd or even.
            pixel_scale: Side of an image pixel, arcsec; kernel pixels are `oversampling` times smaller.
            oversampling: Number of kernel pixels along a side of an image pixel.
            normalise: Divide by the sum of the values. Otherwise a sum other than 1 changes the flux.
            recentre: Use the centroid of the core as the origin. Otherwise an off-centre PSF shifts the image.

        Raises:
            InputError: If the array is not two-dimensional, its core has non-finite values, or its sum is not positive
                or, unless normalised, far from 1.
        """
        kernel = torch.as_tensor(np.array(values, dtype=np.float64))
        if kernel.ndim != 2 or min(kernel.shape) < 1:
            raise InputError(f"A PSF is a two-dimensional image; this one has shape {tuple(kernel.shape)}.")
        notes = []
        bad = ~torch.isfinite(kernel)
        if bool(bad.any()):
            kernel = torch.where(bad, 0.0, kernel)
            core = (kernel > _CORE * kernel.max())[None, None].double()
            if bool(bad.all()) or bool((bad & (max_pool2d(core, 3, stride=1, padding=1)[0, 0] > 0)).any()):
                raise InputError(f"The PSF has {int(bad.sum())} pixels that are NaN or infinite, some in its core.")
            notes.append(f"PSF: {int(bad.sum())} NaN or infinite pixels in its wings set to zero")
        total = float(kernel.sum())
        if total <= 0:
            raise InputError(f"The PSF's values sum to {total:.3g}; a PSF needs positive light.")
        if not total < np.inf or (not normalise and not 1 / _LARGEST_SUM < total < _LARGEST_SUM):
            raise InputError(f"The PSF's values sum to {total:.3g}; divide them by their sum.")
        if float(kernel.min()) < -_LARGEST_NEGATIVE * float(kernel.max()):
            notes.append(f"PSF: its lowest value is {float(kernel.min() / kernel.max()):.2f} of the peak")
        if abs(total - 1) > _NORMALISED_TO:
            notes.append(f"PSF: its sum is {total:.4g}, " + ("normalised" if normalise else "not normalised"))
        if normalise:
            kernel = kernel / total
        psf = cls(_without_dark_edges(kernel), pixel_scale / oversampling, oversampling, (0.0, 0.0), tuple(notes))
        x, y = psf.centroid()
        if max(abs(x), abs(y)) > _CENTRED_TO:
            what = f"PSF: its centroid is ({x:.2f}, {y:.2f}) pixels from its centre, "
            origin = (x, y) if recentre else (0.0, 0.0)
            done = what + ("taken for its origin" if recentre else "not corrected")
            psf = replace(psf, origin=origin, notes=(*notes, done))
        return psf

    def flipped(self) -> "PSF":
        """Return the PSF with its rows in reverse order."""
        x, y = self.origin
        return replace(self, kernel=self.kernel.flip(0), origin=(x, -y))

    def sampled_for(self, pixel_scale: float) -> "PSF":
        """Return the PSF for images of a pixel scale (arcsec), with the oversampling that its own scale implies.

        Raises:
            InputError: If the pixel scale of the images is not that of the kernel times the oversampling. If the
                oversampling is 1, any integer multiple is accepted, with a note.
        """
        ratio = pixel_scale / self.pixel_scale
        samples = round(ratio) if self.oversampling == 1 else self.oversampling
        if samples < 1 or abs(ratio / samples - 1) > _SAME_SCALE:
            raise InputError(
                f"The PSF has pixels of {self.pixel_scale * self.oversampling:.4g} arcsec and the image of "
                f"{pixel_scale:.4g}; resample the PSF to {pixel_scale:.4g} arcsec or an integer fraction of it, or "
                "correct the wrong one of the two pixel scales."
            )
        if samples == self.oversampling:
            return self
        note = f"PSF: {samples} of its pixels along a side of an image pixel"
        return replace(self, oversampling=samples, notes=(*self.notes, note))

    def binned(self, side: int) -> "PSF":
        """Return the PSF of an image binned into blocks of side x side pixels, with one kernel pixel for each block.

        Kernel pixels that straddle two blocks are divided by area. The origin moves to the centre of the array.
        """
        taps = side * self.oversampling
        axes = [
            _overlaps(n, origin, taps).to(self.kernel)
            for n, origin in zip(self.kernel.shape, self.origin[::-1], strict=True)
        ]
        kernel = axes[0] @ self.kernel @ axes[1].mT
        return PSF(kernel, self.pixel_scale * taps, notes=self.notes)

    def centroid(self) -> tuple[float, float]:
        """Return the centroid (x, y) of the core, above 5 % of the peak, in kernel pixels from the array's centre."""
        core = torch.where(self.kernel > _CORE * self.kernel.max(), self.kernel, 0.0)
        height, width = self.kernel.shape
        x = torch.arange(width, dtype=torch.float64) - (width - 1) / 2
        y = torch.arange(height, dtype=torch.float64) - (height - 1) / 2
        return float((core * x).sum() / core.sum()), float((core * y[:, None]).sum() / core.sum())

    @property
    def fwhm(self) -> float:
        """Full width at half maximum, arcsec: diameter of the circle with the area of pixels above half the peak."""
        area = int((self.kernel > self.kernel.max() / 2).sum())
        return 2 * float(np.sqrt(area / np.pi)) * self.pixel_scale


def _without_dark_edges(kernel: Float[Tensor, "h w"]) -> Float[Tensor, "rows columns"]:
    """Return the array without rows and columns at its edges that are zero on both sides; its centre stays."""
    for axis in (0, 1):
        bright = torch.nonzero(kernel.abs().amax(1 - axis)).flatten()
        n = kernel.shape[axis]
        dark = min(int(bright[0]), n - 1 - int(bright[-1]))
        kernel = kernel.narrow(axis, dark, n - 2 * dark)
    return kernel.contiguous()


def _overlaps(n: int, origin: float, side: int) -> Float[Tensor, "m n"]:
    """Return the fraction of each of n unit pixels in blocks of `side`; the middle block is centred on the origin."""
    centre = (n - 1) / 2 + origin
    half = int(np.ceil((max(centre, n - 1 - centre) + 0.5) / side - 0.5))
    low = centre + side * (torch.arange(-half, half + 1, dtype=torch.float64) - 0.5)[:, None]
    pixel = torch.arange(n, dtype=torch.float64) - 0.5
    return (torch.minimum(low + side, pixel + 1) - torch.maximum(low, pixel)).clamp_min(0.0)
