"""The parameters of components: names, starts, bounds, priors and values of the free, fixed and shared ones.

The parameters of a batch are a tensor (b, p), in the order of `names` ("component.parameter"). A fit uses their
`internal` values, in which parameters with `log` are replaced by their natural logarithms.
"""

from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from darklens.constants import constant
from darklens.errors import ConfigError
from darklens.physics.duals import variable
from darklens.registry import unknown
from darklens.scene.profile import Free, Parameter, Profile

Parameters = Float[Tensor, "b p"]


class ParameterTable:
    """The parameters of components.

    Args:
        profiles: The components by name.

    Attributes:
        profiles: The components by name.
        names: Names of the p free parameters.
        free: Starts, bounds and priors of the free parameters.

    Raises:
        ConfigError: If a parameter is tied to one that does not exist, or its bounds are in the wrong order.
    """

    def __init__(self, profiles: dict[str, Profile]) -> None:
        self.profiles = profiles
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
        require_values("free parameter", self.names, values, fixed)
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


def require_values(sort: str, names: Sequence[str], values: Mapping[str, Any], fixed: Container[str] = ()) -> None:
    """Raise ConfigError unless there is a value for each name and for nothing else; suggest the closest name."""
    surplus = [name for name in values if name not in names]
    if surplus and surplus[0] in fixed:
        raise ConfigError(f"{surplus[0]} is fixed or shared in this scene; leave its value out.")
    if surplus:
        raise ConfigError(unknown(sort, surplus[0], list(names)))
    missing = [name for name in names if name not in values]
    if missing:
        raise ConfigError(f"Values are missing for {', '.join(missing)}.")


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
