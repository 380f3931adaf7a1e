"""The forward model of a fit: images of a smooth lens, alone or with perturbers, and their derivatives."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from darklens.constants import constant
from darklens.fit import masses
from darklens.fit.detector import Detector, ImagePSFDetector
from darklens.fit.noise import Gain, Maps
from darklens.fit.scene_lens import SceneLens
from darklens.fit.smooth import PSF, SmoothLens
from darklens.kernels import smooth_fit
from darklens.kernels.fields import Fields, Recipe, compile_fields

FitParameters = Float[Tensor, "b q"]
Kind = Literal["smooth", "points", "line"]
Lens = SmoothLens | SceneLens

_SCALE_STEP = 0.7  # largest step in ln scale
_LARGEST_COORDINATE = 2.8  # arcsec from the optical axis, x and y of a perturber
_SHORTEST, _LONGEST = 0.2, 5.0  # arcsec, length of a line mass
# Largest steps: arcsec^2, arcsec, arcsec, radians, ln arcsec.
_LARGEST_STEPS = {"mass": 0.05, "x": 0.2, "y": 0.2, "angle": 0.4, "ln_length": 0.5}


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
        if PSF in self.lens.names:
            assert isinstance(self.detector, Detector)
            brightness = self._at_sample_points(brightness_and_slopes, parameters)
            column = self.lens.names.index(PSF)
            observed, by_width = self.detector.observe_wider(brightness, parameters[:, column])
            observed[:, column + 1] = by_width
            light = observed[:, :1]
            slopes = torch.cat([observed[:, 1 : p + 1], light, torch.ones_like(light), observed[:, p + 1 :]], 1)
        else:  # the same without a copy
            slopes = self._observed(brightness_and_slopes, parameters, [p, *range(p), *range(p + 2, q)], q)
            slopes[:, p + 1] = 1
        return slopes[:, p] + parameters[:, p + 1, None, None], slopes

    def light(self, parameters: FitParameters) -> Maps:
        """Return the model images."""
        if PSF in self.lens.names:
            assert isinstance(self.detector, Detector)
            brightness = self._at_sample_points(brightness_alone, parameters)
            observed, _ = self.detector.observe_wider(brightness, parameters[:, self.lens.names.index(PSF)])
        else:
            observed = self._observed(brightness_alone, parameters, [0], 1)
        return observed[:, 0] + parameters[:, self.n_smooth - 1, None, None]

    def _observed(
        self, function: Callable[..., Tensor], parameters: FitParameters, columns: list[int], n: int
    ) -> Float[Tensor, "b n m m"]:
        """Return n observed maps: those of `brightness_and_slopes` or `brightness_alone` at `columns`, others unset."""
        band = self.detector.band
        if smooth_fit.usable(parameters) and band is not None and band.is_wide:
            fields, (x, y) = self._fields(function, parameters), self._positions
            positions = constant(tuple(columns), torch.long, parameters.device)
            return fields.observed(parameters, x=x, y=y, band=band.structure, positions=positions, n=n)
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
        return torch.cat(
            [
                self.lens.bounded(stepped[:, :p]),
                stepped[:, p : p + 2],
                self._bounded(stepped[:, p + 2 :], names),
            ],
            1,
        )

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

    def _bounded(self, parameters: FitParameters, names: tuple[str, ...]) -> FitParameters:
        if not names:
            return parameters
        mass_parameters = parameters.reshape(len(parameters), -1, len(names)).unbind(2)
        bounds: dict[str, Callable[[Tensor], Tensor]] = {
            "mass": lambda v: v.clamp_min(0),
            "x": lambda v: v.clamp(-_LARGEST_COORDINATE, _LARGEST_COORDINATE),
            "y": lambda v: v.clamp(-_LARGEST_COORDINATE, _LARGEST_COORDINATE),
            "angle": lambda v: v,
            "ln_length": lambda v: v.exp().clamp(_SHORTEST, _LONGEST).log(),
        }
        bounded = [bounds[name](v) for name, v in zip(names, mass_parameters, strict=True)]
        return torch.stack(bounded, 2).flatten(1)


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
