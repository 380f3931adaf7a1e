"""The smooth lens of a population that is described by a scene, with the parameters that fits of hypotheses vary."""

import copy
import math
from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from darklens.errors import ConfigError
from darklens.fit.smooth import (
    CENTRE,
    CENTRE_SPREAD,
    LARGEST_CENTRE,
    LARGEST_PSF_LN_WIDTH,
    NOT_SERSIC,
    PSF,
    PSF_SPREAD,
    Deflection,
    LensImage,
    Parameters,
)
from darklens.physics import optics
from darklens.populations.population import Field2D, Population
from darklens.populations.scene_priors import ScenePriors
from darklens.scene.imaging import Detector
from darklens.scene.profile import Free, Setting
from darklens.scene.scene import Scene
from darklens.simulate import render
from darklens.simulate.truth import draw

_N_DRAWS = 256  # lenses drawn to determine the spread of each parameter
_SMALLEST_SPREAD = 1e-3
_RANGE_MARGIN = math.log(2)  # by which logarithms may exceed the range of the population
_AMPLITUDE_MARGIN = 3.0  # the same for faint amplitudes: lens light may almost vanish
_FAINTEST = 1e-6  # brightness of lens light relative to the source
_FEATURES = ("theta_E", "gamma1", "gamma2", "source_x", "source_y", *CENTRE)  # that every lens has, free or fixed


class SceneLens:
    """The lenses of a population without substructure, as `SmoothLens`, for any scene.

    The free parameters are those with a prior, as the fit of a scene varies them (logarithms of radii and Sersic
    indices), and ln of the brightness of each light relative to the first source, which is the scale of the image.
    Parameters of the main lens have their own names, those of the first shear too; those of the first source and of
    the first lens light begin with `source_` and `light_`; others are `component.parameter`. An unknown PSF adds
    ln(width / width of the population).

    Args:
        population: Its scene.
        centred: Whether the main lens is where the population puts it. If not, its position is free, and all
            components that the population fixes at the same position move with it.

    Raises:
        ConfigError: If the light of the population is not Sersic profiles.
    """

    retry_above = 1.3  # as for SmoothLens; a scene has more local minima

    def __init__(self, population: Population, *, centred: bool = True) -> None:
        priors = population.scene
        assert priors is not None
        if priors.images:
            raise ConfigError(NOT_SERSIC.format(population.name))
        main = priors.main_lens
        self.population = population
        free_centre = not centred and f"{main}.centre_x" not in priors.priors
        self.centred = not free_centre
        self._scene = priors.scene_with(_tied_to_the_lens(priors)) if free_centre else priors.scene
        truth = draw(population, 0, range(_N_DRAWS))
        columns = self._internal(truth)
        self._lights = list(priors.lights)
        ratios = {name: torch.as_tensor(truth[f"{name}.amplitude"]).float() for name in self._lights}
        self._amplitude = ratios[self._lights[0]].median()
        ln_ratios = {name: (ratios[name] / ratios[self._lights[0]]).log() for name in self._lights[1:]}
        self._varied = [name for name, ratio in ln_ratios.items() if float(ratio.std()) > 1e-6]
        self._ratios = {name: float(ratio.median()) for name, ratio in ln_ratios.items()}
        natural = columns | {f"{name}.amplitude": ln_ratios[name] for name in self._varied}
        logarithms = {path for path, p in zip(self._scene.names, self._scene.free, strict=True) if p.log}
        logarithms |= set(natural) - set(columns)
        self.names = [_fit_name(priors, path, path in logarithms) for path in natural]
        self.spread = torch.stack([column.std().clamp_min(_SMALLEST_SPREAD) for column in natural.values()])
        self._low, self._high = (bound.clone() for bound in self._scene.bounds(self.spread))
        for i, path in enumerate(self._scene.names):
            if path in logarithms:
                self._low[i] = columns[path].min() - _RANGE_MARGIN
                self._high[i] = columns[path].max() + _RANGE_MARGIN
        for name in self._varied:
            low, high = ln_ratios[name].min() - _AMPLITUDE_MARGIN, ln_ratios[name].max() + _RANGE_MARGIN
            self._low, self._high = torch.cat([self._low, low[None]]), torch.cat([self._high, high[None]])
        if free_centre:
            for i in map(self.names.index, CENTRE):
                self.spread[i], self._low[i], self._high[i] = CENTRE_SPREAD, -LARGEST_CENTRE, LARGEST_CENTRE
        if not population.psf.known:
            self.names.append(PSF)
            self.spread = torch.cat([self.spread, torch.tensor([PSF_SPREAD])])
            limit = torch.tensor([LARGEST_PSF_LN_WIDTH])
            self._low, self._high = torch.cat([self._low, -limit]), torch.cat([self._high, limit])
        self.fixed = {name: torch.tensor(v) for name, v in self._fixed(priors).items() if name not in self.names}

    def _fixed(self, priors: ScenePriors) -> dict[str, float]:
        """Return the fixed values of the parameters that every lens has; zero for those without a component."""
        values = dict.fromkeys(_FEATURES, 0.0)
        for name, profile in self._scene.profiles.items():
            for symbol in profile.parameters:
                resolved = self._scene.resolve(f"{name}.{symbol}")
                fit_name = _fit_name(priors, f"{name}.{symbol}", False)
                if fit_name in values and not isinstance(resolved, str):
                    values[fit_name] = resolved
        return values

    def to(self, device: torch.device) -> "SceneLens":
        """Move the constants to a device, and return the lens."""
        self.spread, self._low, self._high = (v.to(device) for v in (self.spread, self._low, self._high))
        self.fixed = {name: value.to(device) for name, value in self.fixed.items()}
        return self

    def from_truth(self, truth: Mapping[str, object]) -> Parameters:
        """Return the parameters of centred lenses with a known PSF from the columns of `draw` or of a store."""
        columns = list(self._internal(truth).values())
        first = torch.as_tensor(truth[f"{self._lights[0]}.amplitude"]).float()
        columns += [(torch.as_tensor(truth[f"{name}.amplitude"]).float() / first).log() for name in self._varied]
        columns += [torch.zeros_like(first)] * (PSF in self.names)
        return torch.stack(columns, 1)

    def _internal(self, truth: Mapping[str, object]) -> dict[str, Tensor]:
        """Return the internal values of the free parameters of the scene; a free centre is that of the population."""
        theta_E = torch.as_tensor(truth["theta_E"]).float()
        values = [
            torch.as_tensor(truth[path]).float() if path in truth else torch.full_like(theta_E, parameter.start)
            for path, parameter in zip(self._scene.names, self._scene.free, strict=True)
        ]
        return dict(zip(self._scene.names, self._scene.internal(torch.stack(values, 1)).unbind(1), strict=True))

    @cached_property
    def light_scene(self) -> Scene | None:
        """The lens light alone; None if there is none. Parameters that it shares with the mass are free."""
        profiles = []
        for profile in self._scene.lens_light.profiles:
            alone = copy.copy(profile)
            alone.settings = {symbol: self._without_mass(setting) for symbol, setting in profile.settings.items()}
            profiles.append(alone)
        return Scene([], [], profiles) if profiles else None

    def _without_mass(self, setting: Setting) -> Setting:
        priors = self.population.scene
        assert priors is not None
        shared = isinstance(setting, str) and setting.partition(".")[0] not in priors.lens_light
        return Free() if shared else setting

    def with_light(
        self, parameters: Parameters, internal: Float[Tensor, "b l"], amplitudes: Float[Tensor, "b a"]
    ) -> Parameters:
        """Return lenses with other lens light.

        Args:
            parameters: Parameters of the lenses.
            internal: Internal parameters of `light_scene`.
            amplitudes: Its amplitudes, in the unit of the population.
        """
        scene, changed = self.light_scene, parameters.clone()
        assert scene is not None
        for path, column in zip(scene.names, internal.unbind(1), strict=True):
            free = self._scene.free_parameter(path)
            if free is not None:
                changed[:, self._scene.names.index(free)] = column
        for path, amplitude in zip(scene.amplitude_names, amplitudes.unbind(1), strict=True):
            name = path.partition(".")[0]
            if name in self._varied:
                ratio = (amplitude / self._amplitude.to(amplitude)).clamp_min(_FAINTEST)
                changed[:, len(self._scene.names) + self._varied.index(name)] = ratio.log()
        return self.bounded(changed)

    def arcs(self, parameters: Parameters, detector: Detector) -> Float[Tensor, "b n n"]:
        """Return noise-free images of the source alone."""
        complete, amplitudes = self._split(parameters)
        planes = self._scene.planes(complete, *detector.positions(parameters), lens_light=False)
        return detector.observe((planes * amplitudes[:, : planes.shape[1], None, None]).sum(1))

    def images(self, parameters: Parameters, field: Field2D | None = None) -> Float[Tensor, "b n n"]:
        """Return noise-free images without sky, with a Gaussian of the width of the PSF."""
        chosen = field or self.population.field
        x, y = render.axes(chosen, parameters.dtype, parameters.device)
        pixels = optics.integrate_pixels(self.brightness(parameters, x, y), chosen.supersample)
        sigma = self.population.psf.width(self.population.field.pixel_scale)
        return optics.convolve_separable(pixels, optics.gaussian_psf(sigma=sigma / chosen.pixel_scale, truncate=4.0))

    def scene(
        self, parameters: Parameters, x: Tensor, y: Tensor, extra_deflections: Sequence[Deflection] = ()
    ) -> LensImage:
        """Return the brightness at x, y and its derivatives, as `SmoothLens.scene`."""
        complete, amplitudes = self._split(parameters)
        slopes, alpha, by_beta_x, by_beta_y = self._scene.slopes_and_gradient(
            complete, amplitudes, x, y, extra_deflections
        )
        planes = self._scene.lensed(complete, x, y, alpha) * amplitudes[:, :, None, None]
        brightness = planes.sum(1)
        columns = [slopes, *(planes[:, self._lights.index(name), None] for name in self._varied)]
        if PSF in self.names:  # acts on the detector
            columns.append(torch.zeros_like(brightness)[:, None])
        return LensImage(brightness, torch.cat(columns, 1), by_beta_x, by_beta_y)

    def brightness(
        self, parameters: Parameters, x: Tensor, y: Tensor, extra_deflections: Sequence[Deflection] = ()
    ) -> Float[Tensor, "b s s"]:
        """Return the brightness of `scene` alone."""
        complete, amplitudes = self._split(parameters)
        alpha_x, alpha_y = self._scene.deflection_planes(complete, x, y).unbind(1)
        for extra_x, extra_y in extra_deflections:
            alpha_x, alpha_y = alpha_x + extra_x, alpha_y + extra_y
        planes = self._scene.lensed(complete, x, y, (alpha_x, alpha_y))
        total: Tensor = (planes * amplitudes[:, :, None, None]).sum(1)
        return total

    def _split(self, parameters: Parameters) -> tuple[Float[Tensor, "b c"], Float[Tensor, "b l"]]:
        """Return the complete parameters of the scene, and the amplitude of each light."""
        n = len(self._scene.names)
        amplitude = self._amplitude.to(parameters).expand(len(parameters))
        amplitudes = [amplitude]
        for name in self._lights[1:]:
            if name in self._varied:
                amplitudes.append(amplitude * parameters[:, n + self._varied.index(name)].exp())
            else:
                amplitudes.append(amplitude * math.exp(self._ratios[name]))
        return self._scene.complete(self._scene.external(parameters[:, :n])), torch.stack(amplitudes, 1)

    def bounded(self, parameters: Parameters) -> Parameters:
        """Return the parameters clamped to their bounds, which are those of the scene or of the population."""
        return torch.maximum(torch.minimum(parameters, self._high.to(parameters)), self._low.to(parameters))

    def blocked(self, parameters: Parameters, step: Parameters) -> Bool[Tensor, "b p"]:
        """Return which parameters are at a bound that a step would cross."""
        low, high = (bound.to(parameters) for bound in (self._low, self._high))
        return ((parameters <= low) & (step < 0)) | ((parameters >= high) & (step > 0))

    def mirrored(self, parameters: Parameters) -> Parameters:
        """Return lenses on the opposite side of the source, as `SmoothLens.mirrored`. Requires a free centre."""
        other_side = parameters.clone()
        for centre, source in zip(CENTRE, ("source_x", "source_y"), strict=True):
            c = self.names.index(centre)
            at = parameters[:, self.names.index(source)] if source in self.names else self.fixed[source]
            other_side[:, c] = (2 * at - parameters[:, c]).clamp(-LARGEST_CENTRE, LARGEST_CENTRE)
        return other_side


def _tied_to_the_lens(priors: ScenePriors) -> dict[str, dict[str, str | Free]]:
    """Return settings that free the centre of the main lens, and let components at the same position move with it."""
    main = priors.main_lens
    ties: dict[str, dict[str, str | Free]] = {}
    at = {symbol: priors.scene.resolve(f"{main}.{symbol}") for symbol in CENTRE}
    for name, profile in priors.scene.profiles.items():
        if name in priors.source or not set(CENTRE) <= set(profile.parameters):
            continue
        if name == main:
            ties[name] = {symbol: Free(start=float(at[symbol]), low=-1.0, high=1.0) for symbol in CENTRE}
        elif all(priors.scene.resolve(f"{name}.{symbol}") == at[symbol] for symbol in CENTRE):
            ties[name] = {symbol: f"{main}.{symbol}" for symbol in CENTRE}
    return ties


def _fit_name(priors: ScenePriors, path: str, is_logarithm: bool) -> str:
    name, _, symbol = path.rpartition(".")
    symbol = f"ln_{symbol}" if is_logarithm else symbol
    shears = [key for key, component in priors.mass.items() if component.kind == "shear"]
    if name == priors.main_lens or name in shears[:1]:
        return symbol
    prefixes = {next(iter(priors.source)): "source"} | dict.fromkeys(list(priors.lens_light)[:1], "light")
    if name in prefixes:
        return f"{prefixes[name]}_{symbol.removeprefix('centre_')}"
    return f"{name}.{symbol}"
