"""An observed image with its noise map, mask and PSF, validated before a fit."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from darklens.errors import InputError
from darklens.scene.imaging import Detector
from darklens.scene.psf import PSF

MASKED_NOISE = 1e6  # of the median; pipelines set the noise of masked pixels to such values
_FEWEST_PIXELS = 100
_LARGEST, _SMALLEST = 1e12, 1e-3  # pixel, and the brightest one, in units of the median noise
_NOISE_LIMIT = 1e100  # of the median noise, and its inverse; their squares are in float64
NoiseKind = Literal["standard deviation", "variance", "inverse variance"]
NOISE_WORDS = {"variance": "a variance", "inverse variance": "an inverse variance (weight)"}
_WRONG_NOISE, _RIGHT_NOISE = 5.0, 2.0  # factor from the image scatter: doubted above, plausible below


@dataclass(frozen=True, eq=False)
class PhotonNoise:
    """Noise of the background and of the photons of the image, from which a fit computes the noise of its model.

    A noise map computed from the image itself is low where the noise is, so a fit to it is too faint.

    Attributes:
        background_rms: Standard deviation of a pixel without light, in the unit of the image.
        exposure: Photons in one unit of the image (seconds if that is electrons/s): a number, or one for each pixel.
    """

    background_rms: float
    exposure: Float[np.ndarray, "rows columns"] | float

    def noise_map(self, light: Float[np.ndarray, "rows columns"]) -> Float[np.ndarray, "rows columns"]:
        """Return the standard deviation of each pixel for the expected light without sky."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return np.asarray(np.sqrt(self.background_rms**2 + np.nan_to_num(light).clip(min=0) / self.exposure))

    def scaled(self, factor: float) -> "PhotonNoise":
        """Return the noise of the image multiplied by a factor."""
        return PhotonNoise(self.background_rms * factor, self.exposure / factor)

    def part(self, rows: slice, columns: slice) -> "PhotonNoise":
        """Return the noise of a part of the image."""
        exposure = self.exposure if isinstance(self.exposure, float) else self.exposure[rows, columns]
        return PhotonNoise(self.background_rms, exposure)


@dataclass(frozen=True, eq=False)
class Observation:
    """An image with its noise map, pixel mask and PSF.

    Attributes:
        image: Surface brightness (rows, columns) in any linear unit, row 0 at the bottom.
        noise_map: Standard deviation of each pixel, in the unit of the image.
        pixel_scale: arcsec.
        psf: Point-spread function; None for no blurring.
        used: True for pixels that are fitted: not masked, finite, below 1e12 times the noise, and with a finite,
            positive noise within a factor of 1e6 of its median.
        changes: Changes to the inputs and assumptions about them, one phrase each.
        photon_noise: What determines the noise map, if it was not given.
    """

    image: Float[np.ndarray, "rows columns"] = field(repr=False)
    noise_map: Float[np.ndarray, "rows columns"] = field(repr=False)
    pixel_scale: float
    psf: PSF | None
    used: Bool[np.ndarray, "rows columns"] = field(repr=False)
    changes: tuple[str, ...] = field(default=())
    photon_noise: PhotonNoise | None = None

    @classmethod
    def of(
        cls,
        image: Any,
        *,
        noise_map: Any = None,
        photon_noise: PhotonNoise | None = None,
        pixel_scale: float,
        psf: PSF | Any = None,
        mask: Any = None,
        flip_rows: bool = False,
    ) -> "Observation":
        """Validate the inputs and return an observation.

        Args:
            image: (rows, columns), sky subtracted.
            noise_map: Standard deviation of each pixel, or one number for all.
            photon_noise: Background and exposure, in place of a noise map.
            pixel_scale: arcsec.
            psf: A `PSF` with the pixel scale of the image or an integer fraction of it, or an array with that of the
                image.
            mask: True (or non-zero) for pixels to exclude.
            flip_rows: Whether row 0 is at the top, as PyAutoLens writes FITS files; applies to all arrays and the PSF.

        Raises:
            InputError: If both or neither of noise map and photon noise are given, shapes differ, fewer than 100
                pixels remain, the PSF has another pixel scale or is larger than the image, or the noise map looks like
                a variance or a weight map.
        """
        pixels = _plane(image, "image")
        if not pixel_scale > 0:
            raise InputError(f"The pixel scale must be positive (arcsec), got {pixel_scale}.")
        if (noise_map is None) == (photon_noise is None):
            raise InputError("Give either noise_map or photon_noise.")
        if photon_noise is not None:
            if not (photon_noise.background_rms > 0 and np.any(np.asarray(photon_noise.exposure) > 0)):
                raise InputError("The background noise and the exposure must be positive.")
            if np.ndim(photon_noise.exposure):
                photon_noise = replace(photon_noise, exposure=_plane(photon_noise.exposure, "exposure map"))
            if np.ndim(photon_noise.exposure) and np.shape(photon_noise.exposure) != pixels.shape:
                raise InputError("The exposure map and the image have different sizes; give one value for each pixel.")
            noise_map = photon_noise.noise_map(pixels)
        noise = np.full(pixels.shape, float(noise_map)) if np.ndim(noise_map) == 0 else _plane(noise_map, "noise map")
        excluded = np.zeros(pixels.shape, bool) if mask is None else _plane(mask, "mask") != 0
        for name, array in (("noise map", noise), ("mask", excluded)):
            if array.shape != pixels.shape:
                raise InputError(
                    f"The {name} has {array.shape[0]} x {array.shape[1]} pixels, the image {pixels.shape[0]} x "
                    f"{pixels.shape[1]}; give one for each pixel."
                )
        kernel = psf
        if flip_rows:
            pixels, noise, excluded = pixels[::-1].copy(), noise[::-1].copy(), excluded[::-1].copy()
            photon_noise = photon_noise.part(slice(None, None, -1), slice(None)) if photon_noise else None
            kernel = psf.flipped() if isinstance(psf, PSF) else None if psf is None else np.asarray(psf)[::-1]
        if kernel is not None:
            is_psf = isinstance(kernel, PSF)
            kernel = kernel.sampled_for(pixel_scale) if is_psf else PSF.image(kernel, pixel_scale=pixel_scale)
        if kernel is not None and any(
            k > kernel.oversampling * n for k, n in zip(kernel.kernel.shape, pixels.shape, strict=True)
        ):
            raise InputError(
                f"The PSF ({kernel.kernel.shape[0]} x {kernel.kernel.shape[1]}) is larger than the image "
                f"({pixels.shape[0]} x {pixels.shape[1]}); cut it to its core."
            )
        usable = np.isfinite(noise) & (noise > 0)
        used = usable & ~excluded & np.isfinite(pixels)
        reasons = {
            "of the image are NaN or infinite": ~np.isfinite(pixels),
            "of the noise map are not positive and finite": ~usable,
            "are masked": excluded,
        }
        require_pixels(used, reasons)
        level = float(np.median(noise[usable]))
        if not 1 / _NOISE_LIMIT < level < _NOISE_LIMIT:
            raise InputError(
                f"The noise is {level:.3g}, which is outside the range of fits; multiply image and noise map by a "
                "constant, such that the noise is about 1."
            )
        used &= (noise <= MASKED_NOISE * level) & (noise >= level / MASKED_NOISE)
        bright = np.abs(pixels) >= _LARGEST * level
        if 2 * bright[used].sum() > used.sum():
            raise InputError(f"The image exceeds {_LARGEST:.0e} times the noise; give both in the same unit.")
        used &= ~bright
        require_pixels(used)
        changes = list(kernel.notes) if kernel is not None else []
        if flip_rows:
            changes.append("rows reversed" + ("" if kernel is None else ", those of the PSF too"))
        changes += _exclusions(used)
        _require_deviation(pixels, noise, used)
        if 0 < np.abs(pixels[used]).max() < _SMALLEST * level:
            raise InputError(f"The image is nowhere above {_SMALLEST:g} times the noise; give both in the same unit.")
        return cls(np.where(used, pixels, 0.0), noise, float(pixel_scale), kernel, used, tuple(changes), photon_noise)

    @classmethod
    def read(
        cls,
        path: Path | str,
        *,
        psf: Path | str | None = None,
        noise_map: Path | str | None = None,
        mask: Path | str | None = None,
        pixel_scale: float | None = None,
        image: str | None = None,
        flip_rows: bool = False,
        half_width: float | None = None,
    ) -> "Observation":
        """Read an observation from files, as `darklens fit` does.

        Args:
            path: A folder with image.fits (or data.fits), noise_map.fits (or noise.fits), psf.fits and perhaps
                mask.fits; an image file, whose extensions may hold the rest; or `FILE#i` for row i of an npz or HDF5
                file with `images`.
            psf: File of the PSF, or `FILE[NAME]` for one of its extensions; likewise for the others.
            noise_map: File of the noise map: standard deviation, variance or weight.
            mask: File of the mask; non-zero pixels are excluded.
            pixel_scale: arcsec; needed if the file does not state it.
            image: Name of the image in a file with several.
            flip_rows: Whether row 0 is at the top, as PyAutoLens writes FITS files.
            half_width: Half side of the central square to keep, arcsec.

        Returns:
            The observation; `changes` says what was assumed, converted and left out.

        Raises:
            InputError: If an input is missing or wrong; one sentence says which.
        """
        from darklens.scene.observation_files import Inputs, read_observation

        def text(option: Path | str | None) -> str | None:
            return None if option is None else str(option)

        inputs = Inputs(
            psf=text(psf),
            noise_map=text(noise_map),
            mask=text(mask),
            pixel_scale=pixel_scale,
            image=image,
            flip_rows=flip_rows,
            half_width=half_width,
        )
        return read_observation(str(path), inputs)

    @property
    def weights(self) -> Float[np.ndarray, "rows columns"]:
        """Inverse variances; zero for excluded pixels."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self.used, 1 / self.noise_map**2, 0.0)

    @property
    def unit(self) -> float:
        """The power of two nearest to the median noise, in which fits work: float32 has no squares beyond 1e38."""
        return float(2.0 ** np.round(np.log2(np.median(self.noise_map[self.used]))))

    def scaled(self, factor: float) -> "Observation":
        """Return the observation with image and noise map multiplied by a factor."""
        if factor == 1:
            return self
        photon_noise = self.photon_noise.scaled(factor) if self.photon_noise else None
        return replace(self, image=self.image * factor, noise_map=self.noise_map * factor, photon_noise=photon_noise)

    def with_noise_of(self, light: Float[np.ndarray, "rows columns"]) -> "Observation":
        """Return the observation with the photon noise of this expected light, and of the background."""
        if self.photon_noise is None:
            return self
        return replace(self, noise_map=self.photon_noise.noise_map(light))

    def detector(self, *, supersample: int | None = None) -> Detector:
        """Return the detector of this observation; `supersample` defaults to the oversampling of the PSF."""
        samples = supersample or (self.psf.oversampling if self.psf else 1)
        rows, columns = self.image.shape
        return Detector((rows, columns), self.pixel_scale, self.psf, supersample=samples)

    def cut(self, half_width: float) -> "Observation":
        """Return the central cut-out that extends `half_width` arcsec from the centre, or to the edge of the image."""
        keep = []
        for n in self.image.shape:
            side = min(n, 2 * round(half_width / self.pixel_scale) + n % 2)
            start = (n - side) // 2
            keep.append(slice(start, start + side))
        rows, columns = keep
        return Observation(
            self.image[rows, columns],
            self.noise_map[rows, columns],
            self.pixel_scale,
            self.psf,
            self.used[rows, columns],
            (
                *(text for text in self.changes if text not in _exclusions(self.used)),
                *_exclusions(self.used[rows, columns]),
            ),
            self.photon_noise.part(rows, columns) if self.photon_noise else None,
        )

    def binned(self, side: int) -> "Observation":
        """Return the observation binned into blocks of side x side pixels, weighted by inverse variance.

        The PSF is not binned: its oversampling increases. Rows at the upper edge and columns at the right edge that do
        not fill a block are dropped.
        """
        if side == 1:
            return self
        weights = _blocks(self.weights, side).sum((1, 3))
        with np.errstate(divide="ignore", invalid="ignore"):
            image = np.where(weights > 0, _blocks(self.weights * self.image, side).sum((1, 3)) / weights, 0.0)
            noise = np.where(weights > 0, weights**-0.5, np.inf)
        psf = self.psf
        if psf is not None:
            psf = PSF(psf.kernel, psf.pixel_scale, psf.oversampling * side, psf.origin, psf.notes)
        return Observation(image, noise, self.pixel_scale * side, psf, weights > 0, self.changes)


def require_pixels(used: Bool[np.ndarray, "rows columns"], reasons: Mapping[str, np.ndarray] | None = None) -> None:
    """Raise InputError if fewer than 100 pixels are used; `reasons` maps reasons to the pixels that they exclude."""
    if used.sum() < _FEWEST_PIXELS:
        counts = [f"{int(out.sum())} pixels {words}" for words, out in (reasons or {}).items() if out.any()]
        excluded = f" ({', '.join(counts)})" if counts else ""
        raise InputError(
            f"{int(used.sum())} of {used.size} pixels remain{excluded}; at least {_FEWEST_PIXELS} are needed. "
            "A mask is True (or non-zero) for pixels to exclude; the noise must be positive and finite."
        )


def _exclusions(used: Bool[np.ndarray, "rows columns"]) -> list[str]:
    n_out = int((~used).sum())
    return [f"{n_out} pixels left out"] if n_out else []


def _plane(values: Any, name: str) -> Float[np.ndarray, "rows columns"]:
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise InputError(f"The {name} holds {array.dtype}, not numbers.")
    array = array.astype(np.float64)
    array = np.squeeze(array) if array.ndim > 2 else array
    if array.ndim != 2:
        raise InputError(f"The {name} has shape {np.shape(values)}; one plane (rows, columns) is needed.")
    return array


def _blocks(array: Float[np.ndarray, "rows columns"], side: int) -> Float[np.ndarray, "r s c s"]:
    rows, columns = (n // side for n in array.shape)
    return array[: rows * side, : columns * side].reshape(rows, side, columns, side)


def background_scatter(
    image: np.ndarray, used: np.ndarray, like: np.ndarray | None = None
) -> tuple[float, float] | None:
    """Return the noise of the faint half of an image, and the median of `like` there; None if too few pixels are used.

    The noise is measured from the median absolute second difference along rows, which is insensitive to smooth light.
    `like` (by default the image) also determines which half is faint.
    """
    triple = used[:, :-2] & used[:, 1:-1] & used[:, 2:]
    if triple.sum() < _FEWEST_PIXELS:
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        difference = (image[:, :-2] - 2 * image[:, 1:-1] + image[:, 2:])[triple] / np.sqrt(6)
    middle = (image if like is None else like)[:, 1:-1][triple]
    faint = middle <= np.median(middle)
    scatter = 1.4826 * float(np.median(np.abs(difference[faint])))
    return (scatter, float(np.median(middle[faint]))) if scatter > 0 else None


def noise_meaning(image: np.ndarray, noise: np.ndarray, used: np.ndarray) -> tuple[NoiseKind | None, str]:
    """Return what a noise map is, judged by the scatter of the image, and the comparison in words.

    It is None if the map agrees with the scatter in no meaning, or there are too few pixels to judge.
    """
    measured = [background_scatter(image, used, like) for like in (noise, -noise)]  # weights are large where faint
    if measured[0] is None or measured[1] is None:
        return "standard deviation", ""
    (scatter, level), (weight_scatter, weight) = measured[0], (measured[1][0], -measured[1][1])
    away: dict[NoiseKind, float] = {
        "standard deviation": abs(np.log(level / scatter)),
        "variance": abs(np.log(level**0.5 / scatter)),
        "inverse variance": abs(np.log(weight**-0.5 / weight_scatter)),
    }
    text = f"its median is {level:.3g}, the scatter of the image {scatter:.3g}"
    nearest = min(away, key=lambda kind: away[kind])
    if away["standard deviation"] <= np.log(_WRONG_NOISE):
        return "standard deviation", text
    return (nearest if away[nearest] < np.log(_RIGHT_NOISE) else None), text


def _require_deviation(image: np.ndarray, noise: np.ndarray, used: np.ndarray) -> None:
    """Raise InputError if the noise map agrees with the scatter of the image only as a variance or a weight map."""
    kind, comparison = noise_meaning(image, noise, used)
    if kind in NOISE_WORDS:
        raise InputError(
            f"The noise map looks like {NOISE_WORDS[kind]}: {comparison}. Give the standard deviation of each pixel, "
            "or a file whose name says what it is (VAR for a variance, WHT for a weight)."
        )
