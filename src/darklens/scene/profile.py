"""The base classes of the profiles of a scene, and the default bounds, priors and starts of parameters."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from darklens.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """Default bounds, start and prior of a parameter.

    Attributes:
        unit: Unit; empty for dimensionless parameters.
        low: Lower bound.
        high: Upper bound.
        start: Initial value.
        step: Scale of the parameter or, if `log`, of its logarithm: the scatter of random starts. It also limits the
            steps of a fit.
        log: Whether the fit uses the natural logarithm; for positive parameters whose order of magnitude is unknown.
        prior: Mean and standard deviation of a Gaussian prior on the parameter or, if `log`, on its logarithm; None for
            a flat prior.
    """

    unit: str = ""
    low: float
    high: float
    start: float
    step: float
    log: bool = False
    prior: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Free:
    """A fitted parameter with non-default settings; None keeps the default.

    Attributes:
        start: Initial value.
        low: Lower bound.
        high: Upper bound.
        prior: Mean and standard deviation of a Gaussian prior.
    """

    start: float | None = None
    low: float | None = None
    high: float | None = None
    prior: tuple[float, float] | None = None


Setting = float | str | Free
"""A number fixes a parameter, "component.parameter" ties it to that of another component, `Free` changes defaults."""


def coordinates(reach: float, step: float) -> dict[str, Parameter]:
    """Return the coordinates of a position within `reach` of the centre of the image, arcsec."""
    coordinate = Parameter(unit="arcsec", low=-reach, high=reach, start=0.0, step=step)
    return {"centre_x": coordinate, "centre_y": coordinate}


ELLIPTICITY = dict.fromkeys(("e1", "e2"), Parameter(low=-0.5, high=0.5, start=0.0, step=0.1, prior=(0.0, 0.2)))


class Profile:
    """One component of a scene.

    Args:
        name: Name of the component, used to tie parameters and in the results of a fit; by default its kind.
        settings: Settings by parameter name, see `Setting`; all other parameters are free, with their defaults.

    Raises:
        ConfigError: If a setting names an unknown parameter.
    """

    kind: ClassVar[str]
    parameters: ClassVar[Mapping[str, Parameter]]

    def __init__(self, *, name: str | None = None, **settings: Setting) -> None:
        for symbol in settings:
            if symbol not in self.parameters:
                raise ConfigError(
                    f"{self.kind} has no parameter {symbol!r}; its parameters are {', '.join(self.parameters)}."
                )
        self.name = name or self.kind
        self.settings = settings

    @property
    def constants(self) -> Mapping[str, float]:
        """Numbers that its functions take beside the parameters."""
        return {}

    @property
    def structure(self) -> tuple[Any, ...]:
        """All that determines its functions but parameters and constants."""
        return type(self).__module__, type(self).__qualname__

    def __repr__(self) -> str:
        words = [f"name={self.name!r}"] if self.name != self.kind else []
        return f"{type(self).__name__}({', '.join([*words, *(f'{k}={v!r}' for k, v in self.settings.items())])})"


class MassProfile(Profile):
    """A profile that deflects light. Positions are relative to its centre.

    Attributes:
        physics: Its module in `darklens.physics.profiles`.
    """

    physics: ClassVar[Any]

    @property
    def law(self) -> Callable[..., tuple[Tensor, Tensor]]:
        """Function that returns the deflection."""
        deflection: Callable[..., tuple[Tensor, Tensor]] = self.physics.deflection
        return deflection

    @property
    def hessian(self) -> Callable[..., tuple[Tensor, Tensor, Tensor]] | None:
        """Function that returns the second derivatives of the potential; None if there is no closed form."""
        hessian: Callable[..., tuple[Tensor, Tensor, Tensor]] | None = getattr(self.physics, "hessian", None)
        return hessian


class LightProfile(Profile):
    """A profile of surface brightness, linear in its `n_basis` amplitudes, for which a fit solves.

    The brightness is the sum of the amplitudes times the functions of `basis`. If `positive`, amplitudes are at least
    zero.
    """

    n_basis: int = 1
    positive: bool = True

    @property
    def has_cusp(self) -> bool:
        """Whether the brightness varies on arbitrarily small scales."""
        return False

    def softened(self, core: float) -> "LightProfile":
        """Return the profile without structure smaller than `core`, arcsec; the profile itself if it has none."""
        return self

    def scaled(self, factor: float) -> "LightProfile":
        """Return the profile for an image multiplied by a factor."""
        return self

    def amplitude_prior(self) -> Float[Tensor, "l l"] | None:
        """Return the inverse covariance of a Gaussian prior on the amplitudes, float64; None if there is none."""
        return None

    def brightness(self, x: Any, y: Any, weights: Tensor, **values: Any) -> Any:
        """Return the brightness (b, rows, columns) for amplitudes `weights` (b, n_basis, 1, 1), see `basis`."""
        return (self.basis(x, y, **values) * weights).sum(1)

    def basis(self, x: Any, y: Any, **values: Any) -> Any:
        """Return the brightness (b, n_basis, rows, columns) for unit amplitudes at x, y (b, rows, columns).

        To obtain derivatives, pass `darklens.physics.duals.Dual` instead of tensors.
        """
        raise NotImplementedError
