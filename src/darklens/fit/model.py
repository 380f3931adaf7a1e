"""What an image may be: a smooth lens, alone or with masses beside it, as unknowns to images and derivatives."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from darklens.compilation import compile_function
from darklens.fit import masses
from darklens.fit.detector import Detector
from darklens.fit.noise import Gain, Maps
from darklens.fit.smooth import PSF, SmoothLens
from darklens.kernels import smooth_fit

Unknown = Float[Tensor, "b q"]
Kind = Literal["smooth", "points", "line"]

_SCALE_STEP = 0.7  # in ln scale
_REACH = 2.8  # arcsec of a mass from the optical axis along x and y
_SHORTEST, _LONGEST = 0.2, 5.0  # arcsec, of a line
_STEPS = {"mass": 0.05, "x": 0.2, "y": 0.2, "angle": 0.4, "ln_length": 0.5}


@dataclass(frozen=True)
class Model:
    """A smooth lens on a detector with masses of a kind beside it.

    The unknowns are the p parameters of the lens, ln scale and offset of the image, then those of the masses.

    Attributes:
        lens: The smooth lens.
        detector: Where it is seen.
        kind: What is beside it.
        blur: Of the line, arcsec; see `masses.one_line`.
        compiled: Whether light is computed by fused code: faster, once each kind of model has waited for its making.
    """

    lens: SmoothLens
    detector: Detector
    kind: Kind = "smooth"
    blur: float = 0.0
    compiled: bool = False

    @property
    def smooth(self) -> int:
        """The number of unknowns before those of the masses."""
        return len(self.lens.names) + 2

    def gain(self, unknown: Unknown) -> Gain:
        """Return ln scale and offset."""
        return unknown[:, self.smooth - 2 : self.smooth]

    def expected(self, unknown: Unknown) -> tuple[Maps, Float[Tensor, "b q m m"]]:
        """Return the images that the unknowns mean, and their derivatives by each of them."""
        p = self.smooth - 2
        if (observed := self._by_kernel(unknown, self.lens.names)) is not None:
            observed[:, p + 1] = 1
            return observed[:, p] + unknown[:, p + 1, None, None], observed
        brightness = self._at_samples(brightness_and_slopes, unknown)
        if PSF in self.lens.names:
            at = self.lens.names.index(PSF)
            observed, by_width = self.detector.observe_wider(brightness, unknown[:, at])
            observed[:, at + 1] = by_width
            light = observed[:, :1]
            slopes = torch.cat([observed[:, 1 : p + 1], light, torch.ones_like(light), observed[:, p + 1 :]], 1)
        else:  # the same without a copy
            q = brightness.shape[1] + 1
            slopes = self.detector.observe_into(brightness, [p, *range(p), *range(p + 2, q)], q)
            slopes[:, p + 1] = 1
        return slopes[:, p] + unknown[:, p + 1, None, None], slopes

    def light(self, unknown: Unknown) -> Maps:
        """Return the images that the unknowns mean."""
        if (kernels := self._by_kernel(unknown, [])) is not None:
            return kernels[:, 0] + unknown[:, self.smooth - 1, None, None]
        brightness = self._at_samples(brightness_alone, unknown)[:, None]
        if PSF in self.lens.names:
            observed, _ = self.detector.observe_wider(brightness, unknown[:, self.lens.names.index(PSF)])
        else:
            observed = self.detector.observe(brightness)
        return observed[:, 0] + unknown[:, self.smooth - 1, None, None]

    def _by_kernel(self, unknown: Unknown, names: Sequence[str]) -> Float[Tensor, "b n m m"] | None:
        """Return derivatives by some parameters of a lens alone, brightness, and if asked a place for the offset's."""
        if self.kind != "smooth" or not self.lens.is_sphere or not smooth_fit.usable(unknown):
            return None
        p = self.smooth - 2
        terms = self.lens.sphere_terms(unknown[:, :p]) | {"scale": unknown[:, p].exp()}
        detector = self.detector
        n = len(names) + (2 if names else 1)
        return smooth_fit.lensed_images(detector.band, detector.x, detector.y, terms, names, n)

    def _at_samples(self, law: Callable[..., Tensor], unknown: Unknown) -> Tensor:
        """Return what a law says of the detector's sample points."""
        x, y = self.detector.x.to(unknown), self.detector.y.to(unknown)
        if not self.compiled:
            return law(self.lens, self.kind, self.blur, unknown, x, y)
        # A single image would wait for a kernel of its own.
        several = unknown if len(unknown) > 1 else unknown.repeat(2, 1)
        return _fused(law)(self.lens, self.kind, self.blur, several, x, y)[: len(unknown)]

    def apply_step(self, unknown: Unknown, step: Unknown) -> Unknown:
        """Return unknowns after a step, which is shortened where it is wild, within the bounds of each."""
        p = self.smooth - 2
        smooth = [3 * self.lens.spread.to(step), step.new_tensor([_SCALE_STEP, torch.inf])]
        names = {"smooth": (), "points": masses.POINT, "line": masses.LINE}[self.kind]
        several = (unknown.shape[1] - self.smooth) // max(1, len(names))
        longest = torch.cat([*smooth, step.new_tensor([_STEPS[name] for name in names] * several)])
        apply_step = unknown + torch.maximum(torch.minimum(step, longest), -longest)
        return torch.cat(
            [
                self.lens.bounded(apply_step[:, :p]),
                apply_step[:, p : p + 2],
                self._bounded(apply_step[:, p + 2 :], names),
            ],
            1,
        )

    def mirrored(self, unknown: Unknown) -> Unknown:
        """Return unknowns of the lens on the other side of its source, see `SmoothLens.mirrored`."""
        p = self.smooth - 2
        return torch.cat([self.lens.mirrored(unknown[:, :p]), unknown[:, p:]], 1)

    def _bounded(self, unknown: Unknown, names: tuple[str, ...]) -> Unknown:
        if not names:
            return unknown
        mass_values = unknown.reshape(len(unknown), -1, len(names)).unbind(2)
        bounds: dict[str, Callable[[Tensor], Tensor]] = {
            "mass": lambda v: v.clamp_min(0),
            "x": lambda v: v.clamp(-_REACH, _REACH),
            "y": lambda v: v.clamp(-_REACH, _REACH),
            "angle": lambda v: v,
            "ln_length": lambda v: v.exp().clamp(_SHORTEST, _LONGEST).log(),
        }
        kept = [bounds[name](v) for name, v in zip(names, mass_values, strict=True)]
        return torch.stack(kept, 2).flatten(1)


def brightness_and_slopes(
    lens: SmoothLens, kind: Kind, blur: float, unknown: Unknown, x: Tensor, y: Tensor
) -> Float[Tensor, "b k s s"]:
    """Return brightness at positions in image units above the offset, and its derivatives by lens and masses."""
    smooth, scale, mass = _parts(lens, kind, blur, unknown, x, y)
    scene = lens.scene(smooth, x, y, [mass.alpha] if mass else [])
    observed = [scene.brightness[:, None], scene.slopes]
    if mass:
        observed.append(-(scene.by_beta_x[:, None] * mass.by_x + scene.by_beta_y[:, None] * mass.by_y))
    return torch.cat(observed, 1) * scale[:, None]


def brightness_alone(
    lens: SmoothLens, kind: Kind, blur: float, unknown: Unknown, x: Tensor, y: Tensor
) -> Float[Tensor, "b s s"]:
    """Return brightness at positions in image units above the offset."""
    smooth, scale, mass = _parts(lens, kind, blur, unknown, x, y)
    return lens.brightness(smooth, x, y, [mass.alpha] if mass else []) * scale


def _parts(
    lens: SmoothLens, kind: Kind, blur: float, unknown: Unknown, x: Tensor, y: Tensor
) -> tuple[Float[Tensor, "b p"], Float[Tensor, "b 1 1"], masses.Masses | None]:
    """Return the parameters of the lens, the image's scale, and the masses beside it."""
    p = len(lens.names)
    smooth, scale, mass_values = unknown[:, :p], unknown[:, p, None, None].exp(), unknown[:, p + 2 :]
    if kind == "smooth":
        return smooth, scale, None
    return (
        smooth,
        scale,
        masses.points(mass_values, x, y) if kind == "points" else masses.one_line(mass_values, x, y, blur=blur),
    )


@cache
def _fused(law: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return compile_function(law, dynamic=True)
