"""The operations of a fit step on images as compiled kernels; each function returns None where they do not apply."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from darklens.kernels.calls import address, applies, call, lanes
from darklens.kernels.library import is_loaded, library

Maps = Float[Tensor, "b m m"]

_MIN_IMAGES = 16  # with fewer images PyTorch is done before the kernels are loaded or built


class _Band(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("values", "first")),
        *((name, ctypes.c_int64) for name in ("rows", "columns", "taps")),
    ]


class _Detector(ctypes.Structure):
    _fields_ = [
        ("band", _Band),
        *((name, ctypes.c_void_p) for name in ("first", "second")),
        ("width", ctypes.c_int64),
    ]


class _Photons(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("gain", "exposure", "extra")),
        *((name, ctypes.c_int64) for name in ("images", "pixels", "exposures", "threads")),
        *((name, ctypes.c_double) for name in ("sky", "area", "smallest_rate")),
    ]


def load_for(images: int) -> None:
    """Load the kernels, and build them if necessary, if there are enough images for that to save time.

    Until a process has loaded them, all functions here return None, and PyTorch computes, whose last bits differ.

    Args:
        images: The number of images of the whole task. For a task shared by processes, or one that may be resumed, the
            number of one part would let the last bits depend on how it was divided.
    """
    if images >= _MIN_IMAGES:
        library()


@dataclass(frozen=True)
class Band:
    """A banded matrix: each row is a run of values, and zero elsewhere.

    Attributes:
        values: The run of each row, t values long.
        first: The column at which each run starts.
        columns: The number of columns of the matrix.
        derivatives: First and second derivatives of the values with respect to ln of the width of the PSF.
    """

    values: Float[Tensor, "m t"]
    first: Int[Tensor, " m"]
    columns: int
    derivatives: tuple[Float[Tensor, "m t"], ...]

    @property
    def is_wide(self) -> bool:
        """Whether rows and columns fill a register, as the kernels require."""
        return min(len(self.values), self.columns) >= lanes()

    @property
    def structure(self) -> ctypes.Structure:
        """The matrix, as the kernels take it."""
        return _Band(address(self.values), address(self.first), len(self.values), self.columns, self.values.shape[1])

    def detector(self, width: int | None) -> ctypes.Structure:
        """Return the matrix as the kernels take a detector.

        Args:
            width: The index of the free ln width of the PSF among the parameters; None if it is known.
        """
        first, second = (None, None) if width is None else map(address, self.derivatives)
        return _Detector(self.structure, first, second, -1 if width is None else width)

    @classmethod
    def of(cls, matrix: Float[Tensor, "m s"], *derivatives: Float[Tensor, "m s"]) -> "Band":
        """Return the band of a matrix, and of its derivatives; all runs are as long as the longest."""
        nonzero = torch.stack([matrix, *derivatives]).ne(0).any(0)
        first = nonzero.int().argmax(1)
        taps = int((matrix.shape[1] - nonzero.flip(1).int().argmax(1) - first).max())
        first = first.clamp(max=matrix.shape[1] - taps)
        columns = first[:, None] + torch.arange(taps)
        values, *others = (v.gather(1, columns).contiguous() for v in (matrix, *derivatives))
        return cls(values, first, matrix.shape[1], tuple(others))


def observe(
    band: Band, brightness: Float[Tensor, "b k s s"], positions: Sequence[int], n: int
) -> Float[Tensor, "b n m m"] | None:
    """Return band @ plane @ band^T of each plane.

    Args:
        band: PSF and pixel integration along one axis, a matrix of m rows and s columns.
        brightness: k planes of surface brightness per image.
        positions: The index of each plane among the n planes of the result.
        n: Planes of the result. Those that get no plane are uninitialised.
    """
    rows = len(band.values)
    if not usable(brightness) or not band.is_wide:
        return None
    brightness = brightness.contiguous()
    out = brightness.new_empty(len(brightness), n, rows, rows)
    indices, matrix = torch.tensor(positions), band.structure
    sizes = (len(brightness), brightness.shape[1], n, torch.get_num_threads())
    call("fit_observe", matrix, *sizes, indices, brightness, out)
    return out


def normal_equations(
    slopes: Float[Tensor, "b q m m"], weight: Maps, residual: Maps
) -> tuple[Float[Tensor, "b q q"], Float[Tensor, "b q"]] | None:
    """Return the sums over pixels of weight * slopes * slopes and of weight * slopes * residual, in float64."""
    if not usable(slopes, weight, residual):
        return None
    slopes, weight, residual = (v.contiguous() for v in (slopes, weight, residual))
    b, q, *sides = slopes.shape
    curvature, rhs = (torch.empty(b, *shape, dtype=torch.float64) for shape in ((q, q), (q,)))
    size = (b, q, sides[0] * sides[1], torch.get_num_threads())
    call("fit_normal_equations", *size, slopes, weight, residual, curvature, rhs)
    return curvature, rhs


@dataclass(frozen=True)
class Photons:
    """The conversion between image units and photon counts; see `darklens.fit.noise.Noise`."""

    gain: Float[Tensor, "b 2"]
    exposure: Tensor
    extra: Float[Tensor, " b"]
    sky: float
    area: int
    smallest_rate: float

    def deviance(self, images: Maps, model: Maps) -> Float[Tensor, " b"] | None:
        """Return the Poisson deviance of each image."""
        if not usable(images, model, self.gain, self.exposure, self.extra):
            return None
        images, model, out = images.contiguous(), model.contiguous(), images.new_empty(len(images))
        photons = self.contiguous()  # keeps the arrays alive during the call
        call("fit_deviance", photons.structure(images), images, model, out)
        return out

    def weight(self, model: Maps) -> Maps | None:
        """Return the inverse variance of each pixel, in image units."""
        if not usable(model, self.gain, self.exposure, self.extra):
            return None
        model, out, photons = model.contiguous(), torch.empty_like(model), self.contiguous()
        call("fit_weight", photons.structure(model), model, out)
        return out

    def normal_equations(
        self, slopes: Float[Tensor, "n q m m"], images: Maps, model: Maps, rows: Int[Tensor, " b"] | None = None
    ) -> tuple[Float[Tensor, "b q q"], Float[Tensor, "b q"]] | None:
        """Return `normal_equations` with the weights of these counts and the residual images - model.

        Args:
            slopes: Derivatives of n models.
            images: Images.
            model: Models of the images.
            rows: The row of `slopes` of each image; None if n = b.
        """
        if not usable(slopes, images, model, self.gain, self.exposure, self.extra):
            return None
        slopes, images, model = (v.contiguous() for v in (slopes, images, model))
        b, q = len(images), slopes.shape[1]
        curvature, rhs = (torch.empty(b, *shape, dtype=torch.float64) for shape in ((q, q), (q,)))
        photons = self.contiguous()
        structure = photons.structure(images)
        call("fit_normal_equations_of_photons", structure, q, slopes, rows, images, model, curvature, rhs)
        return curvature, rhs

    def contiguous(self) -> "Photons":
        """Return the same values as contiguous arrays, as the kernels require."""
        gain, exposure, extra = (v.contiguous() for v in (self.gain, self.exposure, self.extra))
        return replace(self, gain=gain, exposure=exposure, extra=extra)

    def structure(self, maps: Maps) -> ctypes.Structure:
        """Return what the kernels need to know to convert such images; the arrays must outlive it."""
        pixels, exposures = maps[0].numel(), self.exposure[0].numel()
        sizes = (len(maps), pixels, exposures, torch.get_num_threads())
        arrays = (address(v) for v in (self.gain, self.exposure, self.extra))
        return _Photons(*arrays, *sizes, self.sky, self.area, self.smallest_rate)


def usable(*tensors: Tensor) -> bool:
    """Return whether the kernels are loaded and take such tensors: float32, on the CPU, and without gradients."""
    needs_gradient = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    return is_loaded() and not needs_gradient and all(applies(t) for t in tensors)
