"""The forward model of a fit: images of a smooth lens, alone or with perturbers, and their derivatives."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from darklens.constants import constant
from darklens.fit import masses
from darklens.fit.detector import Detector, ImagePSFDetector
from darklens.fit.noise import Gain, Maps, Noise
from darklens.fit.scene_lens import SceneLens
from darklens.fit.smooth import PSF, SmoothLens
from darklens.kernels import smooth_fit
from darklens.kernels.fields import Fields, Recipe, compile_fields

FitParameters = Float[Tensor, "b q"]
Kind = Literal["smooth", "points", "line"]
Lens = SmoothLens | SceneLens

_SCALE_STEP = 0.7  # largest step in ln scale
_ANY = (-math.inf, math.inf)
_WITHIN = (-2.8, 2.8)  # arcsec from the optical axis
_BOUNDS = {
    "mass": (0.0, math.inf),
    "x": _WITHIN,
    "y": _WITHIN,
    "angle": _ANY,
    "ln_length": (math.log(0.2), math.log(5.0)),
}
# Largest steps: arcsec^2, arcsec, arcsec, radians, ln arcsec.
_LARGEST_STEPS = {"mass": 0.05, "x": 0.2, "y": 0.2, "angle": 0.4, "ln_length": 0.5}


class Linearised(NamedTuple):
    """The models of b images, and the normal equations of a Gauss-Newton step from there.

    Attributes:
        light: Model images.
        curvature: Half the second derivatives of chi2.
        rhs: Minus half its first derivatives.
    """

    light: Maps
    curvature: Float[Tensor, "b q q"]
    rhs: Float[Tensor, "b q"]


class KeptSlopes(NamedTuple):
    """Where the derivatives of the models of b images are kept.

    Attributes:
        maps: Derivatives of n models; None if they are not needed.
        rows: The row of each image.
    """

    maps: Float[Tensor, "n q m m"] | None
    rows: Int[Tensor, " b"]


@dataclass(frozen=True)
class Model:
    """A smooth lens on a detector, with perturbers of one kind.

    The q free parameters are the p parameters of the lens, ln scale and offset of the image, then those of the
    perturbers.

    Attributes:
        lens: The smooth lens.
        detector: The pixels that observe it.
        kind: No perturber, point masses, or one line mass.
        blur: Width over which the line mass is smoothed, arcsec; see `masses.line_mass`.
    """

    lens: Lens
    detector: Detector | ImagePSFDetector
    kind: Kind = "smooth"
    blur: float = 0.0

    @property
    def n_smooth(self) -> int:
        """Number of parameters before those of the perturbers."""
        return len(self.lens.names) + 2

    def gain(self, parameters: FitParameters) -> Gain:
        """Return ln scale and offset."""
        return parameters[:, self.n_smooth - 2 : self.n_smooth]

    def expected(self, parameters: FitParameters) -> tuple[Maps, Float[Tensor, "b q m m"]]:
        """Return the model images, and their derivatives with respect to each free parameter."""
        p, q = self.n_smooth - 2, parameters.shape[1]
        if self._width is not None and not self._has_kernels(parameters):
            assert isinstance(self.detector, Detector)
            brightness = self._at_sample_points(brightness_and_slopes, parameters)
            observed, by_width = self.detector.observe_wider(brightness, parameters[:, self._width])
            observed[:, self._width + 1] = by_width
            light = observed[:, :1]
            slopes = torch.cat([observed[:, 1 : p + 1], light, torch.ones_like(light), observed[:, p + 1 :]], 1)
        else:  # the same without a copy
            slopes = self._observed(brightness_and_slopes, parameters, [p, *range(p), *range(p + 2, q)], q)
            slopes[:, p + 1] = 1
        return slopes[:, p] + parameters[:, p + 1, None, None], slopes

    def linearised(
        self, parameters: FitParameters, images: Maps, noise: Noise, gain: Gain, kept: KeptSlopes
    ) -> Linearised:
        """Return the model images and the normal equations, and keep the derivatives.

        Args:
            parameters: Parameters.
            images: Images on the detector of the model.
            noise: Their noise.
            gain: ln scale and offset for the noise.
            kept: Receives the derivatives.
        """
        p, q = self.n_smooth - 2, parameters.shape[1]
        if noise.sky is not None and self._has_kernels(parameters):
            assert self.detector.band is not None
            positions = constant((p, *range(p), *range(p + 2, q)), torch.long, parameters.device)
            x, y = self._positions
            return Linearised(
                *self._fields(brightness_and_slopes, parameters).linearised(
                    parameters,
                    x=x,
                    y=y,
                    detector=self.detector.band.detector(self._width),
                    positions=positions,
                    scale=p,
                    images=images,
                    photons=noise.photons(gain),
                    slopes=kept.maps,
                    rows=kept.rows,
                )
            )
        light, slopes = self.expected(parameters)
        if kept.maps is not None:
            kept.maps[kept.rows] = slopes
        return Linearised(light, *noise.normal_equations(slopes, images, light, gain))

    def _has_kernels(self, parameters: FitParameters) -> bool:
        """Return whether kernels observe the functions of this model."""
        band = self.detector.band
        return smooth_fit.usable(parameters) and band is not None and band.is_wide

    @property
    def _width(self) -> int | None:
        """The index of a free ln width of the PSF."""
        return self.lens.names.index(PSF) if PSF in self.lens.names else None

    def light(self, parameters: FitParameters) -> Maps:
        """Return the model images."""
        if self._width is not None and not self._has_kernels(parameters):
            assert isinstance(self.detector, Detector)
            brightness = self._at_sample_points(brightness_alone, parameters)
            observed, _ = self.detector.observe_wider(brightness, parameters[:, self._width])
        else:
            observed = self._observed(brightness_alone, parameters, [0], 1)
        return observed[:, 0] + parameters[:, self.n_smooth - 1, None, None]

    def _observed(
        self, function: Callable[..., Tensor], parameters: FitParameters, columns: list[int], n: int
    ) -> Float[Tensor, "b n m m"]:
        """Return n observed maps: those of `brightness_and_slopes` or `brightness_alone` at `columns`, others unset."""
        band = self.detector.band
        if band is not None and self._has_kernels(parameters):
            fields, (x, y) = self._fields(function, parameters), self._positions
            positions = constant(tuple(columns), torch.long, parameters.device)
            return fields.observed(parameters, x=x, y=y, detector=band.detector(self._width), positions=positions, n=n)
        return self.detector.observe_into(self._at_sample_points(function, parameters), columns, n)

    def _at_sample_points(self, function: Callable[..., Tensor], parameters: FitParameters) -> Float[Tensor, "b k s s"]:
        """Evaluate `brightness_and_slopes` or `brightness_alone` at the sample points of the detector."""
        x, y = self.detector.x.to(parameters), self.detector.y.to(parameters)
        if smooth_fit.usable(parameters):
            flat_x, flat_y = self._positions
            values = self._fields(function, parameters)(parameters, x=flat_x, y=flat_y)
            return values.reshape(*values.shape[:2], y.shape[-2], x.shape[-1])
        return function(self.lens, self.kind, self.blur, parameters, x, y)

    @property
    def _positions(self) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """The sample points, row by row."""
        x, y = self.detector.x, self.detector.y
        shape = y.shape[-2], x.shape[-1]
        return x.expand(shape).reshape(-1), y.expand(shape).reshape(-1)

    def _fields(self, function: Callable[..., Tensor], parameters: FitParameters) -> Fields:
        return _compiled(function, self.lens, self.kind, self.blur, parameters.shape[1])

    def apply_step(self, parameters: FitParameters, step: FitParameters) -> FitParameters:
        """Return the parameters after a step, with each component of the step limited and each parameter in bounds."""
        p = self.n_smooth - 2
        names = {"smooth": (), "points": masses.POINT, "line": masses.LINE}[self.kind]
        n_masses = (parameters.shape[1] - self.n_smooth) // max(1, len(names))
        others = (_SCALE_STEP, math.inf, *[_LARGEST_STEPS[name] for name in names] * n_masses)
        longest = torch.cat([3 * self.lens.spread.to(step), constant(others, step.dtype, step.device)])
        stepped = parameters + torch.maximum(torch.minimum(step, longest), -longest)
        lowest, highest = (
            constant(
                (sign * math.inf,) * 2 + tuple(_BOUNDS[name][k] for name in names) * n_masses, step.dtype, step.device
            )
            for k, sign in enumerate((-1, 1))
        )
        rest = torch.maximum(torch.minimum(stepped[:, p:], highest), lowest)
        return torch.cat([self.lens.bounded(stepped[:, :p]), rest], 1)

    @property
    def goes_on_after_cut_steps(self) -> bool:
        """Whether a step that its largest length turns uphill counts as far from convergence.

        Otherwise the fit stops there. The shipped models are calibrated with fits that do.
        """
        return isinstance(self.lens, SceneLens)

    def blocked(self, parameters: FitParameters, step: FitParameters) -> Bool[Tensor, "b q"] | None:
        """Return which parameters are at a bound that a step would cross; None if the lens does not tell."""
        if not isinstance(self.lens, SceneLens):
            return None
        p = self.n_smooth - 2
        outside = self.lens.blocked(parameters[:, :p], step[:, :p])
        return torch.cat([outside, torch.zeros_like(step[:, p:], dtype=torch.bool)], 1)

    def mirrored(self, parameters: FitParameters) -> FitParameters:
        """Return the parameters of the lens on the opposite side of its source, see `SmoothLens.mirrored`."""
        p = self.n_smooth - 2
        return torch.cat([self.lens.mirrored(parameters[:, :p]), parameters[:, p:]], 1)


def brightness_and_slopes(
    lens: Lens, kind: Kind, blur: float, parameters: FitParameters, x: Tensor, y: Tensor
) -> Float[Tensor, "b k s s"]:
    """Return the brightness at x, y above the offset, and its derivatives with respect to lens and perturbers.

    Units are those of the image.
    """
    smooth, scale, mass = _parts(lens, kind, blur, parameters, x, y)
    scene = lens.scene(smooth, x, y, [mass.alpha] if mass else [])
    observed = [scene.brightness[:, None], scene.slopes]
    if mass:
        observed.append(-(scene.by_beta_x[:, None] * mass.by_x + scene.by_beta_y[:, None] * mass.by_y))
    return torch.cat(observed, 1) * scale[:, None]


def brightness_alone(
    lens: Lens, kind: Kind, blur: float, parameters: FitParameters, x: Tensor, y: Tensor
) -> Float[Tensor, "b 1 s s"]:
    """Return the brightness at x, y above the offset, in image units."""
    smooth, scale, mass = _parts(lens, kind, blur, parameters, x, y)
    return (lens.brightness(smooth, x, y, [mass.alpha] if mass else []) * scale)[:, None]


def _parts(
    lens: Lens, kind: Kind, blur: float, parameters: FitParameters, x: Tensor, y: Tensor
) -> tuple[Float[Tensor, "b p"], Float[Tensor, "b 1 1"], masses.MassDeflections | None]:
    """Return the parameters of the smooth lens, the scale of the image, and the deflections of the perturbers."""
    p = len(lens.names)
    smooth, scale, mass_parameters = parameters[:, :p], parameters[:, p, None, None].exp(), parameters[:, p + 2 :]
    if kind == "smooth":
        return smooth, scale, None
    return (
        smooth,
        scale,
        masses.points(mass_parameters, x, y)
        if kind == "points"
        else masses.line_mass(mass_parameters, x, y, blur=blur),
    )


@lru_cache(maxsize=64)
def _compiled(function: Callable[..., Tensor], lens: Lens, kind: Kind, blur: float, n_parameters: int) -> Fields:
    """Return `brightness_and_slopes` or `brightness_alone` as compiled code."""
    x, y = torch.full((1, 1), 0.3), torch.full((1, 1), 0.7)
    recipe = Recipe(
        lambda *arguments: function(lens, kind, blur, *arguments), (torch.full((1, n_parameters), 0.1), x, y)
    )
    return compile_fields({"brightness": recipe}, "A fit with kernels", "set DARKLENS_KERNELS=0")["brightness"]
