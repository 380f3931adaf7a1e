"""Mass profiles of perturbers, whose shape depends on their mass only: dark haloes, point masses and line masses."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from darklens.errors import ConfigError
from darklens.physics.cosmology import nfw_angles, point_mass_theta_E
from darklens.physics.profiles import line, tnfw
from darklens.registry import unknown
from darklens.scene.mass_profiles import PERTURBER_CENTRE
from darklens.scene.profile import MassProfile, Parameter

PerturberKind = Literal["tnfw", "tnfw_free", "point", "line"]

_LIGHTEST, _HEAVIEST = 6.0, 11.5  # log10 of M_sun
_TRUNCATION = 20.0  # r_t / R_s
_DEFLECTION_DEGREE = 4  # of the polynomial for the logarithm of alpha_Rs
_HUBBLE = 0.7
_POINT_CORE = 0.01  # arcsec
_LINE_LENGTH, _LINE_ANGLES = 1.2, 6  # arcsec, number of angles in the map

_LOG_MASS = Parameter(unit="log10 M_sun", low=_LIGHTEST, high=_HEAVIEST, start=9.5, step=0.2)
_COMMON = {"log10_mass": _LOG_MASS, **PERTURBER_CENTRE}


@dataclass(frozen=True)
class Redshifts:
    """Redshifts of lens and source, and the concentration of haloes.

    Attributes:
        z_lens: Redshift of lens and perturbers.
        z_source: Redshift of the source.
        concentration: c200 of the haloes; None for the relation of Dutton & Maccio (2014) at z_lens, without scatter.
    """

    z_lens: float = 0.5
    z_source: float = 1.0
    concentration: float | None = None


REDSHIFTS = Redshifts()


@cache
def _halo_laws(redshifts: Redshifts) -> tuple[tuple[float, float], tuple[float, ...]]:
    """Return coefficients of ln R_s and ln alpha_Rs as polynomials in log10 mass - 9: of degree 1, and of degree 4."""
    log10_mass = np.linspace(_LIGHTEST, _HEAVIEST, 56)
    mass = 10**log10_mass
    R_s, alpha = nfw_angles(
        mass=mass,
        concentration=concentration_of(mass, redshifts),
        z_lens=redshifts.z_lens,
        z_source=redshifts.z_source,
    )
    radius, deflection = (
        np.polynomial.polynomial.polyfit(log10_mass - 9, np.log(v), k)
        for v, k in ((R_s, 1), (alpha, _DEFLECTION_DEGREE))
    )
    return (float(radius[0]), float(radius[1])), tuple(float(c) for c in deflection)


def concentration_of(mass: Float[np.ndarray, " n"], redshifts: Redshifts) -> Float[np.ndarray, " n"]:
    """Return the concentration c200 of haloes of M200, in M_sun (Dutton & Maccio 2014, eq. 7, 10 and 11)."""
    if redshifts.concentration is not None:
        return np.full_like(mass, redshifts.concentration)
    z = redshifts.z_lens
    intercept = 0.520 + (0.905 - 0.520) * math.exp(-0.617 * z**1.21)
    return np.asarray(10 ** (intercept + (-0.101 + 0.026 * z) * (np.log10(mass) - 12 + math.log10(_HUBBLE))))


def _halo(x: Tensor, y: Tensor, *, log10_mass: Tensor, **coefficients: Any) -> tuple[Tensor, Tensor]:
    at = log10_mass - 9.0
    log_alpha: Any = 0.0
    for k in range(_DEFLECTION_DEGREE, -1, -1):
        log_alpha = at * log_alpha + coefficients[f"deflection{k}"]
    R_s = torch.exp(at * coefficients["radius1"] + coefficients["radius0"])
    return tnfw.deflection(x, y, alpha_Rs=torch.exp(log_alpha), R_s=R_s, r_t=R_s * _TRUNCATION)


def _free_halo(
    x: Tensor, y: Tensor, *, log10_mass: Tensor, concentration: Tensor, radius: Any, projected: Any
) -> tuple[Tensor, Tensor]:
    """Deflection of an NFW halo; R_s = r200 / c, and the mass within R_s is 1 / (ln(1 + c) - c / (1 + c)) of M200."""
    ln_mass = (log10_mass - 9.0) * math.log(10)
    R_s = radius * torch.exp(ln_mass / 3) / concentration
    share = 1 / (torch.log1p(concentration) - concentration / (1 + concentration))
    return tnfw.deflection(x, y, alpha_Rs=projected * torch.exp(ln_mass) * share / R_s, R_s=R_s, r_t=R_s * _TRUNCATION)


def _point(x: Tensor, y: Tensor, *, log10_mass: Tensor, unit: Any) -> tuple[Tensor, Tensor]:
    scale = torch.exp((log10_mass - 9.0) * math.log(10)) * unit / (x * x + y * y + _POINT_CORE**2)
    return scale * x, scale * y


def _line(
    x: Tensor, y: Tensor, *, log10_mass: Tensor, length: Tensor, angle: Tensor, unit: Any
) -> tuple[Tensor, Tensor]:
    mass = torch.exp((log10_mass - 9.0) * math.log(10)) * unit
    return line.deflection(x, y, mass=mass, length=length, angle=angle)


class PerturberProfile(MassProfile):
    """A perturber whose shape depends on its mass only.

    Args:
        redshifts: Redshifts, and the concentration of haloes.
    """

    shapes: ClassVar[tuple[dict[str, float], ...]]
    """Masses and shapes in the map of gains."""

    def __init__(self, redshifts: Redshifts = REDSHIFTS, **options: Any) -> None:
        super().__init__(**options)
        self.redshifts = redshifts


class HaloPerturber(PerturberProfile):
    """NFW halo of mass M200, truncated at r_t = 20 R_s, with a concentration that depends on its mass."""

    kind = "halo_perturber"
    law = staticmethod(_halo)
    parameters: ClassVar[Any] = _COMMON
    shapes = ({"log10_mass": 9.0}, {"log10_mass": 10.0})

    @property
    def constants(self) -> Mapping[str, float]:
        """Coefficients of the scale radius and of its deflection (`_halo_laws`)."""
        laws = zip(("radius", "deflection"), _halo_laws(self.redshifts), strict=True)
        return {f"{name}{k}": c for name, coefficients in laws for k, c in enumerate(coefficients)}


class FreeHaloPerturber(PerturberProfile):
    """NFW halo of mass M200 and free concentration c200, truncated at r_t = 20 R_s."""

    kind = "free_halo_perturber"
    law = staticmethod(_free_halo)
    parameters: ClassVar[Any] = _COMMON | {
        "concentration": Parameter(low=1.0, high=1000.0, start=30.0, step=0.5, log=True)
    }
    shapes = tuple({"log10_mass": 9.0, "concentration": c} for c in (15.0, 60.0, 300.0))

    @property
    def constants(self) -> Mapping[str, float]:
        """r200 of 1e9 M_sun, arcsec, and the product of deflection and R_s per projected mass within R_s, arcsec^2."""
        R_s, alpha = nfw_angles(
            mass=1e9, concentration=1.0, z_lens=self.redshifts.z_lens, z_source=self.redshifts.z_source
        )
        return {"radius": float(R_s), "projected": float(R_s * alpha * (math.log(2) - 0.5))}


class PointPerturber(PerturberProfile):
    """Point mass, with a core of 0.01 arcsec, since the derivatives on a bare point are infinite."""

    kind = "point_perturber"
    law = staticmethod(_point)
    parameters: ClassVar[Any] = _COMMON
    shapes = ({"log10_mass": 9.0},)

    @property
    def constants(self) -> Mapping[str, float]:
        """The squared Einstein radius of 1e9 M_sun, arcsec^2."""
        return {"unit": _unit_theta_E(self.redshifts) ** 2}


class LinePerturber(PerturberProfile):
    """Uniform line mass; `log10_mass` is its total mass."""

    kind = "line_perturber"
    law = staticmethod(_line)
    parameters: ClassVar[Any] = _COMMON | {
        "length": Parameter(unit="arcsec", low=0.2, high=4.0, start=_LINE_LENGTH, step=0.3, log=True),
        "angle": Parameter(unit="radian", low=-10.0, high=10.0, start=0.0, step=0.5),
    }
    shapes = tuple(
        {"log10_mass": 9.0, "length": _LINE_LENGTH, "angle": k * math.pi / _LINE_ANGLES} for k in range(_LINE_ANGLES)
    )

    @property
    def constants(self) -> Mapping[str, float]:
        """The squared Einstein radius of 1e9 M_sun, arcsec^2."""
        return {"unit": _unit_theta_E(self.redshifts) ** 2}


_PROFILES: dict[str, type[PerturberProfile]] = {
    "tnfw": HaloPerturber,
    "tnfw_free": FreeHaloPerturber,
    "point": PointPerturber,
    "line": LinePerturber,
}

DEFAULT_THRESHOLD = {"tnfw": 11.0, "tnfw_free": 15.0, "point": 15.0, "line": 20.0}
"""Thresholds of delta chi2 without simulations."""


@cache
def _unit_theta_E(redshifts: Redshifts) -> float:
    """Return the Einstein radius of a point of 1e9 M_sun, arcsec."""
    return point_mass_theta_E(mass=1e9, z_lens=redshifts.z_lens, z_source=redshifts.z_source)


def profile_of(perturber: str) -> type[PerturberProfile]:
    """Return the profile of a kind of perturber; raise ConfigError if there is none."""
    if perturber not in _PROFILES:
        raise ConfigError(unknown("perturber", perturber, list(_PROFILES)))
    return _PROFILES[perturber]
