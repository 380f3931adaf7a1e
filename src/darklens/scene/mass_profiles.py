"""The mass profiles of a scene."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from darklens.errors import ConfigError
from darklens.physics.profiles import epl, line, multipole, nfw, point, pseudo_jaffe, shear, sie, sis, tnfw
from darklens.scene.profile import ELLIPTICITY, MassProfile, Parameter, Setting, coordinates

_LENS_CENTRE, PERTURBER_CENTRE = coordinates(1.0, 0.05), coordinates(5.0, 0.1)
_THETA_E = Parameter(unit="arcsec", low=0.1, high=10.0, start=1.2, step=0.2)
_AMPLITUDE = Parameter(unit="arcsec", low=-0.2, high=0.2, start=0.0, step=0.005, prior=(0.0, 0.02))
_SMALL_RADIUS = Parameter(unit="arcsec", low=1e-3, high=10.0, start=0.1, step=0.5, log=True)


class SIS(MassProfile):
    """Singular isothermal sphere."""

    kind = "sis"
    parameters: ClassVar[Mapping[str, Parameter]] = {"theta_E": _THETA_E, **_LENS_CENTRE}
    physics: ClassVar[Any] = sis


class SIE(MassProfile):
    """Singular isothermal ellipsoid; theta_E is the geometric mean of the semi-axes of the critical curve."""

    kind = "sie"
    parameters: ClassVar[Mapping[str, Parameter]] = {**SIS.parameters, **ELLIPTICITY}
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
        **ELLIPTICITY,
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
