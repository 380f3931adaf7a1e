"""Priors over a scene: lenses, sources and lens light of any profiles of `darklens.scene`.

mass:
  epl: {theta_E: {kind: normal, mean: 1.2, sigma: 0.2, low: 0.7, high: 1.8}, slope: 2.1}
  multipole4: {m: 4, a: {kind: normal, mean: 0, sigma: 0.01, low: -0.03, high: 0.03}, b: 0}
source:
  source: {kind: sersic, amplitude: 100, R_e: 0.2, n: 1.5, centre_x: {kind: uniform, low: -0.2, high: 0.2}}

Light may also be cut-outs of galaxies (kind images), which are not part of the `Scene`: the renderer adds them.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import cache, cached_property
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, create_model, model_validator

from darklens.config import Frozen, OneOf
from darklens.errors import ConfigError
from darklens.populations.light_models import ImageLight
from darklens.populations.priors import Constant, Prior
from darklens.scene import specification
from darklens.scene.profile import Free, LightProfile, Parameter
from darklens.scene.scene import Scene
from darklens.scene.specification import MAX_COMPONENTS, SECTIONS, ComponentName

_ZERO_BY_DEFAULT = ("centre_x", "centre_y", "e1", "e2", "gamma1", "gamma2", "a", "b")
_MAIN_LENSES = ("sis", "sie", "epl")
Shared = Annotated[str, Field(pattern=r"^[^\W\d][\w+-]*\.\w+$", description="component.parameter")]


class ComponentPriors(Frozen):
    """A mass or light profile; each parameter is a number, a prior, or the name of another parameter."""

    kind: str


@cache
def _schema(role: str, kind: str) -> type[Frozen]:
    """Return the schema of the components of a kind: options and parameters of its profile, and brightness.

    Raises:
        ConfigError: If there is no such kind, or a population cannot have it.
    """
    if role == "light" and kind == "images":
        return ImageLight
    profile = specification.profile_of(role, kind)
    if issubclass(profile, LightProfile) and kind != "sersic":
        raise ConfigError(f"light of kind {kind} has no priors; in a population light is of kind sersic or images")
    fields: dict[str, Any] = {"kind": (Literal[kind], kind), **specification.options_of(profile)}
    for symbol, parameter in profile.parameters.items():
        fields[symbol] = (Prior | Shared | None, Field(default=None, description=parameter.unit))
    if role == "light":
        fields["amplitude"] = (Prior | None, Field(default=None, description="counts (or rate) per pixel, at R_e"))
        fields["magnitude"] = (Prior | None, Field(default=None, description="total AB magnitude; needs an instrument"))
    return create_model(f"{profile.__name__}Priors", __base__=ComponentPriors, **fields)


_MASS = OneOf(lambda kind: _schema("mass", kind), lambda: specification.kinds("mass"))
_LIGHT = OneOf(lambda kind: _schema("light", kind), lambda: ["sersic", "images"])


class ScenePriors(Frozen):
    """Mass profiles, light of the source and light of the lens, by name, with priors.

    Centres, ellipticities, shear and amplitudes of multipoles are zero where they are left out. All other parameters
    need a value. The first component of kind sis, sie or epl is the main lens.
    """

    mass: dict[ComponentName, Annotated[Any, _MASS]] = Field(max_length=MAX_COMPONENTS)
    source: dict[ComponentName, Annotated[Any, _LIGHT]] = Field(min_length=1, max_length=MAX_COMPONENTS)
    lens_light: dict[ComponentName, Annotated[Any, _LIGHT]] = Field(default_factory=dict, max_length=MAX_COMPONENTS)

    @model_validator(mode="before")
    @classmethod
    def _name_is_kind(cls, tree: Any) -> Any:
        return specification.with_kinds(tree)

    @model_validator(mode="after")
    def _check(self) -> "ScenePriors":
        names = [name for section in SECTIONS for name in getattr(self, section)]
        if repeated := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two components are named {sorted(repeated)[0]}")
        if "sersic" in self.lights:
            raise ValueError("name a component of light other than sersic, such as `source: {kind: sersic, ...}`")
        if not any(component.kind in _MAIN_LENSES for component in self.mass.values()):
            raise ValueError(f"mass needs a lens of kind {', '.join(_MAIN_LENSES)}")
        try:
            for name, component in self._profile_priors():
                for symbol, parameter in _profile_of(component).parameters.items():
                    self._check_prior(f"{name}.{symbol}", symbol, parameter, getattr(component, symbol))
                if hasattr(component, "amplitude"):
                    _check_brightness(name, component)
            _ = self.scene
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return self

    def _check_prior(self, path: str, symbol: str, parameter: Parameter, value: Any) -> None:
        """Raise ConfigError if a value is missing, or can lie outside the range in which the profile is computed."""
        if value is None and symbol not in _ZERO_BY_DEFAULT:
            raise ConfigError(f"{path} is missing; give a number, a prior or the name of another parameter")
        if isinstance(value, str):
            shared = self.scene.resolve(path)
            value = self.priors[shared] if isinstance(shared, str) else Constant(value=shared)
        if value is None:
            return
        low, high = value.bounds()
        smallest, largest = specification.range_of(symbol, parameter)
        if symbol.startswith("centre"):
            smallest, largest = -specification.LARGEST, specification.LARGEST
        if not smallest <= low <= high <= largest or (symbol in ("theta_E", "R_e", "R_s", "r_t") and low <= 0):
            raise ConfigError(
                f"{path} can lie between {low:g} and {high:g}; keep it within {smallest:g} and {largest:g} and "
                "positive radii above zero (low and high cut a normal prior)"
            )

    def _profile_priors(self, sections: Iterable[str] = SECTIONS) -> Iterator[tuple[str, Any]]:
        """Yield the components that are profiles of the scene, by name."""
        for section in sections:
            for name, component in getattr(self, section).items():
                if not isinstance(component, ImageLight):
                    yield name, component

    @property
    def lights(self) -> dict[str, Any]:
        """The components of light by name, those of the source first."""
        return {**self.source, **self.lens_light}

    @property
    def images(self) -> dict[str, ImageLight]:
        """The components of light that are cut-outs of galaxies, by name."""
        return {name: component for name, component in self.lights.items() if isinstance(component, ImageLight)}

    def with_images(self, images: Mapping[str, ImageLight]) -> "ScenePriors":
        """Return the priors with other cut-outs in the components of these names."""
        sections = {
            section: {name: images.get(name, component) for name, component in getattr(self, section).items()}
            for section in ("source", "lens_light")
        }
        return self.model_copy(update=sections)

    @property
    def main_lens(self) -> str:
        """The name of the main lens."""
        return next(name for name, component in self.mass.items() if component.kind in _MAIN_LENSES)

    @cached_property
    def scene(self) -> Scene:
        """The scene; its free parameters are those with a prior."""
        return self.scene_with({})

    def scene_with(self, ties: Mapping[str, Mapping[str, str | Free]]) -> Scene:
        """Return the scene with other settings of parameters, by component and symbol."""
        profiles = {
            section: [_profile(name, item, ties.get(name, {})) for name, item in self._profile_priors([section])]
            for section in SECTIONS
        }
        return Scene(profiles["mass"], profiles["source"], profiles["lens_light"])

    @property
    def priors(self) -> dict[str, Prior]:
        """The priors of the free parameters of the scene, by name."""
        components = dict(self._profile_priors())
        paths = {path: path.rpartition(".") for path in self.scene.names}
        return {path: getattr(components[name], symbol) for path, (name, _, symbol) in paths.items()}

    def value(self, path: str, truth: Mapping[str, Any], default: float | None = None) -> Any:
        """Return a parameter from the columns of the free ones: a column, or a number.

        Args:
            path: `component.parameter`, or a parameter of the main lens.
            truth: The free parameters by name.
            default: Returned if the component has no such parameter.
        """
        full = path if "." in path else f"{self.main_lens}.{path}"
        name, _, symbol = full.rpartition(".")
        if default is not None and symbol not in self.scene.profiles[name].parameters:
            return default
        resolved = self.scene.resolve(full)
        return truth[resolved] if isinstance(resolved, str) else resolved


def _profile_of(component: Any) -> Any:
    return specification.profile_of("light" if hasattr(component, "amplitude") else "mass", component.kind)


def _check_brightness(name: str, component: Any) -> None:
    if (component.amplitude is None) == (component.magnitude is None):
        raise ConfigError(f"{name}: give either amplitude or magnitude")
    if component.amplitude is not None and component.amplitude.bounds()[0] <= 0:
        raise ConfigError(f"{name}.amplitude must be positive")


def _profile(name: str, component: Any, ties: Mapping[str, str | Free]) -> Any:
    profile = _profile_of(component)
    options = {key: getattr(component, key) for key in specification.options_of(profile)}
    settings: dict[str, Any] = {}
    for symbol, parameter in profile.parameters.items():
        value = ties.get(symbol, getattr(component, symbol))
        if value is None:
            if not _is_tied_by_default(options, symbol):
                settings[symbol] = 0.0
        elif isinstance(value, str | Free):
            settings[symbol] = value
        else:
            settings[symbol] = _setting(parameter, value)
    return profile(name=name, **options, **settings)


def _is_tied_by_default(options: Mapping[str, Any], symbol: str) -> bool:
    """Return whether a multipole takes a parameter from its lens."""
    return bool(options.get("lens")) and symbol in ("e1", "e2", "centre_x", "centre_y")


def _setting(parameter: Parameter, prior: Any) -> float | Free:
    """Return a number for a constant prior, and a free parameter that includes its range otherwise."""
    low, high = prior.bounds()
    if low == high:
        return float(low)
    start = float(prior.quantile(np.array([0.5]))[0])
    return Free(start=start, low=min(low, parameter.low), high=max(high, parameter.high))
