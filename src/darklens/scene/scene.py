"""Scenes: mass profiles, source light and lens light, and the functions that render them."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from darklens.physics.duals import slopes_of, value_of, variable
from darklens.scene.components import LightModel, MassModel, add_components
from darklens.scene.imaging import Detector
from darklens.scene.parameter_table import Parameters, ParameterTable, require_values
from darklens.scene.profile import LightProfile, MassProfile, Profile
from darklens.scene.source_grid import SourceFrame, SourceGrid

_SMALLEST_SIZE = 1e-3  # arcsec, of a source
Planes = Float[Tensor, "b k rows columns"]


class Scene(ParameterTable):
    """A lens, its source and its light.

    Args:
        mass: One or more mass profiles.
        source: One or more light profiles in the source plane.
        lens_light: Light profiles in the lens plane.

    Attributes:
        profiles: The components by name.
        names: Names of the p free parameters.
        free: Starts, bounds and priors of the free parameters.
        amplitude_names: Names of the linear amplitudes, source before lens light.
        positive: Whether each amplitude must be at least zero.

    Raises:
        ConfigError: If a profile is of the wrong sort, two components have the same name, or a parameter is tied to
            one that does not exist.
    """

    def __init__(
        self,
        mass: MassModel | MassProfile | Sequence[MassProfile],
        source: LightModel | LightProfile | Sequence[LightProfile],
        lens_light: LightModel | LightProfile | Sequence[LightProfile] = (),
    ) -> None:
        self.mass = mass if isinstance(mass, MassModel) else MassModel(mass)
        self.source = source if isinstance(source, LightModel) else LightModel(source)
        self.lens_light = lens_light if isinstance(lens_light, LightModel) else LightModel(lens_light)
        profiles: dict[str, Profile] = {}
        add_components(profiles, self.mass.profiles, None)
        add_components(profiles, self.source.profiles, "source")
        add_components(profiles, self.lens_light.profiles, "light")
        super().__init__(profiles)
        self.amplitude_names = [
            f"{name}.amplitude" + (f"_{k}" if profile.n_basis > 1 else "")
            for name, profile in self.profiles.items()
            if isinstance(profile, LightProfile)
            for k in range(profile.n_basis)
        ]
        self.positive = [
            profile.positive
            for profile in self.profiles.values()
            if isinstance(profile, LightProfile)
            for _ in range(profile.n_basis)
        ]

    @property
    def has_cusps(self) -> bool:
        """Whether a light profile has a cusp."""
        return any(p.has_cusp for p in (*self.source.profiles, *self.lens_light.profiles))

    @cached_property
    @torch.inference_mode(False)
    def amplitude_prior(self) -> Float[Tensor, "l l"] | None:
        """Inverse covariance of the Gaussian prior on the amplitudes, float64; None if there is none."""
        lights = [*self.source.profiles, *self.lens_light.profiles]
        blocks = [profile.amplitude_prior() for profile in lights]
        if all(block is None for block in blocks):
            return None
        total = torch.zeros(len(self.positive), len(self.positive), dtype=torch.float64)
        first = 0
        for profile, block in zip(lights, blocks, strict=True):
            last = first + profile.n_basis
            if block is not None:
                total[first:last, first:last] = block
            first = last
        return total

    @property
    def source_grid(self) -> SourceGrid | None:
        """The source grid, if there is one."""
        return next((profile for profile in self.source.profiles if isinstance(profile, SourceGrid)), None)

    def scaled(self, factor: float) -> "Scene":
        """Return the scene for an image multiplied by a factor: priors on amplitudes change."""
        if factor == 1 or self.amplitude_prior is None:
            return self
        source, light = ([p.scaled(factor) for p in model.profiles] for model in (self.source, self.lens_light))
        return Scene(self.mass, source, light)

    def softened(self, core: float) -> "Scene":
        """Return the scene with cores of at least `core`, arcsec, in light profiles with a cusp.

        The brightness of a cusp in an image depends on the distance to the nearest sampling position, so chi2 has a
        local minimum at each of them. A core of a tenth of the sampling distance removes these.
        """
        source, light = ([p.softened(core) for p in model.profiles] for model in (self.source, self.lens_light))
        return Scene(self.mass, source, light)

    @classmethod
    def from_yaml(cls, name_or_path: Path | str, overrides: Sequence[str] = ()) -> "Scene":
        """Return a scene from a YAML file, or a scene of the package by name, such as `epl-shear`.

        Args:
            name_or_path: A YAML file, or a name.
            overrides: Such as `epl.slope=2`.

        Raises:
            ConfigError: If there is no such scene, or a key or value is wrong.
        """
        from darklens.scene.specification import get  # imported here: it builds scenes

        return get(str(name_or_path), overrides).scene()

    def to_yaml(self) -> str:
        """Return the scene as YAML, from which `from_yaml` restores it."""
        from darklens.scene.specification import to_yaml

        return to_yaml(self)

    @property
    def structure(self) -> tuple[Any, ...]:
        """All that determines `planes` and `slope_planes` but their arguments."""
        logs = tuple(parameter.log for parameter in self.free)
        return logs, tuple(
            (profile in self.source.profiles, profile.structure, tuple(self._columns[name].items()))
            for name, profile in self.profiles.items()
        )

    # ------------------------------------------------------------------ rendering
    def deflection(self, parameters: Parameters, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the total deflection at x and y, arcsec, broadcast with (b, rows, columns)."""
        alpha_x, alpha_y = self.deflection_planes(self.complete(parameters), x, y).unbind(1)
        return alpha_x, alpha_y

    def deflection_planes(self, complete: Float[Tensor, "b c"], x: Tensor, y: Tensor) -> Planes:
        """Return the `deflection` along x and y as planes (b, 2, rows, columns), from the result of `complete`."""
        alpha = self._deflection(complete, x, y)
        return torch.stack([part.expand(len(complete), -1, -1) for part in alpha], 1)

    def _deflection(self, complete: Float[Tensor, "b c"], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        alpha_x, alpha_y = torch.zeros_like(x + y), torch.zeros_like(x + y)
        for name, profile in self.profiles.items():
            if isinstance(profile, MassProfile):
                value = self._values(name, complete)
                along, across = profile.law(*_centred(x, y, value), **value)
                alpha_x, alpha_y = alpha_x + along, alpha_y + across
        return alpha_x, alpha_y

    def basis(self, parameters: Parameters, x: Tensor, y: Tensor, *, lens_light: bool = True) -> Planes:
        """Return the surface brightness of all light profiles at x and y, for unit amplitudes.

        Args:
            parameters: (b, p), as `names`.
            x: Positions (1, columns), arcsec.
            y: Positions (rows, 1), arcsec.
            lens_light: Whether to return the profiles of the lens light too, after those of the source.
        """
        return self.planes(self.complete(parameters), x, y, lens_light=lens_light)

    def planes(self, complete: Float[Tensor, "b c"], x: Tensor, y: Tensor, *, lens_light: bool = True) -> Planes:
        """Return what `basis` returns, from the result of `complete`."""
        return self.lensed(complete, x, y, self._deflection(complete, x, y), lens_light=lens_light)

    def lensed(
        self,
        complete: Float[Tensor, "b c"],
        x: Tensor,
        y: Tensor,
        alpha: tuple[Tensor, Tensor],
        *,
        lens_light: bool = True,
    ) -> Planes:
        """Return what `basis` returns, from the result of `complete` and the deflections (b, rows, columns), arcsec."""
        alpha_x, alpha_y = alpha
        planes = []
        for name, profile in self.profiles.items():
            if isinstance(profile, LightProfile) and (lens_light or profile in self.source.profiles):
                value = self._values(name, complete)
                at = (x - alpha_x, y - alpha_y) if profile in self.source.profiles else _full(x, y)
                at = self.in_grid(profile, complete, at)[0]
                planes.append(profile.basis(*_centred(*at, value), **value).expand(len(complete), -1, -1, -1))
        return planes[0] if len(planes) == 1 else torch.cat(planes, 1)

    def render(
        self, parameters: Parameters, amplitudes: Float[Tensor, "b l"], detector: Detector
    ) -> Float[Tensor, "b rows columns"]:
        """Return noise-free images without sky: the mean surface brightness in each pixel of the detector.

        Args:
            parameters: (b, p), as `names`.
            amplitudes: (b, l), as `amplitude_names`.
            detector: Pixels and PSF.
        """
        x, y = detector.positions(parameters)
        light = (self.basis(parameters, x, y) * amplitudes[:, :, None, None]).sum(1)
        return detector.observe(light)

    def image(
        self, values: Mapping[str, float], amplitudes: Mapping[str, float], detector: Detector
    ) -> Float[np.ndarray, "rows columns"]:
        """Return one noise-free image as an array, from parameter values and amplitudes by name.

        Raises:
            ConfigError: If a value or an amplitude is missing, or is not one of the scene.
        """
        require_values("amplitude", self.amplitude_names, amplitudes)
        weights = torch.tensor([[float(amplitudes[name]) for name in self.amplitude_names]], dtype=torch.float64)
        return self.render(self.pack(values), weights, detector)[0].numpy()

    def slopes(self, internal: Parameters, amplitudes: Float[Tensor, "b l"], detector: Detector) -> Planes:
        """Return derivatives of the sampled brightness with respect to internal parameters, (b, p, rows, columns).

        Forward-mode derivatives, chained through the source plane: the derivative with respect to a mass parameter is
        minus the gradient of the source brightness times the derivative of the deflection.
        """
        x, y = detector.positions(internal)
        return self.slope_planes(self.complete(self.external(internal)), amplitudes, x, y)

    def slope_planes(
        self, complete: Float[Tensor, "b c"], amplitudes: Float[Tensor, "b l"], x: Tensor, y: Tensor
    ) -> Planes:
        """Return the `slopes` at x (1, columns) and y (rows, 1), arcsec, from the result of `complete`."""
        return self.slopes_and_gradient(complete, amplitudes, x, y)[0]

    def slopes_and_gradient(
        self,
        complete: Float[Tensor, "b c"],
        amplitudes: Float[Tensor, "b l"],
        x: Tensor,
        y: Tensor,
        extra_deflections: Sequence[tuple[Tensor, Tensor]] = (),
    ) -> tuple[Planes, tuple[Tensor, Tensor], Tensor, Tensor]:
        """Return the `slopes`, the total deflection, and the gradient of the source brightness, see `source_gradient`.

        Args:
            complete: Result of `complete`.
            amplitudes: (b, l), as `amplitude_names`.
            x: Positions (1, columns), arcsec.
            y: Positions (rows, 1), arcsec.
            extra_deflections: Deflections beside those of the scene, x and y components (b, rows, columns), arcsec.
        """
        slopes: list[Any] = [None] * len(self.names)

        def add(column: int, plane: Any) -> None:
            before = slopes[column]
            slopes[column] = plane if before is None else before + plane

        (alpha_x, alpha_y), by_mass = self._deflection_slopes(complete, x, y)
        for extra_x, extra_y in extra_deflections:
            alpha_x, alpha_y = alpha_x + extra_x, alpha_y + extra_y
        gradients: list[tuple[Tensor, Tensor]] = []  # of the light profiles of the source
        first = 0
        for name, profile in self.profiles.items():
            if not isinstance(profile, LightProfile):
                continue
            is_source = profile in self.source.profiles
            at = (x - alpha_x, y - alpha_y) if is_source else _full(x, y)
            value, columns = self._variables(name, complete)
            weight = amplitudes[:, first : first + profile.n_basis, None, None]
            first += profile.n_basis
            placed, scale, frame = self.in_grid(profile, complete, at)
            by_symbol = _brightness_slopes(profile, placed, value, weight)
            if frame is not None:
                by_symbol |= {symbol: scale * by_symbol[symbol] for symbol in ("x", "y")}
                for column, plane in frame.changes(at, by_symbol["x"], by_symbol["y"]):
                    add(column, plane)
            if is_source:
                gradients.append((by_symbol["x"], by_symbol["y"]))
            by_symbol |= {"centre_x": -by_symbol.pop("x"), "centre_y": -by_symbol.pop("y")}
            for symbol, column in columns.items():
                if symbol in by_symbol:
                    add(column, by_symbol[symbol])
        gradient_x, gradient_y = gradients[0] if gradients else (torch.zeros_like(alpha_x), torch.zeros_like(alpha_x))
        for other_x, other_y in gradients[1:]:
            gradient_x, gradient_y = gradient_x + other_x, gradient_y + other_y
        for column, by_x, by_y in by_mass:
            add(column, -(gradient_x * by_x + gradient_y * by_y))
        shape = (len(complete), y.shape[-2], x.shape[-1])
        planes = []
        for column, plane in enumerate(slopes):
            whole = (complete.new_zeros(shape) if plane is None else plane).expand(shape)
            planes.append(whole * complete[:, column, None, None] if self.free[column].log else whole)
        stacked = torch.stack(planes, 1) if planes else complete.new_zeros(shape[0], 0, *shape[1:])
        return stacked, (alpha_x, alpha_y), gradient_x, gradient_y

    def _deflection_slopes(
        self, complete: Float[Tensor, "b c"], x: Tensor, y: Tensor
    ) -> tuple[tuple[Tensor, Tensor], list[tuple[int, Any, Any]]]:
        """Return the total deflection, and columns of mass parameters with derivatives of the deflection by them."""
        by_mass: list[tuple[int, Any, Any]] = []
        alpha_x, alpha_y = torch.zeros_like(x + y), torch.zeros_like(x + y)
        for name, profile in self.profiles.items():
            if not isinstance(profile, MassProfile):
                continue
            value, columns = self._variables(name, complete)
            at = _centred(x, y, value)
            along, across = profile.law(*at, **value)
            alpha_x, alpha_y = alpha_x + value_of(along), alpha_y + value_of(across)
            for symbol in {**slopes_of(along), **slopes_of(across)}:
                pair = (slopes_of(v).get(symbol, 0.0) for v in (along, across))
                by_mass.append((columns[symbol], *pair))
        return (alpha_x, alpha_y), by_mass

    def source_frame(self, complete: Float[Tensor, "b c"], rays: Float[Tensor, "3 m"]) -> SourceFrame:
        """Return centre and size of the image of some rays in the source plane, with their derivatives.

        Args:
            complete: Result of `complete`.
            rays: Positions x and y in the image plane, arcsec, and weights whose sum is one.
        """
        x, y, weights = (row[None] for row in rays.to(complete))
        alpha, by_mass = self._deflection_slopes(complete, x, y)
        centre, away = [], []
        shape = (len(complete), 1, x.shape[1])
        for at, by in zip((x, y), alpha, strict=True):
            traced = (at - by).expand(shape)
            middle = (weights * traced).sum((1, 2))
            centre.append(middle)
            away.append(traced - middle[:, None, None])
        squared = (weights * (away[0] ** 2 + away[1] ** 2)).sum((1, 2)).clamp_min(_SMALLEST_SIZE**2)
        slopes: dict[int, tuple[Any, Any, Any]] = {}
        for column, slope_x, slope_y in by_mass:
            by_x, by_y = (torch.as_tensor(slope).to(complete).expand(shape) for slope in (slope_x, slope_y))
            shift_x, shift_y = (-(weights * by).sum((1, 2)) for by in (by_x, by_y))
            growth = -(weights * (away[0] * by_x + away[1] * by_y)).sum((1, 2)) / squared
            before = slopes.get(column, (0.0, 0.0, 0.0))
            slopes[column] = before[0] + shift_x, before[1] + shift_y, before[2] + growth  # of shared parameters
        return SourceFrame(centre[0], centre[1], squared.sqrt(), slopes)

    def in_grid(
        self, profile: LightProfile, complete: Float[Tensor, "b c"], at: tuple[Tensor, Tensor]
    ) -> tuple[tuple[Tensor, Tensor], Tensor | float, SourceFrame | None]:
        """Return positions at which to evaluate a profile, their scale, and the frame of a source grid that has one."""
        if not isinstance(profile, SourceGrid) or profile.rays is None:
            return at, 1.0, None
        frame = self.source_frame(complete, profile.rays)
        return profile.in_grid(at, frame), profile.scale(frame), frame

    def source_gradient(
        self, parameters: Parameters, amplitudes: Float[Tensor, "b l"], x: Tensor, y: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the gradient of the source brightness at the source-plane positions of x and y, (b, rows, columns).

        A small extra deflection alpha changes the brightness by minus the scalar product of alpha and this gradient.

        Args:
            parameters: (b, p), as `names`.
            amplitudes: (b, l), as `amplitude_names`.
            x: Positions in the image plane (1, columns), arcsec.
            y: Positions (rows, 1), arcsec.
        """
        complete = self.complete(parameters)
        alpha_x, alpha_y = self._deflection(complete, x, y)
        gradient_x, gradient_y = torch.zeros_like(alpha_x), torch.zeros_like(alpha_y)
        first = 0
        for name, profile in self.profiles.items():
            if isinstance(profile, LightProfile) and profile in self.source.profiles:
                weight = amplitudes[:, first : first + profile.n_basis, None, None]
                first += profile.n_basis
                value = self._values(name, complete)
                at, scale, _ = self.in_grid(profile, complete, (x - alpha_x, y - alpha_y))
                slopes = _brightness_slopes(profile, at, value, weight)
                gradient_x, gradient_y = gradient_x + scale * slopes["x"], gradient_y + scale * slopes["y"]
        return gradient_x, gradient_y


def _brightness_slopes(
    profile: LightProfile, at: tuple[Tensor, Tensor], value: dict[str, Any], weight: Tensor
) -> dict[str, Any]:
    """Return derivatives of the brightness by x, y and the variables in `value`, whose centre is removed."""
    centre = [value_of(value.pop(symbol)) for symbol in ("centre_x", "centre_y")]
    px, py = (variable(s, v - c) for s, v, c in zip(("x", "y"), at, centre, strict=True))
    return slopes_of(profile.brightness(px, py, weight, **value))


def _full(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return positions in the image plane as (1, rows, columns)."""
    shape = (1, y.shape[-2], x.shape[-1])
    return x.expand(shape), y.expand(shape)


def _centred(x: Tensor, y: Tensor, value: dict[str, Any]) -> tuple[Any, Any]:
    """Return positions relative to the centre of a component; its centre is removed from `value`."""
    centre_x, centre_y = value.pop("centre_x", None), value.pop("centre_y", None)
    return (x if centre_x is None else x - centre_x), (y if centre_y is None else y - centre_y)
