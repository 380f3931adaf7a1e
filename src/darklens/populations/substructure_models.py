"""The substructure that a class adds to the smooth lens, as populations describe it."""

import math
from typing import Annotated, Literal, TypeVar

import numpy as np
from pydantic import Field, model_validator

from darklens.config import Frozen
from darklens.errors import ConfigError
from darklens.physics.profiles import PROFILES
from darklens.populations.light_models import Position
from darklens.populations.priors import PositivePrior, Prior

Scalars = TypeVar("Scalars", float, np.ndarray)


class NoSubstructure(Frozen):
    """A smooth halo."""

    kind: Literal["none"] = "none"

    def scaled(self, factor: float) -> "NoSubstructure":
        """Return the specification unchanged."""
        return self


class PointMasses(Frozen):
    """`count` point masses; a mass m has (m / lens_mass) of the theta_E^2 of the smooth lens."""

    kind: Literal["point_masses"] = "point_masses"
    count: int = Field(ge=1, le=1000)
    mass: PositivePrior = Field(description="solar masses")
    lens_mass: float = Field(default=1e12, gt=0, description="solar masses")
    radius: Prior = Field(description="arcsec; any direction")

    def theta_E_squared(self, mass: Scalars, theta_E: Scalars) -> Scalars:
        """Return the squared Einstein radius (arcsec^2) of a mass (solar masses) in a lens of `theta_E` (arcsec)."""
        squared: Scalars = theta_E**2 * mass / self.lens_mass
        return squared

    def scaled(self, factor: float) -> "PointMasses":
        """Return the point masses with `factor` times the mass each."""
        return self.model_copy(update={"mass": self.mass.scaled(factor)})


class LineMass(Frozen):
    """A uniform line mass (an axion vortex); its mass is a fraction of the theta_E^2 of the smooth lens."""

    kind: Literal["line_mass"] = "line_mass"
    mass_fraction: PositivePrior
    length: PositivePrior = Field(description="arcsec, full length")
    angle: Prior = Field(description="degrees")
    position: Position
    as_points: int = Field(
        default=0, ge=0, le=1000, description="0: exact line; N: N equal point masses, ends included"
    )

    def scaled(self, factor: float) -> "LineMass":
        """Return the line with `factor` times the mass."""
        return self.model_copy(update={"mass_fraction": self.mass_fraction.scaled(factor)})


class Subhaloes(Frozen):
    """Truncated NFW subhaloes (Baltz et al. 2009): a Poisson number, each with its concentration and truncation."""

    kind: Literal["tnfw_subhaloes"] = "tnfw_subhaloes"
    mean_count: float = Field(gt=0, le=500, description="mean of the Poisson number; an image has at least one")
    mass: PositivePrior = Field(description="m200 in solar masses, before stripping")
    concentration: PositivePrior = Field(description="r200 / R_s")
    truncation: PositivePrior = Field(description="r_t / R_s")
    radius: Prior = Field(description="arcsec; any direction")
    z_lens: float = Field(gt=0)
    z_source: float = Field(gt=0)

    @model_validator(mode="after")
    def _source_behind_lens(self) -> "Subhaloes":
        if self.z_source <= self.z_lens:
            raise ValueError(f"z_source ({self.z_source}) must exceed z_lens ({self.z_lens})")
        return self

    @property
    def max_count(self) -> int:
        """The largest number in an image, five standard deviations above the mean; the distribution is cut there."""
        return math.ceil(self.mean_count + 5 * math.sqrt(self.mean_count))

    def scaled(self, factor: float) -> "Subhaloes":
        """Return the haloes with `factor` times the m200 each; concentrations and truncations stay."""
        return self.model_copy(update={"mass": self.mass.scaled(factor)})


class ProfileMasses(Frozen):
    """`count` masses of one profile of `darklens.physics.profiles` or of a plug-in."""

    kind: Literal["profile"] = "profile"
    profile: str = Field(description="name of the profile")
    count: int = Field(default=1, ge=1, le=100)
    parameters: dict[str, Prior] = Field(description="all parameters of the card of the profile, in its units")
    position: Position

    @model_validator(mode="after")
    def _matches_the_card(self) -> "ProfileMasses":
        try:
            card = {p.symbol: p for p in PROFILES[self.profile].parameters}
        except ConfigError as error:
            raise ValueError(str(error)) from None
        if set(card) != set(self.parameters):
            raise ValueError(f"parameters of {self.profile} are {', '.join(card)}; got {', '.join(self.parameters)}")
        for name, prior in self.parameters.items():
            low, high = prior.bounds()
            if low < card[name].low or high > card[name].high:
                raise ValueError(
                    f"parameters.{name} must lie between {card[name].low} and {card[name].high} {card[name].unit}"
                )
        return self

    def scaled(self, factor: float) -> "ProfileMasses":
        """Refuse to scale: a card does not state which parameters are masses.

        Raises:
            ConfigError: Unless the factor is 1.
        """
        if factor != 1:
            raise ConfigError(
                f"substructure_scale: substructure of kind profile ({self.profile}) cannot be scaled; "
                "change its parameters with overrides."
            )
        return self


Substructure = Annotated[
    NoSubstructure | PointMasses | LineMass | Subhaloes | ProfileMasses, Field(discriminator="kind")
]
