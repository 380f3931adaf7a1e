"""Populations of lenses: the schema of their YAML files, and their names."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_serializer, model_validator

from darklens.config import ClassName, Frozen, load, read_yaml
from darklens.errors import ConfigError
from darklens.physics.cosmology import point_mass_theta_E
from darklens.physics.grid import Grid
from darklens.populations import galaxies
from darklens.populations.instruments import INSTRUMENTS, Instrument
from darklens.populations.light_models import ImageLight, SersicLight, Source
from darklens.populations.priors import Prior, unless
from darklens.populations.psf_models import ImagePSF, PSFModel
from darklens.populations.scene_priors import ScenePriors
from darklens.populations.substructure_models import Substructure
from darklens.registry import FileRegistry, unknown
from darklens.units import FWHM_PER_SIGMA

_MAX_CLASSES = 100
_MAX_TAPS = 10_000  # sub-pixels from the centre to the edge of the PSF


class Field2D(Frozen):
    """The detector: square pixels, and the number of sub-pixels along the side of a pixel that are averaged."""

    n_pixels: int = Field(ge=8, le=4096)
    pixel_scale: float = Field(ge=1e-4, le=100, description="arcsec")
    supersample: int = Field(default=1, ge=1, le=16)

    @property
    def grid(self) -> Grid:
        """The pixel grid."""
        return Grid(n_pixels=self.n_pixels, pixel_scale=self.pixel_scale)


class ThetaEOfMass(Frozen):
    """The Einstein radius of a point mass, at the redshifts of lens and source."""

    kind: Literal["of_mass"] = "of_mass"
    mass: float = Field(gt=0, description="solar masses")
    z_lens: float = Field(gt=0)
    z_source: float = Field(gt=0)
    legacy_distances: bool = False

    @model_validator(mode="after")
    def _source_behind_lens(self) -> "ThetaEOfMass":
        if self.z_source <= self.z_lens:
            raise ValueError(f"z_source ({self.z_source}) must exceed z_lens ({self.z_lens})")
        return self

    def theta_E(self) -> float:
        """Return the Einstein radius in arcsec."""
        return _theta_E_of(self)


@cache
def _theta_E_of(spec: ThetaEOfMass) -> float:
    return point_mass_theta_E(
        mass=spec.mass, z_lens=spec.z_lens, z_source=spec.z_source, legacy_distances=spec.legacy_distances
    )


_Ellipticity = Annotated[
    Prior,
    unless(
        lambda low, high: max(-low, high) >= 0.7,
        "ellipticities must lie between -0.7 and 0.7; cut a normal prior with low and high",
    ),
]
_Shear = Annotated[Prior, unless(lambda low, high: low < 0 or high >= 1, "the shear strength must lie in [0, 1)")]


class Lens(Frozen):
    """The smooth lens on the optical axis: an SIE (an SIS where e1 = e2 = 0) with external shear."""

    theta_E: ThetaEOfMass | Prior = Field(description="arcsec")
    e1: _Ellipticity
    e2: _Ellipticity
    gamma: _Shear = Field(description="shear strength")
    gamma_angle: Prior = Field(description="direction of the shear, degrees")

    @field_validator("theta_E")
    @classmethod
    def _positive(cls, value: "ThetaEOfMass | Prior") -> "ThetaEOfMass | Prior":
        if not isinstance(value, ThetaEOfMass) and value.bounds()[0] <= 0:
            raise ValueError("an Einstein radius must be positive (arcsec)")
        return value

    @property
    def is_round(self) -> bool:
        """Whether all lenses of the population are SIS."""
        return self.e1.bounds() == self.e2.bounds() == (0.0, 0.0)


class PoissonNoise(Frozen):
    """Counts ~ Poisson(sky + rate)."""

    kind: Literal["poisson"] = "poisson"
    sky: float = Field(ge=0, description="counts per pixel")


class ExposureNoise(Frozen):
    """Counts of an exposure with Gaussian background noise, as in DeepLenseSim.

    Counts are a Poisson draw of exposure x rate, plus Gaussian background noise. With `legacy_noise`, Poisson noise is
    added twice, as in DeepLenseSim.
    """

    kind: Literal["exposure"] = "exposure"
    exposure: Prior = Field(description="seconds")
    background_rms: float = Field(ge=0, description="rate units per pixel")
    legacy_noise: bool = False


class InstrumentNoise(Frozen):
    """Electrons in the stacked exposures of an instrument: Poisson noise of source and sky, Gaussian read noise.

    Images are in electrons per second with the mean sky subtracted. The instrument also sets the pixel scale and the
    point-spread function of a population that states none.
    """

    kind: Literal["instrument"] = "instrument"
    name: str = Field(description="; ".join(INSTRUMENTS))
    n_exposures: int | None = Field(
        default=None, ge=1, description="exposures in the stack; by default those of the survey"
    )

    @field_validator("name")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in [*INSTRUMENTS]:
            raise ValueError(unknown("instrument", value, [*INSTRUMENTS]))
        return value

    @property
    def instrument(self) -> Instrument:
        """The instrument, with the number of exposures of the population."""
        record = INSTRUMENTS[self.name]
        return record if self.n_exposures is None else replace(record, n_exposures=self.n_exposures)


Noise = Annotated[PoissonNoise | ExposureNoise | InstrumentNoise, Field(discriminator="kind")]


class Population(Frozen):
    """The contents of a population file: priors of lens, light, substructure and noise."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    version: int = Field(ge=1)
    description: str
    field: Field2D
    psf: PSFModel
    lens: Lens | None = None
    lens_light: SersicLight | None = None
    source: Source | None = None
    scene: ScenePriors | None = Field(default=None, description="in place of lens, source and lens_light")
    classes: dict[ClassName, Substructure]
    noise: Noise
    conserve_mass: bool = Field(
        default=False,
        description="reduce theta_E of the smooth lens so that substructure does not change the mass inside the ring",
    )
    stored: Literal["minmax", "counts"] = "minmax"

    @field_validator("classes")
    @classmethod
    def _at_least_two(cls, value: dict[str, Substructure]) -> dict[str, Substructure]:
        if len(value) < 2:
            raise ValueError("at least two classes are needed")
        if len(value) > _MAX_CLASSES:
            raise ValueError(f"at most {_MAX_CLASSES} classes are possible")
        return value

    @model_validator(mode="after")
    def _one_lens(self) -> "Population":
        if self.scene is None and (self.lens is None or self.source is None):
            raise ValueError("lens and source are needed, or a scene")
        if self.scene is not None and (self.lens or self.source or self.lens_light):
            raise ValueError("scene replaces lens, source and lens_light; leave these out")
        return self

    @model_validator(mode="after")
    def _mass_can_vary(self) -> "Population":
        if self.scene is not None and self.conserve_mass:
            path = f"{self.scene.main_lens}.theta_E"
            if path not in self.scene.priors:
                raise ValueError(f"conserve_mass lowers {path}, which needs a prior that is no constant")
        return self

    @model_validator(mode="after")
    def _check_psf(self) -> "Population":
        """Refuse kernels that exhaust the memory, and images on pixels that are no fraction of the sub-pixels."""
        if isinstance(self.psf, ImagePSF):
            if self.field.supersample % self.psf.oversampling:
                raise ValueError(
                    f"field.supersample ({self.field.supersample}) must be a multiple of psf.oversampling "
                    f"({self.psf.oversampling})"
                )
            return self
        taps = self.psf.truncate * self.psf.sigma / self.field.pixel_scale * self.field.supersample
        if taps > _MAX_TAPS:
            raise ValueError(f"psf: a PSF that extends {taps:.2g} sub-pixels from its centre is too wide")
        return self

    @model_validator(mode="before")
    @classmethod
    def _from_instrument(cls, tree: Any) -> Any:
        """Fill in the pixel scale and the PSF of the instrument, where the population has none."""
        noise = tree.get("noise") if isinstance(tree, dict) else None
        if not isinstance(noise, dict) or noise.get("kind") != "instrument" or noise.get("name") not in [*INSTRUMENTS]:
            return tree
        instrument = INSTRUMENTS[noise["name"]]
        field = {"pixel_scale": instrument.pixel_scale} | tree.get("field", {})
        psf = tree.get("psf") or {"kind": "gaussian", "sigma": instrument.psf_fwhm / FWHM_PER_SIGMA}
        return tree | {"field": field, "psf": psf}

    @model_validator(mode="after")
    def _magnitudes_need_a_zero_point(self) -> "Population":
        lights = {"source": self.source, "lens_light": self.lens_light} if self.scene is None else self.scene.lights
        for name, light in lights.items():
            if light is not None and light.magnitude is not None and not isinstance(self.noise, InstrumentNoise):
                raise ValueError(f"{name}.magnitude needs noise of kind instrument, which has the zero point")
        return self

    @model_serializer(mode="wrap")
    def _without_alternatives(self, dump: Callable[..., dict[str, Any]]) -> dict[str, Any]:
        """Leave out the fields that describe the lens in the other way, so that digests of populations stay."""
        tree = dump(self)
        absent = ("scene",) if self.scene is None else ("lens", "source", "lens_light")
        return {name: value for name, value in tree.items() if name not in absent}

    @property
    def class_names(self) -> list[str]:
        """Class names in the order of their labels."""
        return list(self.classes)

    def with_substructure_scale(self, factor: float) -> "Population":
        """Return the population with `factor` times the mass in every point mass, line and halo.

        A curriculum starts with massive substructure, which is easy to detect, and ends with the population itself.

        Raises:
            ConfigError: If the factor is not positive, or a class has substructure of kind profile.
        """
        if factor == 1:
            return self
        if not 0 < factor < math.inf:
            raise ConfigError(f"substructure_scale must be a positive number, got {factor}.")
        return self.model_copy(update={"classes": {name: spec.scaled(factor) for name, spec in self.classes.items()}})


POPULATIONS = FileRegistry("population", "darklens.populations", extensible=True)
names = POPULATIONS.names


def get(name_or_path: str, overrides: Sequence[str] = ()) -> Population:
    """Load a population by name, or a YAML file by path, with overrides such as `lens.gamma=0`.

    Raises:
        ConfigError: If there is no such population or file, or a key or value is wrong.
    """
    path = Path(name_or_path)
    tree = read_yaml(POPULATIONS.file_of(name_or_path, path))
    name, folder = (name_or_path, Path()) if name_or_path in POPULATIONS else (str(path), path.parent)
    return _with_files(load(Population, tree, overrides, name=name), folder)


def _with_files(population: Population, folder: Path) -> Population:
    """Check the cut-outs of a population that has them and record their digest, and read the image of its PSF."""
    update: dict[str, Any] = {}
    if isinstance(population.source, ImageLight):
        update["source"] = galaxies.with_digest(population.source)
    if population.scene is not None and population.scene.images:
        images = {name: galaxies.with_digest(spec) for name, spec in population.scene.images.items()}
        update["scene"] = population.scene.with_images(images)
    if isinstance(population.psf, ImagePSF):
        update["psf"] = population.psf.with_values(folder, population.field.pixel_scale)
    return population.model_copy(update=update) if update else population
