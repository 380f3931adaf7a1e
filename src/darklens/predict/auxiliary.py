"""PSF, noise map and mask of images to classify. Classifiers cannot use the first two yet; they check them."""

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from darklens.bundle import Bundle
from darklens.config import Frozen
from darklens.data.noise_estimate import noise_variance
from darklens.data.readers.image import Image, as_float64
from darklens.data.readers.planes import Plane
from darklens.data.readers.roles import OBSERVATION_FILES, OBSERVATION_SUFFIXES, Role
from darklens.populations.population import POPULATIONS, Population, get
from darklens.populations.psf_models import GaussianPSF, ImagePSF
from darklens.scene.noise_maps import standard_deviation
from darklens.scene.observation import MASKED_NOISE
from darklens.scene.observation_planes import plane_of, require_shape

_LARGEST_PSF_DIFFERENCE = 0.03  # of the peak; that of a Gaussian 1.5 % wider
_LARGEST_NOISE_RATIO = 1.25
_ROLES_OF_OPTIONS: dict[str, tuple[Role, ...]] = {"noise_map": ("noise", "weight"), "psf": ("psf",), "mask": ("mask",)}
_WIDTHS = np.linspace(0.7, 1.4, 71)  # of the PSF of the population, where fits determine the width


class Auxiliary(Frozen):
    """Files of PSF, noise map and mask, absolute, each `FILE` or `FILE[NAME]`, for all images."""

    psf: str | None = None
    noise_map: str | None = None
    mask: str | None = None

    @classmethod
    def of(cls, *, psf: str | None = None, noise_map: str | None = None, mask: str | None = None) -> "Auxiliary | None":
        """Check that the files can be read and return them; None without any.

        Raises:
            InputError: If one cannot be read.
        """
        if psf is None and noise_map is None and mask is None:
            return None
        options = {"psf": psf, "noise_map": noise_map, "mask": mask}
        auxiliary = cls(**{name: None if text is None else os.path.abspath(text) for name, text in options.items()})
        for plane in auxiliary._planes().values():
            plane.read()
        return auxiliary

    @property
    def files(self) -> Sequence[str]:
        """The files."""
        return [str(plane.path) for plane in self._planes().values()]

    def applied(self, image: Image, bundle: Bundle) -> tuple[Image, tuple[str, ...]]:
        """Return an image with masked pixels set to NaN, and reasons to doubt its class.

        Args:
            image: The image.
            bundle: The model that classifies it.

        Raises:
            InputError: If noise map or mask have another shape than the image.
        """
        planes = self._planes()
        pixels, changes = as_float64(image.pixels), list(image.changes)
        doubts: list[str] = []
        if "mask" in planes:
            mask = _values(planes["mask"], pixels.shape) != 0
            changes.append(f"{int(mask.sum())} pixels excluded by {planes['mask']}")
            pixels = np.where(mask, np.nan, pixels)
        if "noise_map" in planes:
            plane = planes["noise_map"]
            noise = _values(plane, pixels.shape)
            noise, _, remarks = standard_deviation(plane, noise, pixels, np.isfinite(pixels))
            valid = np.isfinite(noise) & (noise > 0)
            if valid.any():
                valid &= noise <= MASKED_NOISE * np.median(noise[valid])
            changes += remarks
            if not valid.all():
                changes.append(f"{int((~valid).sum())} pixels without a valid noise excluded")
            pixels = np.where(valid, pixels, np.nan)
            ratio = _noise_ratio(pixels, noise)
            if not 1 / _LARGEST_NOISE_RATIO < ratio < _LARGEST_NOISE_RATIO:
                doubts.append(f"the noise map is {ratio:.3g} times the noise in the image, which the model uses")
        if "psf" in planes:
            doubts += _psf_doubts(planes["psf"], image.pixel_scale, bundle)
        return replace(image, pixels=pixels, changes=tuple(changes)), tuple(doubts)

    def _planes(self) -> dict[str, Plane]:
        roles: dict[str, Role] = {"psf": "psf", "noise_map": "noise", "mask": "mask"}
        options = {name: getattr(self, name) for name in roles}
        return {name: plane_of(text, roles[name]) for name, text in options.items() if text is not None}


def unused_maps(path: Path, auxiliary: Auxiliary | None) -> tuple[str, ...]:
    """Return a remark on each noise map, PSF and mask in the folder of an image for which no option is given.

    Args:
        path: The image.
        auxiliary: The options.
    """
    options = {} if auxiliary is None else auxiliary.model_dump(exclude_none=True)
    maps = {option: name for option, name in _maps_in(path.parent).items() if option not in options}
    return tuple(
        f"{name} not used: no --{option.replace('_', '-')}" for option, name in maps.items() if name != path.name
    )


@lru_cache(maxsize=1024)
def _maps_in(folder: Path) -> dict[str, str]:
    """Return the names of noise map, PSF and mask in a folder of one observation, by option."""
    names = {
        option: [
            f"{stem}{suffix}" for role in roles for stem in OBSERVATION_FILES[role] for suffix in OBSERVATION_SUFFIXES
        ]
        for option, roles in _ROLES_OF_OPTIONS.items()
    }
    present = {option: next((n for n in stems if (folder / n).is_file()), None) for option, stems in names.items()}
    return {option: name for option, name in present.items() if name is not None}


@lru_cache(maxsize=8)
def _read(plane: Plane) -> tuple[Float[np.ndarray, "rows columns"], float | None]:
    return plane.read()[:2]


def _values(plane: Plane, shape: tuple[int, ...]) -> Float[np.ndarray, "rows columns"]:
    """Return the pixels of a map; raise InputError if it has another shape than the image."""
    values, _ = _read(plane)
    require_shape(str(plane), values.shape, shape)
    return values


def _noise_ratio(pixels: Float[np.ndarray, "rows columns"], noise: Float[np.ndarray, "rows columns"]) -> float:
    """Return the noise map relative to the noise that the image itself shows, where they differ most.

    Compared are the medians of the faint half and of the brightest tenth of the pixels.
    """
    valid = np.isfinite(pixels) & np.isfinite(noise)
    if not valid.any():
        return float("nan")
    filled = np.where(valid, pixels, np.median(pixels[valid]))
    estimate = noise_variance(torch.from_numpy(filled)[None, None])[0, 0].sqrt().numpy()
    faint, bright = np.quantile(filled[valid], (0.5, 0.9))
    ratios = [float(np.median((noise / estimate)[valid & part])) for part in (filled <= faint, filled >= bright)]
    return max(ratios, key=lambda ratio: abs(np.log(ratio)))


def _psf_doubts(plane: Plane, pixel_scale: float | None, bundle: Bundle) -> list[str]:
    """Return the reason not to use a model for images with a PSF; none if it is the PSF of its population."""
    values, stated = _read(plane)
    population = _population(bundle)
    if population is None:
        return ["the PSF cannot be compared with that of the training images, which the model uses"]
    scale = stated or pixel_scale or bundle.contract.pixel_scale
    difference = psf_difference(values, population.psf, scale)
    if difference <= _LARGEST_PSF_DIFFERENCE:
        return []
    return [f"the PSF differs by {difference:.0%} of its peak from that of the training images, which the model uses"]


def psf_difference(values: Float[np.ndarray, "h w"], psf: GaussianPSF | ImagePSF, pixel_scale: float) -> float:
    """Return the largest difference between a PSF image and the PSF of a population, relative to the peak.

    Where fits determine the width, it is that of the best width.

    Args:
        values: PSF image; its sum is set to 1.
        psf: PSF of the population.
        pixel_scale: Of the image, arcsec.
    """
    kernel = np.nan_to_num(values)
    kernel = kernel / kernel.sum() if kernel.sum() > 0 else kernel
    if isinstance(psf, ImagePSF):
        return _image_difference(kernel, psf.kernel(pixel_scale).binned(1).kernel.numpy())
    offset_y, offset_x = ((np.arange(n) - (n - 1) / 2) * pixel_scale for n in kernel.shape)
    square = offset_y[:, None] ** 2 + offset_x**2

    def difference(sigma: float) -> float:
        expected = np.exp(-square / (2 * sigma**2))
        expected = expected / expected.sum()
        return float(np.abs(kernel - expected).max() / expected.max())

    return min(difference(psf.sigma * width) for width in ([1.0] if psf.known else _WIDTHS))


def _image_difference(first: Float[np.ndarray, "h w"], second: Float[np.ndarray, "k l"]) -> float:
    """Return the largest difference between two PSF images about their centres, relative to the peak of the second.

    An image with an odd number of pixels along a side and one with an even number are compared at the nearest pixels.
    """
    shape = tuple(map(max, zip(first.shape, second.shape, strict=True)))
    padded = []
    for image in (first, second):
        before = [(n - m) // 2 for n, m in zip(shape, image.shape, strict=True)]
        pads = [(low, n - m - low) for low, n, m in zip(before, shape, image.shape, strict=True)]
        padded.append(np.pad(image, pads))
    return float(np.abs(padded[0] - padded[1]).max() / padded[1].max())


def _population(bundle: Bundle) -> Population | None:
    """Return the population of the training images, if it is known."""
    if bundle.fit_settings is not None:
        return bundle.fit_settings.population
    name = bundle.contract.data.get("population")
    return get(name) if isinstance(name, str) and name in POPULATIONS else None
