"""Scenes as YAML files: components, fixed, free and shared parameters, and the PSF and noise of the observation.

mass:                                # sections of components by name: mass, source, lens_light
  epl:                               # the name is also the kind, unless `kind` is another
    slope: 2.0                       # a number fixes a parameter
    centre_x: light.centre_x         # the name of another parameter ties it to that one
    theta_E: {start: 1.5, low: 0.5}  # start, low, high, prior: [mean, sigma] of a free parameter
source:
  source: {kind: sersic}             # parameters that are not mentioned are free
"""

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, PlainValidator, create_model, model_validator

from darklens.config import Frozen, OneOf, load, read_yaml
from darklens.errors import ConfigError
from darklens.registry import FileRegistry, unknown
from darklens.scene import light_profiles, mass_profiles
from darklens.scene.mass_profiles import Multipole
from darklens.scene.profile import Free, LightProfile, MassProfile, Parameter, Profile, Setting
from darklens.scene.scene import Scene

SECTIONS = {"mass": "mass", "source": "light", "lens_light": "light"}  # kind of profiles in each section
_PROFILES: dict[str, tuple[ModuleType, type[Profile]]] = {
    "mass": (mass_profiles, MassProfile),
    "light": (light_profiles, LightProfile),
}
LARGEST = 1e6  # absolute value of a parameter
MAX_COMPONENTS = 20  # of a section
Value = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
ComponentName = Annotated[str, Field(pattern=r"^[^\W\d][\w+-]{0,63}$")]
"""Name of a component: the first part of the names of its parameters, which are columns of tables."""
_SHARED_BY_MULTIPOLES = ("e1", "e2", "centre_x", "centre_y")


class FreeParameter(Frozen):
    """A fitted parameter; keys that are missing keep the default of the profile."""

    start: Value | None = None
    low: Value | None = None
    high: Value | None = None
    prior: tuple[Value, Annotated[float, Field(ge=1 / LARGEST, le=LARGEST)]] | None = Field(
        default=None, description="mean, deviation"
    )


class Component(Frozen):
    """A mass or light profile; a parameter is a number (fixed), another parameter's name (shared), or free."""

    kind: str


@cache
def kinds(role: str) -> dict[str, type[Profile]]:
    """Return the profiles of mass or light by kind."""
    module, base = _PROFILES[role]
    classes = [item for item in vars(module).values() if inspect.isclass(item) and issubclass(item, base)]
    return {item.kind: item for item in classes if item is not base}


def profile_of(role: str, kind: str) -> type[Profile]:
    """Return the profile of a kind, of "mass" or of "light".

    Raises:
        ConfigError: If there is no such kind.
    """
    if kind not in kinds(role):
        raise ConfigError(unknown("kind", kind, kinds(role)))
    return kinds(role)[kind]


def options_of(profile: type[Profile]) -> dict[str, tuple[Any, Any]]:
    """Return type and default of the options of a profile, such as the order of a multipole, for `create_model`."""
    return {
        name: (option.annotation, ... if option.default is option.empty else option.default)
        for name, option in inspect.signature(profile.__init__).parameters.items()
        if name not in ("self", "name", "settings")
    }


@cache
def _schema(role: str, kind: str) -> type[Frozen]:
    """Return the schema of the components of a kind: its parameters, and the options of its profile.

    Raises:
        ConfigError: If there is no such kind.
    """
    profile = profile_of(role, kind)
    fields: dict[str, Any] = {"kind": (Literal[kind], kind), **options_of(profile)}
    for symbol, parameter in profile.parameters.items():
        validator = PlainValidator(
            partial(_setting, symbol, parameter), json_schema_input_type=float | str | FreeParameter | None
        )
        fields[symbol] = (Annotated[Any, validator], Field(default=None, description=parameter.unit))
    return create_model(f"{profile.__name__}Component", __base__=Component, **fields)


def _setting(symbol: str, parameter: Parameter, value: Any) -> Any:
    """Return a validated setting of a parameter: a number, the name of another parameter, or `FreeParameter`."""
    if value is None or value == "free":
        return None
    if isinstance(value, FreeParameter | dict):
        free = FreeParameter.model_validate(value)
        _check_range(symbol, parameter, {k: getattr(free, k) for k in ("start", "low", "high")})
        return free
    if isinstance(value, str) and "." in value:
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
        raise ValueError("a number, `free`, the name of another parameter, or {start, low, high, prior} is needed")
    _check_range(symbol, parameter, {"": float(value)})
    return float(value)


def _check_range(symbol: str, parameter: Parameter, values: Mapping[str, float | None]) -> None:
    """Check that values are inside the range in which the profile is computed; positions have none.

    Raises:
        ValueError: If one is outside, or the start is not between its bounds.
    """
    low, high = range_of(symbol, parameter)
    for key, value in values.items():
        if value is not None and not symbol.startswith("centre") and not low <= value <= high:
            raise ValueError((f"{key} = {value:g} is " if key else "") + f"out of bounds, {low:g} to {high:g}")
    smallest, largest = values.get("low"), values.get("high")
    start = values.get("start")
    bounds = (parameter.low if smallest is None else smallest, parameter.high if largest is None else largest)
    if not bounds[0] < bounds[1]:
        raise ValueError(f"the lower bound {bounds[0]:g} is not below the upper bound {bounds[1]:g}")
    if start is not None and not bounds[0] <= start <= bounds[1]:
        raise ValueError(f"start = {start:g} is out of bounds, {bounds[0]:g} to {bounds[1]:g}")


_RANGES = {"slope": (1.01, 2.99), "theta_E": (0.0, 100.0), "R_e": (1e-3, 100.0), "n": (0.1, 20.0)}
"""Ranges of values that are wider than the default bounds of a fit."""


def range_of(symbol: str, parameter: Parameter) -> tuple[float, float]:
    """Return the range of values for which a profile is computed."""
    return _RANGES.get(symbol, (parameter.low, parameter.high))


_MASS = OneOf(lambda kind: _schema("mass", kind), lambda: kinds("mass"))
_LIGHT = OneOf(lambda kind: _schema("light", kind), lambda: kinds("light"))


class PSFSpecification(Frozen):
    """The PSF of an observation that states none, and the treatment of a PSF image."""

    fwhm: float | None = Field(default=None, gt=0, description="of a Gaussian, arcsec")
    file: str | None = Field(default=None, description="image; relative to the folder of the YAML file")
    oversampling: int | None = Field(
        default=None,
        ge=1,
        le=16,
        description="PSF pixels along an image pixel; by default as the file says",
    )
    normalise: bool = False
    recentre: bool = Field(default=False, description="use the centroid as the origin")

    @model_validator(mode="after")
    def _one_source(self) -> "PSFSpecification":
        if self.fwhm is not None and self.file is not None:
            raise ValueError("fwhm and file exclude each other")
        return self


class NoiseSpecification(Frozen):
    """The noise of an observation without a noise map: a constant, or background plus photon noise of the image."""

    background_rms: float | None = Field(
        default=None, gt=0, description="standard deviation without light, unit of the image; by default measured"
    )
    exposure: float | None = Field(
        default=None, gt=0, description="counts per unit of the image, such as s for electrons/s; for photon noise"
    )


class SceneSpecification(Frozen):
    """The content of a YAML file of a scene.

    Attributes:
        description: One line.
        mass: Mass profiles by name.
        source: Light profiles in the source plane.
        lens_light: Light profiles in the lens plane.
        psf: PSF, if the observation has none, and how a PSF image is treated.
        noise: Noise, if the observation has no noise map.
        half_width: Half side of the central square that is fitted, arcsec; the whole image by default.
    """

    description: str = ""
    mass: dict[ComponentName, Annotated[Any, _MASS]] = Field(max_length=MAX_COMPONENTS)
    source: dict[ComponentName, Annotated[Any, _LIGHT]] = Field(max_length=MAX_COMPONENTS)
    lens_light: dict[ComponentName, Annotated[Any, _LIGHT]] = Field(default_factory=dict, max_length=MAX_COMPONENTS)
    psf: PSFSpecification = PSFSpecification()
    noise: NoiseSpecification | None = None
    half_width: float | None = Field(default=None, gt=0, description="arcsec")

    @model_validator(mode="before")
    @classmethod
    def _name_is_kind(cls, tree: Any) -> Any:
        return with_kinds(tree)

    def scene(self) -> Scene:
        """Return the scene.

        Raises:
            ConfigError: If a parameter is tied to one that does not exist, or a bound is wrong.
        """
        built = {
            section: [_profile(name, item) for name, item in getattr(self, section).items()] for section in SECTIONS
        }
        return Scene(built["mass"], built["source"], built["lens_light"])


_SCENES = FileRegistry("scene", "darklens.scene")
names = _SCENES.names


def get(name_or_path: str, overrides: Sequence[str] = ()) -> SceneSpecification:
    """Load a scene by name, or a YAML file by path.

    Args:
        name_or_path: One of `names()`, or a YAML file.
        overrides: Such as `epl.slope=2` (fixed), `epl.theta_E.start=1.5`, or `half_width=3`.

    Raises:
        ConfigError: If there is no such scene or file, or a key or value is wrong.
    """
    path = Path(name_or_path)
    tree = read_yaml(_SCENES.file_of(name_or_path, path))
    psf = tree.get("psf")
    if name_or_path not in _SCENES and isinstance(psf, dict) and isinstance(psf.get("file"), str):
        tree["psf"] = psf | {"file": str(path.parent / psf["file"])}
    specification = load(SceneSpecification, tree, [_full_key(tree, text) for text in overrides], name=name_or_path)
    try:
        specification.scene()
    except ConfigError as error:
        raise ConfigError(f"{name_or_path}: {error}") from None
    return specification


def to_yaml(scene: Scene) -> str:
    """Return a scene as YAML, from which `get` restores it.

    Raises:
        ConfigError: If it has a source grid.
    """
    if scene.source_grid is not None:
        raise ConfigError("A source grid cannot be written as YAML; save the scene of the fit before it.")
    tree: dict[str, Any] = {}
    models: dict[str, Any] = {"mass": scene.mass, "source": scene.source, "lens_light": scene.lens_light}
    for section, model in models.items():
        members = {name: p for name, p in scene.profiles.items() if p in model.profiles}
        if members or section != "lens_light":
            tree[section] = {name: _tree(profile) for name, profile in members.items()}
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def with_kinds(tree: Any) -> Any:
    """Insert the kind of components whose name is that of a kind, such as `epl` or `multipole4`."""
    if not isinstance(tree, dict):
        return tree
    filled = dict(tree)
    for section, role in SECTIONS.items():
        components = tree.get(section)
        if isinstance(components, dict):
            filled[section] = {name: _with_kind(str(name), item, role) for name, item in components.items()}
    return filled


def _with_kind(name: str, item: Any, role: str) -> Any:
    kind = name.rstrip("0123456789")
    if item is None:
        item = {}
    return {"kind": kind, **item} if isinstance(item, dict) and "kind" not in item and kind in kinds(role) else item


def _profile(name: str, component: Component) -> Any:
    profile = {**kinds("mass"), **kinds("light")}[component.kind]
    options: dict[str, Any] = {}
    for key in type(component).model_fields:
        value = getattr(component, key)
        if isinstance(value, FreeParameter):
            value = Free(**value.model_dump())
        if key != "kind" and not (key in profile.parameters and value is None):
            options[key] = value
    make: Callable[..., Profile] = profile
    return make(name=name, **options)


def _tree(profile: Profile) -> dict[str, Any]:
    tree: dict[str, Any] = {"kind": profile.kind}
    settings: dict[str, Setting] = {k: profile.settings[k] for k in profile.parameters if k in profile.settings}
    if isinstance(profile, Multipole):
        lens = str(settings.get("e1", "")).rpartition(".")[0]
        tied = bool(lens) and all(settings.get(symbol) == f"{lens}.{symbol}" for symbol in _SHARED_BY_MULTIPOLES)
        tree["lens"] = lens if tied else None
        settings = {k: v for k, v in settings.items() if not (tied and k in _SHARED_BY_MULTIPOLES)}
    for option in inspect.signature(type(profile).__init__).parameters:
        if option not in ("self", "name", "settings", "lens"):
            tree[option] = getattr(profile, option)
    for symbol, setting in settings.items():
        if isinstance(setting, Free) and setting != Free():
            free = {k: v for k in ("start", "low", "high", "prior") if (v := getattr(setting, k)) is not None}
            tree[symbol] = {k: list(v) if isinstance(v, tuple) else v for k, v in free.items()}
        elif not isinstance(setting, Free):
            tree[symbol] = setting
    return tree


def _full_key(tree: Mapping[str, Any], override: str) -> str:
    """Return an override of a parameter, such as `epl.slope=2`, with the section of its component in front.

    Raises:
        ConfigError: If the key is neither a section nor a component.
    """
    path, equals, value = override.partition("=")
    first, *rest = path.split(".")
    components = {name: section for section in SECTIONS for name in tree.get(section) or {}}
    if not equals or not rest:
        return override
    if first in components and not (first in SECTIONS and (rest[0] in tree[first] or value.lstrip().startswith("{"))):
        return f"{components[first]}.{override}"
    if first not in SceneSpecification.model_fields:
        match = difflib.get_close_matches(first, [*components, *SceneSpecification.model_fields], n=1)
        hint = f"; did you mean {match[0]!r}?" if match else f"; components are {', '.join(components)}."
        raise ConfigError(f"Override {override!r}: there is no component {first!r}{hint}")
    return override
