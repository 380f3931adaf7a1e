"""Populations of lenses: what is drawn for each image, by class. A population is a YAML file, validated here."""

from collections.abc import Sequence
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from darklens.config import Frozen, load
from darklens.errors import ConfigError
from darklens.physics.cosmology import point_mass_theta_E
from darklens.registry import unknown
from darklens.simulate.priors import Prior


class Field2D(Frozen):
    """The detector: square pixels, and the sub-samples along a pixel's side over which light is averaged."""

    n_pixels: int = Field(ge=8, le=4096)
    pixel_scale: float = Field(gt=0, description="arcsec")
    supersample: int = Field(default=1, ge=1, le=16)


class GaussianPSF(Frozen):
    """Gaussian point-spread function, cut at `truncate` standard deviations."""

    kind: Literal["gaussian"] = "gaussian"
    sigma: float = Field(gt=0, description="arcsec")
    truncate: float = Field(default=4.0, gt=0, description="standard deviations")


class MassTheta(Frozen):
    """An Einstein radius given as the point mass that has it."""

    kind: Literal["of_mass"] = "of_mass"
    mass: float = Field(gt=0, description="solar masses")
    z_lens: float = Field(gt=0)
    z_source: float = Field(gt=0)
    legacy_distances: bool = False

    @model_validator(mode="after")
    def _behind(self) -> "MassTheta":
        if self.z_source <= self.z_lens:
            raise ValueError(f"z_source ({self.z_source}) must exceed z_lens ({self.z_lens})")
        return self

    def theta_E(self) -> float:
        """Return the Einstein radius in arcsec."""
        return _theta_E_of(self)


@cache
def _theta_E_of(spec: MassTheta) -> float:
    return point_mass_theta_E(
        mass=spec.mass, z_lens=spec.z_lens, z_source=spec.z_source, legacy_distances=spec.legacy_distances
    )


class Lens(Frozen):
    """The smooth lens at the optical axis: an SIE (an SIS where e1 = e2 = 0) with external shear."""

    theta_E: MassTheta | Prior = Field(description="arcsec")
    e1: Prior
    e2: Prior
    gamma: Prior = Field(description="shear strength")
    gamma_angle: Prior = Field(description="direction of the shear, degrees")

    @field_validator("theta_E")
    @classmethod
    def _positive(cls, value: "MassTheta | Prior") -> "MassTheta | Prior":
        if not isinstance(value, MassTheta) and value.bounds()[0] <= 0:
            raise ValueError("an Einstein radius must be positive (arcsec)")
        return value

    @field_validator("gamma")
    @classmethod
    def _weak(cls, value: "Prior") -> "Prior":
        low, high = value.bounds()
        if low < 0 or high >= 1:
            raise ValueError("the shear strength must lie in [0, 1)")
        return value


class Disc(Frozen):
    """A position: radius by its own prior (not uniform in area), any direction."""

    kind: Literal["polar"] = "polar"
    radius: Prior = Field(description="arcsec")


class Box(Frozen):
    """A position with independent x and y."""

    kind: Literal["cartesian"] = "cartesian"
    x: Prior = Field(description="arcsec")
    y: Prior = Field(description="arcsec")


Place = Annotated[Disc | Box, Field(discriminator="kind")]


class Source(Frozen):
    """A Sersic source."""

    amplitude: Prior = Field(description="counts per pixel (or per second and pixel) at R_e")
    R_e: Prior = Field(description="arcsec")
    n: Prior
    q: Prior = Field(description="axis ratio")
    angle: Prior = Field(description="degrees")
    position: Place
    b_n: Literal["ciotti_bertin", "linear"] = "ciotti_bertin"

    @field_validator("q")
    @classmethod
    def _ratio(cls, value: "Prior") -> "Prior":
        low, high = value.bounds()
        if low <= 0 or high > 1:
            raise ValueError("an axis ratio must lie in (0, 1]")
        return value

    @field_validator("R_e", "n", "amplitude")
    @classmethod
    def _positive(cls, value: "Prior") -> "Prior":
        if value.bounds()[0] <= 0:
            raise ValueError("must be positive")
        return value


class NoSubstructure(Frozen):
    """A smooth halo."""

    kind: Literal["none"] = "none"


class PointMasses(Frozen):
    """`count` point masses. A mass m has theta_E^2 = (m / lens_mass) of the smooth lens' theta_E^2."""

    kind: Literal["point_masses"] = "point_masses"
    count: int = Field(ge=1, le=1000)
    mass: Prior = Field(description="solar masses")
    lens_mass: float = Field(default=1e12, gt=0, description="solar masses")
    radius: Prior = Field(description="arcsec; any direction")


class LineMass(Frozen):
    """One uniform line mass (an axion vortex); its mass is a fraction of the smooth lens' theta_E^2."""

    kind: Literal["line_mass"] = "line_mass"
    mass_fraction: Prior
    length: Prior = Field(description="arcsec, full length")
    angle: Prior = Field(description="degrees")
    position: Place
    as_points: int = Field(
        default=0, ge=0, le=1000, description="0: exact line; N: N equal point masses, ends included"
    )


Substructure = Annotated[NoSubstructure | PointMasses | LineMass, Field(discriminator="kind")]


class PoissonNoise(Frozen):
    """Counts ~ Poisson(sky + rate)."""

    kind: Literal["poisson"] = "poisson"
    sky: float = Field(ge=0, description="counts per pixel")


class ExposureNoise(Frozen):
    """Counts of an exposure with Gaussian background noise, as DeepLenseSim makes them.

    `legacy_noise` adds Poisson noise twice, as there. Without it the counts are one Poisson draw of
    exposure x rate plus Gaussian background noise.
    """

    kind: Literal["exposure"] = "exposure"
    exposure: Prior = Field(description="seconds")
    background_rms: float = Field(ge=0, description="rate units per pixel")
    legacy_noise: bool = False


Noise = Annotated[PoissonNoise | ExposureNoise, Field(discriminator="kind")]


class Population(Frozen):
    """A complete recipe for images."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    version: int = Field(ge=1)
    description: str
    field: Field2D
    psf: GaussianPSF
    lens: Lens
    source: Source
    classes: dict[str, Substructure]
    noise: Noise
    conserve_mass: bool = Field(
        default=False,
        description="lower the smooth lens' theta_E so that the mass inside the ring is unchanged",
    )
    stored: Literal["minmax", "counts"] = "minmax"

    @field_validator("classes")
    @classmethod
    def _several(cls, value: dict[str, Substructure]) -> dict[str, Substructure]:
        if len(value) < 2:
            raise ValueError("at least two classes are needed")
        return value

    @property
    def class_names(self) -> list[str]:
        """Class names in the order of their labels."""
        return list(self.classes)


def _folder() -> Traversable:
    return resources.files("darklens") / "populations"


def names() -> list[str]:
    """Return the names of the built-in populations."""
    return sorted(item.name.removesuffix(".yaml") for item in _folder().iterdir() if item.name.endswith(".yaml"))


def get(name_or_path: str, overrides: Sequence[str] = ()) -> Population:
    """Load a built-in population by name, or a YAML file by path, with overrides such as `lens.gamma=0`.

    Raises:
        ConfigError: If there is no such population or file, or a key or value is wrong.
    """
    if name_or_path in names():
        tree = yaml.safe_load((_folder() / f"{name_or_path}.yaml").read_text(encoding="utf-8"))
        return load(Population, tree, overrides, name=name_or_path)
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml") or path.exists():
        return load(Population, path, overrides)
    raise ConfigError(unknown("population", name_or_path, names()))
