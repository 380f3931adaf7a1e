"""Mass profiles and light profiles of a scene, with default bounds, priors and starts of their parameters."""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from darklens.constants import constant
from darklens.errors import ConfigError
from darklens.physics import light
from darklens.physics.profiles import epl, line, multipole, nfw, point, pseudo_jaffe, shear, sie, sis, tnfw


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

_MAX_GAUSSIANS, _HIGHEST_ORDER = 50, 40  # of multi-Gaussian expansions and shapelets; more exhaust the memory


def coordinates(reach: float, step: float) -> dict[str, Parameter]:
    """Return the coordinates of a position within `reach` of the centre of the image, arcsec."""
    coordinate = Parameter(unit="arcsec", low=-reach, high=reach, start=0.0, step=step)
    return {"centre_x": coordinate, "centre_y": coordinate}


_LENS_CENTRE, _LIGHT_CENTRE, PERTURBER_CENTRE = coordinates(1.0, 0.05), coordinates(2.0, 0.1), coordinates(5.0, 0.1)
_ELLIPTICITY = dict.fromkeys(("e1", "e2"), Parameter(low=-0.5, high=0.5, start=0.0, step=0.1, prior=(0.0, 0.2)))
_THETA_E = Parameter(unit="arcsec", low=0.1, high=10.0, start=1.2, step=0.2)
_AMPLITUDE = Parameter(unit="arcsec", low=-0.2, high=0.2, start=0.0, step=0.005, prior=(0.0, 0.02))
_SMALL_RADIUS = Parameter(unit="arcsec", low=1e-3, high=10.0, start=0.1, step=0.5, log=True)


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


class SIS(MassProfile):
    """Singular isothermal sphere."""

    kind = "sis"
    parameters: ClassVar[Mapping[str, Parameter]] = {"theta_E": _THETA_E, **_LENS_CENTRE}
    physics: ClassVar[Any] = sis


class SIE(MassProfile):
    """Singular isothermal ellipsoid; theta_E is the geometric mean of the semi-axes of the critical curve."""

    kind = "sie"
    parameters: ClassVar[Mapping[str, Parameter]] = {**SIS.parameters, **_ELLIPTICITY}
    physics: ClassVar[Any] = sie


class EPL(MassProfile):
    """Elliptical power law; `slope` is the slope of the three-dimensional density, 2 for isothermal."""

    kind = "epl"
    parameters: ClassVar[Mapping[str, Parameter]] = {
        **SIE.parameters,
        "slope": Parameter(low=1.3, high=2.7, start=2.0, step=0.1, prior=(2.08, 0.2)),
    }
    physics: ClassVar[Any] = epl


class Shear(MassProfile):
    """External shear about the centre of the image."""

    kind = "shear"
    _GAMMA = Parameter(low=-0.5, high=0.5, start=0.0, step=0.05, prior=(0.0, 0.1))
    parameters: ClassVar[Mapping[str, Parameter]] = {"gamma1": _GAMMA, "gamma2": _GAMMA}
    physics: ClassVar[Any] = shear


class Multipole(MassProfile):
    """Elliptical multipole of order m (1, 3 or 4), by default with the ellipticity and centre of the main lens.

    Args:
        m: Order.
        lens: Component to whose ellipticity and centre those of the multipole are tied; None for none.
        name: By default `multipole` followed by m.
        settings: Settings by parameter name; `a` and `b` are the cosine and sine amplitudes in arcsec
            (`darklens.physics.profiles.multipole`).
    """

    kind = "multipole"
    physics: ClassVar[Any] = multipole
    parameters: ClassVar[Mapping[str, Parameter]] = {
        "a": _AMPLITUDE,
        "b": _AMPLITUDE,
        **_ELLIPTICITY,
        **_LENS_CENTRE,
    }

    def __init__(self, m: int, *, lens: str | None = "epl", name: str | None = None, **settings: Setting) -> None:
        if m not in (1, 3, 4):
            raise ConfigError(f"multipole: m is 1, 3 or 4, got {m}.")
        shared: dict[str, Setting] = {}
        if lens:
            shared = {symbol: f"{lens}.{symbol}" for symbol in ("e1", "e2", "centre_x", "centre_y")}
        super().__init__(name=name or f"multipole{m}", **shared | settings)
        self.m = m

    @property
    def structure(self) -> tuple[Any, ...]:
        """Class and order."""
        return (*super().structure, self.m)

    @property
    def law(self) -> Callable[..., tuple[Tensor, Tensor]]:
        """Function that returns the deflection for order m."""
        return partial(multipole.deflection, m=self.m)


class NFW(MassProfile):
    """Navarro-Frenk-White halo; alpha_Rs is its deflection at R_s."""

    kind = "nfw"
    parameters: ClassVar[Mapping[str, Parameter]] = {
        "alpha_Rs": Parameter(unit="arcsec", low=0.0, high=1.0, start=0.01, step=0.01),
        "R_s": _SMALL_RADIUS,
        **PERTURBER_CENTRE,
    }
    physics: ClassVar[Any] = nfw


class TNFW(MassProfile):
    """NFW halo truncated at r_t."""

    kind = "tnfw"
    parameters: ClassVar[Mapping[str, Parameter]] = {**NFW.parameters, "r_t": _SMALL_RADIUS}
    physics: ClassVar[Any] = tnfw


class PseudoJaffe(MassProfile):
    """Isothermal sphere with core radius R_a and truncation radius R_s."""

    kind = "pseudo_jaffe"
    parameters: ClassVar[Mapping[str, Parameter]] = {
        "theta_E": Parameter(unit="arcsec", low=0.0, high=1.0, start=0.01, step=0.01),
        "R_a": Parameter(unit="arcsec", low=1e-4, high=1.0, start=1e-3, step=0.5, log=True),
        "R_s": _SMALL_RADIUS,
        **PERTURBER_CENTRE,
    }
    physics: ClassVar[Any] = pseudo_jaffe


class PointMass(MassProfile):
    """Point mass."""

    kind = "point"
    parameters: ClassVar[Mapping[str, Parameter]] = {
        "theta_E": Parameter(unit="arcsec", low=0.0, high=1.0, start=0.05, step=0.02),
        **PERTURBER_CENTRE,
    }
    physics: ClassVar[Any] = point


class LineMass(MassProfile):
    """Uniform line of mass; `mass` is the theta_E^2 of a point with the same mass."""

    kind = "line"
    parameters: ClassVar[Mapping[str, Parameter]] = {
        "mass": Parameter(unit="arcsec^2", low=0.0, high=1.0, start=0.02, step=0.02),
        "length": Parameter(unit="arcsec", low=0.05, high=10.0, start=1.0, step=0.3, log=True),
        "angle": Parameter(unit="radian", low=-10.0, high=10.0, start=0.0, step=0.5),
        **PERTURBER_CENTRE,
    }
    physics: ClassVar[Any] = line


class Sersic(LightProfile):
    """Elliptical Sersic profile; its amplitude is the surface brightness at R_e.

    Args:
        b_n: "exact", or "linear" for agreement with lenstronomy (`darklens.physics.light.sersic_b_linear`).
        core: Radius in arcsec, added to the elliptical radius in quadrature. Without it, an image sampled at the pixel
            scale depends on the distance from the cusp to the nearest sample, and fits converge slowly.
        name: By default `source` or `light`, according to its role in the scene.
        settings: Settings by parameter name.
    """

    kind = "sersic"
    parameters: ClassVar[Mapping[str, Parameter]] = {
        "R_e": Parameter(unit="arcsec", low=0.01, high=10.0, start=0.2, step=0.5, log=True),
        "n": Parameter(low=0.3, high=8.0, start=1.5, step=0.4, log=True, prior=(math.log(1.5), 0.7)),
        **_ELLIPTICITY,
        **_LIGHT_CENTRE,
    }

    def __init__(
        self,
        *,
        b_n: Literal["exact", "linear"] = "exact",
        core: float = 0.0,
        name: str | None = None,
        **settings: Setting,
    ) -> None:
        super().__init__(name=name, **settings)
        self.b_n, self.core = b_n, core

    @property
    def constants(self) -> Mapping[str, float]:
        """The core."""
        return {"core": self.core}

    @property
    def structure(self) -> tuple[Any, ...]:
        """Class and definition of b_n."""
        return (*super().structure, self.b_n)

    @property
    def has_cusp(self) -> bool:
        """Whether there is no core."""
        return not self.core

    def softened(self, core: float) -> "Sersic":
        """Return the profile with a core of at least `core`, arcsec."""
        profile = copy.copy(self)
        profile.core = max(core, self.core)
        return profile

    def basis(self, x: Any, y: Any, **values: Any) -> Any:
        """Return the brightness (b, 1, rows, columns)."""
        b = (light.sersic_b_linear if self.b_n == "linear" else light.sersic_b)(values["n"])
        return light.sersic_of_ellipticity(x, y, amplitude=1.0, b=b, **{**self.constants, **values})[:, None]


class MultiGaussian(LightProfile):
    """Concentric Gaussians of one ellipticity, with linear amplitudes of at least zero (Cappellari 2002).

    It describes galaxies whose profile no Sersic law fits to the noise. An amplitude is the brightness at the centre.

    Args:
        n: Number of Gaussians.
        smallest: Dispersion of the narrowest Gaussian, arcsec.
        largest: Dispersion of the widest; those between are evenly spaced in the logarithm.
        name: By default `source` or `light`, according to its role in the scene.
        settings: Settings by parameter name.
    """

    kind = "multi_gaussian"
    parameters: ClassVar[Mapping[str, Parameter]] = {**_ELLIPTICITY, **_LIGHT_CENTRE}

    def __init__(
        self, n: int = 12, *, smallest: float = 0.02, largest: float = 4.0, name: str | None = None, **settings: Setting
    ) -> None:
        super().__init__(name=name, **settings)
        if not 1 <= n <= _MAX_GAUSSIANS or not 0 < smallest <= largest < math.inf:
            raise ConfigError(
                f"multi_gaussian needs n from 1 to {_MAX_GAUSSIANS} and 0 < smallest <= largest, got {n}, "
                f"{smallest:g} and {largest:g}."
            )
        self.n, self.smallest, self.largest = n, smallest, largest
        self.n_basis = n
        self.sigmas = torch.logspace(math.log10(smallest), math.log10(largest), n, dtype=torch.float64)

    @property
    def structure(self) -> tuple[Any, ...]:
        """Class and Gaussians."""
        return (*super().structure, self.n, self.smallest, self.largest)

    def basis(self, x: Any, y: Any, **values: Any) -> Any:
        """Return the Gaussians (b, n, rows, columns), narrowest first."""
        squared = light.elliptical_square(x, y, **values)[:, None]
        sigmas = constant(tuple(self.sigmas.tolist()), squared.dtype, squared.device)
        return torch.exp(squared * (-0.5 * sigmas**-2)[:, None, None])


class Shapelets(LightProfile):
    """Gauss-Hermite shapelets up to order n_max: (n_max + 1)(n_max + 2)/2 linear amplitudes (Refregier 2003).

    Args:
        n_max: Highest order.
        name: By default `source` or `light`, according to its role in the scene.
        settings: Settings by parameter name; `beta` is the scale in arcsec.
    """

    kind = "shapelets"
    positive = False
    parameters: ClassVar[Mapping[str, Parameter]] = {
        "beta": Parameter(unit="arcsec", low=0.01, high=2.0, start=0.1, step=0.3, log=True),
        **_LIGHT_CENTRE,
    }

    def __init__(self, n_max: int, *, name: str | None = None, **settings: Setting) -> None:
        super().__init__(name=name, **settings)
        if not 0 <= n_max <= _HIGHEST_ORDER:
            raise ConfigError(f"shapelets need n_max from 0 to {_HIGHEST_ORDER}, got {n_max}.")
        self.n_max = n_max
        self.n_basis = (n_max + 1) * (n_max + 2) // 2

    @property
    def structure(self) -> tuple[Any, ...]:
        """Class and order."""
        return (*super().structure, self.n_max)

    def basis(self, x: Any, y: Any, **values: Any) -> Any:
        """Return the basis functions (b, n_basis, rows, columns), sorted by total order, then by order along y."""
        return light.shapelets(x, y, beta=values["beta"], n_max=self.n_max)
