"""Scenes: mass profiles, source light and lens light, and the functions that render them.

The parameters of a batch are a tensor (b, p), in the order of `Scene.names` ("component.parameter"). A fit uses their
`internal` values, in which parameters with `log` are replaced by their natural logarithms.
"""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from darklens.constants import constant
from darklens.errors import ConfigError
from darklens.physics.duals import slopes_of, value_of, variable
from darklens.registry import unknown
from darklens.scene.imaging import Detector
from darklens.scene.profiles import Free, LightProfile, MassProfile, Parameter, Profile

Parameters = Float[Tensor, "b p"]
Planes = Float[Tensor, "b k rows columns"]
P = TypeVar("P", bound=Profile)


class MassModel:
    """One or more mass profiles, whose deflections add up."""

    def __init__(self, profiles: MassProfile | Iterable[MassProfile]) -> None:
        self.profiles = _profiles(profiles, MassProfile, "mass")

    def __repr__(self) -> str:
        return f"MassModel({list(self.profiles)})"


class LightModel:
    """One or more light profiles, whose surface brightnesses add up."""

    def __init__(self, profiles: LightProfile | Iterable[LightProfile] = ()) -> None:
        self.profiles = _profiles(profiles, LightProfile, "light")

    @property
    def n_amplitudes(self) -> int:
        """Number of linear amplitudes."""
        return sum(profile.n_basis for profile in self.profiles)

    def __repr__(self) -> str:
        return f"LightModel({list(self.profiles)})"


class Scene:
    """A lens, its source and its light.

    Args:
        mass: One or more mass profiles.
        source: One or more light profiles in the source plane.
        lens_light: Light profiles in the lens plane.

    Attributes:
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
        self.profiles: dict[str, Profile] = {}
        self._add(self.mass.profiles, None)
        self._add(self.source.profiles, "source")
        self._add(self.lens_light.profiles, "light")
        self.names: list[str] = []
        self.free: list[Parameter] = []
        self._fixed: list[float] = []  # values of fixed parameters, and constants of the profiles
        self._columns: dict[str, dict[str, int]] = {}  # of the parameters followed by the fixed values
        for name, profile in self.profiles.items():
            for symbol, default in profile.parameters.items():
                setting = profile.settings.get(symbol)
                if setting is None or isinstance(setting, Free):
                    self.names.append(f"{name}.{symbol}")
                    self.free.append(_changed(default, setting, f"{name}.{symbol}"))
        for name, profile in self.profiles.items():
            resolved = {symbol: self._resolve(f"{name}.{symbol}") for symbol in profile.parameters}
            self._columns[name] = {
                symbol: value if isinstance(value, int) else self._add_fixed(value)
                for symbol, value in {**resolved, **profile.constants}.items()
            }
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

    def softened(self, core: float) -> "Scene":
        """Return the scene with cores of at least `core`, arcsec, in light profiles with a cusp.

        The brightness of a cusp in an image depends on the distance to the nearest sampling position, so chi2 has a
        local minimum at each of them. A core of a tenth of the sampling distance removes these.
        """
        source, light = ([p.softened(core) for p in model.profiles] for model in (self.source, self.lens_light))
        return Scene(self.mass, source, light)

    def _add(self, profiles: Sequence[Profile], role: str | None) -> None:
        """Register components by name. Unnamed light is named after its role, with a number from the second one on."""
        for profile in profiles:
            name = profile.name
            if role and name == profile.kind:
                n = sum(key.startswith(role) for key in self.profiles)
                name = role if not n else f"{role}{n + 1}"
            if name in self.profiles:
                raise ConfigError(f"Two components are named {name!r}; give one of them another name.")
            self.profiles[name] = profile

    def _add_fixed(self, value: float) -> int:
        self._fixed.append(value)
        return len(self.names) + len(self._fixed) - 1

    def _resolve(self, path: str, visited: tuple[str, ...] = ()) -> int | float:
        """Follow tied parameters to a free one, and return its column, or to a number (a float)."""
        if path in visited:
            raise ConfigError(f"Shared parameters refer to each other in a circle: {' -> '.join([*visited, path])}.")
        if path in self.names:
            return self.names.index(path)
        name, _, symbol = path.rpartition(".")
        profile = self.profiles.get(name)
        if profile is None or symbol not in profile.parameters:
            raise ConfigError(f"There is no parameter {path!r} to share; components are {', '.join(self.profiles)}.")
        setting = profile.settings[symbol]
        if isinstance(setting, str):
            return self._resolve(setting, (*visited, path))
        assert isinstance(setting, int | float)
        return float(setting)

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

    def values_of(self, name: str, values: Mapping[str, float]) -> dict[str, float]:
        """Return all parameters of a component, fixed and shared ones included, from values of the free parameters."""
        parameters = self.pack(values)
        values_by_symbol = self._values(name, self.complete(parameters))
        return {symbol: float(values_by_symbol[symbol]) for symbol in self.profiles[name].parameters}

    def resolve(self, path: str) -> str | float:
        """Return the free parameter that determines `component.parameter`, itself or shared, or its fixed value."""
        column = self._resolve(path)
        return self.names[column] if isinstance(column, int) else column

    def free_parameter(self, path: str) -> str | None:
        """Return the free parameter that determines `component.parameter`, itself or shared; None if it is fixed."""
        resolved = self.resolve(path)
        return resolved if isinstance(resolved, str) else None

    # ------------------------------------------------------------------ parameters
    def start(self, **changes: float) -> Parameters:
        """Return the default start (1, p). `changes` replaces values; write `epl__theta_E=1.3` for `epl.theta_E`."""
        values = {name: parameter.start for name, parameter in zip(self.names, self.free, strict=True)}
        for key, value in changes.items():
            name = key.replace("__", ".")
            if name not in values:
                raise ConfigError(f"The scene has no free parameter {name!r}; it has {', '.join(self.names)}.")
            values[name] = value
        return torch.tensor([list(values.values())])

    def pack(self, values: Mapping[str, Any]) -> Parameters:
        """Return the parameter tensor (b, p) from values by name, each a number or a tensor (b,).

        Raises:
            ConfigError: If a value is missing, or is not that of a free parameter.
        """
        fixed = {f"{name}.{symbol}" for name, profile in self.profiles.items() for symbol in profile.parameters}
        _require_values("free parameter", self.names, values, fixed)
        columns = [torch.as_tensor(values[name], dtype=torch.float64).reshape(-1) for name in self.names]
        n = max((len(column) for column in columns), default=1)
        return (
            torch.stack([column.expand(n) for column in columns], 1)
            if columns
            else torch.zeros(1, 0, dtype=torch.float64)
        )

    def internal(self, parameters: Parameters) -> Parameters:
        """Return the internal values: the natural logarithm where `log`."""
        columns = [
            column.clamp_min(1e-12).log() if p.log else column
            for p, column in zip(self.free, parameters.unbind(1), strict=True)
        ]
        return torch.stack(columns, 1) if columns else parameters

    def external(self, internal: Parameters) -> Parameters:
        """Return the parameters for internal values."""
        columns = [column.exp() if p.log else column for p, column in zip(self.free, internal.unbind(1), strict=True)]
        return torch.stack(columns, 1) if columns else internal

    def bounds(self, like: Tensor) -> tuple[Float[Tensor, " p"], Float[Tensor, " p"]]:
        """Return lower and upper bounds of the internal values."""
        low, high = self._bounds
        return constant(low, like.dtype, like.device), constant(high, like.dtype, like.device)

    @cached_property
    def _bounds(self) -> tuple[tuple[float, ...], ...]:
        limits = torch.tensor([[p.low for p in self.free], [p.high for p in self.free]], dtype=torch.float64)
        return tuple(tuple(row) for row in self.internal(limits).tolist())

    def prior(self, like: Tensor) -> tuple[Float[Tensor, " p"], Float[Tensor, " p"]]:
        """Return mean and inverse variance of the Gaussian priors on the internal values; zero for flat priors."""
        mean = tuple(p.prior[0] if p.prior else 0.0 for p in self.free)
        weight = tuple(p.prior[1] ** -2 if p.prior else 0.0 for p in self.free)
        return constant(mean, like.dtype, like.device), constant(weight, like.dtype, like.device)

    def complete(self, parameters: Parameters) -> Float[Tensor, "b c"]:
        """Return the parameters followed by the fixed values of the scene."""
        fixed = constant(tuple(self._fixed), parameters.dtype, parameters.device)
        return torch.cat([parameters, fixed.expand(len(parameters), -1)], 1)

    def _values(self, name: str, complete: Float[Tensor, "b c"]) -> dict[str, Tensor]:
        """Return the parameters and constants of a component, (b, 1, 1)."""
        return {symbol: complete[:, column, None, None] for symbol, column in self._columns[name].items()}

    def _variables(self, name: str, complete: Float[Tensor, "b c"]) -> tuple[dict[str, Any], dict[str, int]]:
        """Return the values of a component, with free ones as dual variables, and the columns of these."""
        value: dict[str, Any] = self._values(name, complete)
        columns = {symbol: column for symbol, column in self._columns[name].items() if column < len(self.names)}
        return value | {symbol: variable(symbol, value[symbol]) for symbol in columns}, columns

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
                planes.append(profile.basis(*_centred(*at, value), **value).expand(len(complete), -1, -1, -1))
        return torch.cat(planes, 1)

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
        _require_values("amplitude", self.amplitude_names, amplitudes)
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

        by_mass: list[tuple[int, Tensor | float, Tensor | float]] = []
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
            by_symbol = _brightness_slopes(profile, at, value, weight)
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
                slopes = _brightness_slopes(profile, (x - alpha_x, y - alpha_y), value, weight)
                gradient_x, gradient_y = gradient_x + slopes["x"], gradient_y + slopes["y"]
        return gradient_x, gradient_y


def _brightness_slopes(
    profile: LightProfile, at: tuple[Tensor, Tensor], value: dict[str, Any], weight: Tensor
) -> dict[str, Any]:
    """Return derivatives of the brightness by x, y and the variables in `value`, whose centre is removed."""
    centre = [value_of(value.pop(symbol)) for symbol in ("centre_x", "centre_y")]
    px, py = (variable(s, v - c) for s, v, c in zip(("x", "y"), at, centre, strict=True))
    return slopes_of((profile.basis(px, py, **value) * weight).sum(1))


def _require_values(sort: str, names: Sequence[str], values: Mapping[str, Any], fixed: Container[str] = ()) -> None:
    """Raise ConfigError unless there is a value for each name and for nothing else; suggest the closest name."""
    surplus = [name for name in values if name not in names]
    if surplus and surplus[0] in fixed:
        raise ConfigError(f"{surplus[0]} is fixed or shared in this scene; leave its value out.")
    if surplus:
        raise ConfigError(unknown(sort, surplus[0], list(names)))
    missing = [name for name in names if name not in values]
    if missing:
        raise ConfigError(f"Values are missing for {', '.join(missing)}.")


def _profiles(profiles: Any, kind: type[P], role: str) -> tuple[P, ...]:
    """Return one profile or several as a tuple; raise ConfigError if one is not of this kind."""
    sequence = tuple(profiles) if isinstance(profiles, Iterable) else (profiles,)
    for profile in sequence:
        if isinstance(profile, type) and issubclass(profile, kind):
            raise ConfigError(f"{profile.__name__} is a class; write {profile.__name__}().")
        if not isinstance(profile, kind):
            raise ConfigError(f"{profile!r} is no {role} profile.")
    return sequence


def _changed(default: Parameter, setting: Free | None, name: str) -> Parameter:
    if setting is None:
        return default
    changes = {k: v for k in ("start", "low", "high", "prior") if (v := getattr(setting, k)) is not None}
    changed = replace(default, **changes)
    if not changed.low < changed.high:
        raise ConfigError(f"{name}: its lower bound {changed.low:g} is not below its upper bound {changed.high:g}.")
    if not changed.low <= changed.start <= changed.high:
        changed = replace(changed, start=(changed.low + changed.high) / 2)
    return changed


def _full(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return positions in the image plane as (1, rows, columns)."""
    shape = (1, y.shape[-2], x.shape[-1])
    return x.expand(shape), y.expand(shape)


def _centred(x: Tensor, y: Tensor, value: dict[str, Any]) -> tuple[Any, Any]:
    """Return positions relative to the centre of a component; its centre is removed from `value`."""
    centre_x, centre_y = value.pop("centre_x", None), value.pop("centre_y", None)
    return (x if centre_x is None else x - centre_x), (y if centre_y is None else y - centre_y)
