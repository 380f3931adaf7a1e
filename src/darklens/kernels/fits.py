"""What each step of a fit does with images, in one pass each in place of several; None where kernels do not apply."""

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from darklens.kernels.calls import address, applies, call, lanes
from darklens.kernels.library import is_loaded, library

Maps = Float[Tensor, "b m m"]


_WORTH_LOADING = 16  # images: with fewer PyTorch is done before kernels are found, or built
SPHERE = (
    *("theta_E", "gamma1", "gamma2", "centre_x", "centre_y", "source_x", "source_y", "source_e1", "source_e2"),
    *("per_n", "power_offset", "peak", "ln_b", "b_by_ln_n", "ln_b_by_ln_n", "scale"),
)
SLOPES = (
    *("theta_E", "gamma1", "gamma2", "source_x", "source_y", "source_e1", "source_e2", "source_ln_R_e"),
    *("source_ln_n", "centre_x", "centre_y"),
)


class _Band(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("values", "first")),
        *((name, ctypes.c_int64) for name in ("rows", "columns", "taps")),
    ]


class _Photons(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("gain", "exposure", "extra")),
        *((name, ctypes.c_int64) for name in ("images", "pixels", "exposures", "threads")),
        *((name, ctypes.c_double) for name in ("sky", "area", "smallest_rate")),
    ]


def load_for(images: int) -> None:
    """Load the kernels, or build them, if that takes less time than they save for so many images.

    All that is here is PyTorch's until something in the process has loaded them. Work that is shared out, or may be
    interrupted, gives the number of all its images: that of a part would let last bits depend on who made it.
    """
    if images >= _WORTH_LOADING:
        library()


@dataclass(frozen=True)
class Band:
    """A matrix whose rows are runs of values among zeros.

    Attributes:
        values: Each row's run.
        first: The column at which it starts.
        columns: Of the matrix.
    """

    values: Float[Tensor, "m t"]
    first: Int[Tensor, " m"]
    columns: int

    @classmethod
    def of(cls, matrix: Float[Tensor, "m s"]) -> "Band":
        """Return a matrix as runs, as long as its longest."""
        used = matrix != 0
        first = used.int().argmax(1)
        taps = int((matrix.shape[1] - used.flip(1).int().argmax(1) - first).max())
        first = first.clamp(max=matrix.shape[1] - taps)
        return cls(matrix.gather(1, first[:, None] + torch.arange(taps)).contiguous(), first, matrix.shape[1])


def observed(
    band: Band, brightness: Float[Tensor, "b k s s"], places: Sequence[int], n: int
) -> Float[Tensor, "b n m m"] | None:
    """Return band @ plane @ band^T of each plane.

    Args:
        band: m runs.
        brightness: Planes.
        places: The place of each plane among the n of the result.
        n: Those without a plane are left as memory was.
    """
    rows = len(band.values)
    if not serve(brightness) or min(rows, band.columns) < lanes():
        return None
    brightness = brightness.contiguous()
    out = brightness.new_empty(len(brightness), n, rows, rows)
    at = torch.tensor(places)
    matrix = _Band(address(band.values), address(band.first), rows, band.columns, band.values.shape[1])
    call("fit_observe", matrix, len(brightness), brightness.shape[1], n, torch.get_num_threads(), at, brightness, out)
    return out


def lensed(
    band: Band,
    x: Float[Tensor, "1 s"],
    y: Float[Tensor, "s 1"],
    terms: Mapping[str, Float[Tensor, " b"]],
    names: Sequence[str],
    n: int,
) -> Float[Tensor, "b n m m"] | None:
    """Return what pixels see of an isothermal sphere with shear before Sersic light, and its derivatives.

    Args:
        band: The detector.
        x: Of its columns, arcsec.
        y: Of its rows, arcsec.
        terms: SPHERE.
        names: Derivatives, of SLOPES, in the order of the result; brightness comes after them.
        n: Maps of the result; those after brightness are left as memory was.
    """
    spheres = torch.stack([terms[name] for name in SPHERE], 1)
    rows = len(band.values)
    if not serve(spheres, x, y) or min(rows, band.columns) < lanes() or not set(names) <= set(SLOPES):
        return None
    out = x.new_empty(len(spheres), n, rows, rows)
    places = torch.tensor([len(names), *(names.index(name) if name in names else -1 for name in SLOPES)])
    matrix = _Band(address(band.values), address(band.first), rows, band.columns, band.values.shape[1])
    sizes = (len(spheres), n, torch.get_num_threads())
    call("fit_lensed", matrix, *sizes, places, x.contiguous(), y.contiguous(), spheres.contiguous(), out)
    return out


def normal_equations(
    slopes: Float[Tensor, "b q m m"], weight: Maps, difference: Maps
) -> tuple[Float[Tensor, "b q q"], Float[Tensor, "b q"]] | None:
    """Return the sums over pixels of weight * slopes * slopes and of weight * slopes * difference, in float64."""
    if not serve(slopes, weight, difference):
        return None
    slopes, weight, difference = (v.contiguous() for v in (slopes, weight, difference))
    b, q, *sides = slopes.shape
    curvature, pull = (torch.empty(b, *shape, dtype=torch.float64) for shape in ((q, q), (q,)))
    size = (b, q, sides[0] * sides[1], torch.get_num_threads())
    call("fit_normal_equations", *size, slopes, weight, difference, curvature, pull)
    return curvature, pull


@dataclass(frozen=True)
class Photons:
    """How image units are photon counts; see `darklens.fit.noise.Noise`."""

    gain: Float[Tensor, "b 2"]
    exposure: Tensor
    extra: Float[Tensor, " b"]
    sky: float
    area: int
    smallest_rate: float

    def deviance(self, images: Maps, model: Maps) -> Float[Tensor, " b"] | None:
        """Return the deviance."""
        if not serve(images, model, self.gain, self.exposure, self.extra):
            return None
        images, model, out = images.contiguous(), model.contiguous(), images.new_empty(len(images))
        kept = self._contiguous()  # alive until the call is over
        call("fit_deviance", kept._structure(images), images, model, out)
        return out

    def weight(self, model: Maps) -> Maps | None:
        """Return one over the variance of each block, in image units."""
        if not serve(model, self.gain, self.exposure, self.extra):
            return None
        model, out, kept = model.contiguous(), torch.empty_like(model), self._contiguous()
        call("fit_weight", kept._structure(model), model, out)
        return out

    def normal_equations(
        self, slopes: Float[Tensor, "b q m m"], images: Maps, model: Maps
    ) -> tuple[Float[Tensor, "b q q"], Float[Tensor, "b q"]] | None:
        """Return the function's of this name, of the weights here and the difference of images and model."""
        if not serve(slopes, images, model, self.gain, self.exposure, self.extra):
            return None
        slopes, images, model = (v.contiguous() for v in (slopes, images, model))
        b, q = slopes.shape[:2]
        curvature, pull = (torch.empty(b, *shape, dtype=torch.float64) for shape in ((q, q), (q,)))
        kept = self._contiguous()
        given = (kept._structure(images), q, slopes, images, model)
        call("fit_normal_equations_of_photons", *given, curvature, pull)
        return curvature, pull

    def _contiguous(self) -> "Photons":
        gain, exposure, extra = (v.contiguous() for v in (self.gain, self.exposure, self.extra))
        return replace(self, gain=gain, exposure=exposure, extra=extra)

    def _structure(self, maps: Maps) -> _Photons:
        pixels, exposures = maps[0].numel(), self.exposure[0].numel()
        sizes = (len(maps), pixels, exposures, torch.get_num_threads())
        own = (address(v) for v in (self.gain, self.exposure, self.extra))
        return _Photons(*own, *sizes, self.sky, self.area, self.smallest_rate)


def serve(*tensors: Tensor) -> bool:
    """Return whether kernels are loaded and take such tensors: float32, on the CPU, of which nothing learns."""
    learns = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    return is_loaded() and not learns and all(applies(t) for t in tensors)
