"""Mass profiles, one module each: `potential`, `deflection`, `convergence`.

`PROFILES` lists them with the parameters of their cards, so that every law is tested on every profile.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from darklens.physics.profiles import epl, line, nfw, point, shear, sie, sis, tnfw
from darklens.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One line of a profile's card; `low` and `high` bound what is physical, in `unit`."""

    symbol: str
    unit: str
    low: float
    high: float
    meaning: str


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A mass profile: its three laws and its card. All lengths are in arcsec."""

    potential: Callable[..., Tensor]
    deflection: Callable[..., tuple[Tensor, Tensor]]
    convergence: Callable[..., Tensor]
    parameters: tuple[Parameter, ...]
    reference: str


_THETA_E = Parameter(symbol="theta_E", unit="arcsec", low=0.0, high=10.0, meaning="Einstein radius")
_R_S = Parameter(symbol="R_s", unit="arcsec", low=1e-6, high=100.0, meaning="scale radius")

PROFILES: Registry[Profile] = Registry("mass profile", extensible=True)
PROFILES.add(
    "sis",
    Profile(
        potential=sis.potential,
        deflection=sis.deflection,
        convergence=sis.convergence,
        parameters=(_THETA_E,),
        reference="Schneider, Ehlers & Falco 1992, sec. 8.1.4",
    ),
)
PROFILES.add(
    "sie",
    Profile(
        potential=sie.potential,
        deflection=sie.deflection,
        convergence=sie.convergence,
        parameters=(
            Parameter(symbol="theta_E", unit="arcsec", low=0.0, high=10.0, meaning="product-average Einstein radius"),
            Parameter(symbol="e1", unit="1", low=-0.7, high=0.7, meaning="ellipticity along x"),
            Parameter(symbol="e2", unit="1", low=-0.7, high=0.7, meaning="ellipticity along x = y"),
        ),
        reference="Kormann, Schneider & Bartelmann 1994, A&A 284, 285",
    ),
)
PROFILES.add(
    "shear",
    Profile(
        potential=shear.potential,
        deflection=shear.deflection,
        convergence=shear.convergence,
        parameters=(
            Parameter(symbol="gamma1", unit="1", low=-0.7, high=0.7, meaning="shear along x"),
            Parameter(symbol="gamma2", unit="1", low=-0.7, high=0.7, meaning="shear along x = y"),
        ),
        reference="Schneider, Ehlers & Falco 1992, sec. 8.2.2",
    ),
)
PROFILES.add(
    "point",
    Profile(
        potential=point.potential,
        deflection=point.deflection,
        convergence=point.convergence,
        parameters=(_THETA_E,),
        reference="Schneider, Ehlers & Falco 1992, sec. 8.1.2",
    ),
)
PROFILES.add(
    "line",
    Profile(
        potential=line.potential,
        deflection=line.deflection,
        convergence=line.convergence,
        parameters=(
            Parameter(
                symbol="mass",
                unit="arcsec^2",
                low=0.0,
                high=10.0,
                meaning="theta_E^2 of the same mass as a point",
            ),
            Parameter(symbol="length", unit="arcsec", low=1e-6, high=20.0, meaning="full length"),
            Parameter(symbol="angle", unit="radian", low=-3.1416, high=3.1416, meaning="direction, from x towards y"),
        ),
        reference="docs/physics.md, 'Uniform line mass'",
    ),
)
PROFILES.add(
    "epl",
    Profile(
        potential=epl.potential,
        deflection=epl.deflection,
        convergence=epl.convergence,
        parameters=(
            Parameter(symbol="theta_E", unit="arcsec", low=0.0, high=10.0, meaning="product-average Einstein radius"),
            Parameter(
                symbol="slope", unit="1", low=1.0, high=3.0, meaning="slope of the density in space, both excluded"
            ),
            # 0.35 keeps |e| below 0.5, for which the series is summed.
            Parameter(symbol="e1", unit="1", low=-0.35, high=0.35, meaning="ellipticity along x"),
            Parameter(symbol="e2", unit="1", low=-0.35, high=0.35, meaning="ellipticity along x = y"),
        ),
        reference="Tessore & Metcalf 2015, A&A 580, A79",
    ),
)
PROFILES.add(
    "nfw",
    Profile(
        potential=nfw.potential,
        deflection=nfw.deflection,
        convergence=nfw.convergence,
        parameters=(
            Parameter(symbol="alpha_Rs", unit="arcsec", low=0.0, high=10.0, meaning="deflection at R_s"),
            _R_S,
        ),
        reference="Wright & Brainerd 2000, ApJ 534, 34",
    ),
)
PROFILES.add(
    "tnfw",
    Profile(
        potential=tnfw.potential,
        deflection=tnfw.deflection,
        convergence=tnfw.convergence,
        parameters=(
            Parameter(
                symbol="alpha_Rs", unit="arcsec", low=0.0, high=10.0, meaning="deflection at R_s before truncation"
            ),
            _R_S,
            Parameter(symbol="r_t", unit="arcsec", low=1e-6, high=1000.0, meaning="truncation radius"),
        ),
        reference="Baltz, Marshall & Oguri 2009, JCAP 01, 015",
    ),
)
