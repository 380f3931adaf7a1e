"""The smooth lenses of a population as a differentiable family: parameters to noise-free images and derivatives."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import jvp, vmap

from darklens.errors import ConfigError
from darklens.physics import optics
from darklens.simulate import render
from darklens.simulate.draw import draw
from darklens.simulate.populations import Field2D, Population, SersicLight

Parameters = Float[Tensor, "b p"]

_LENS = ("theta_E", "e1", "e2", "gamma1", "gamma2")
_LIGHT = ("x", "y", "amplitude", "R_e", "n", "q", "angle")
_DRAWS = 256  # from which it is seen what a population varies
_ROUND = 1e-6  # an ellipticity below which the direction of the major axis is arbitrary
_LARGEST_ELLIPTICITY = 0.8
_SMALLEST_THETA_E = 0.05  # arcsec


class SmoothLens:
    """What a population's lenses are without substructure: an SIS or SIE with shear, and Sersic light.

    Free are the columns that the population varies. Axis ratio and direction of light are replaced by its ellipticity
    e1, e2 = (1 - q)/(1 + q) (cos 2 angle, sin 2 angle), which is smooth where light is round; effective radius and
    Sersic index by their logarithms, the brightness of the source is the image's scale and so not in here.

    Args:
        population: Gives the free parameters, the values of the others, the detector and the PSF.

    Raises:
        ConfigError: If its light is not Sersic profiles.
    """

    def __init__(self, population: Population) -> None:
        self.population = population
        lights = {"source": population.source, "light": population.lens_light}
        self._lights = [prefix for prefix, spec in lights.items() if spec]
        if any(spec and not isinstance(spec, SersicLight) for spec in lights.values()):
            raise ConfigError(
                f"{population.name}: only Sersic light can be fitted; choose a population with kind sersic."
            )
        drawn = self._columns_of(draw(population, 0, range(_DRAWS)))
        self._middle = {name: column.median() for name, column in drawn.items()}
        natural = self._natural(drawn)
        spread = {name: column.std() for name, column in natural.items()}
        free = {name for name, deviation in spread.items() if deviation > 1e-6}
        free.discard("source_amplitude")
        for prefix in self._lights:  # both or none, or a rotation would leave the family
            pair = {f"{prefix}_e1", f"{prefix}_e2"}
            free |= pair if free & pair else set()
        self.names = [name for name in natural if name in free]
        self.spread = torch.stack([spread[name].clamp_min(1e-3) for name in self.names])
        self._fixed = {name: column.median() for name, column in natural.items() if name not in free}

    def from_truth(self, truth: Mapping[str, object]) -> Parameters:
        """Return the parameters of lenses given as the columns of `draw` or of a store."""
        natural = self._natural(self._columns_of(truth))
        return torch.stack([natural[name] for name in self.names], 1)

    def images(self, parameters: Parameters, field: Field2D | None = None) -> Float[Tensor, "b n n"]:
        """Return noise-free images without sky, on the population's detector or on another `field`."""
        chosen = field or self.population.field
        return self._observed(self._brightness(parameters, chosen), chosen)

    def derivatives(
        self, parameters: Parameters, field: Field2D | None = None
    ) -> tuple[Float[Tensor, "b n n"], Float[Tensor, "b p n n"]]:
        """Return the images and their derivatives by each parameter, by forward-mode differentiation."""
        chosen = field or self.population.field

        def one(direction: Tensor) -> tuple[Tensor, Tensor]:
            found: tuple[Tensor, Tensor] = jvp(  # type: ignore[assignment]  # typed for a third, optional output
                lambda p: self._brightness(p, chosen), (parameters,), (direction.expand_as(parameters),)
            )
            return found

        directions = torch.eye(len(self.names), dtype=parameters.dtype, device=parameters.device)
        images, changes = vmap(one, out_dims=(None, 0))(directions)  # type: ignore[arg-type]  # None is documented
        # The PSF is linear, so it may come after the derivative.
        observed = self._observed(changes.flatten(0, 1), chosen)
        by_parameter = observed.reshape(*changes.shape[:2], *observed.shape[1:])
        return self._observed(images, chosen), by_parameter.transpose(0, 1)

    def bounded(self, parameters: Parameters) -> Parameters:
        """Return the nearest parameters that are a lens: theta_E above 0.05 arcsec, ellipticities up to 0.8."""
        column = dict(zip(self.names, parameters.unbind(1), strict=True))
        if "theta_E" in column:
            column["theta_E"] = column["theta_E"].clamp_min(_SMALLEST_THETA_E)
        for prefix in ("", *(f"{prefix}_" for prefix in self._lights)):
            if f"{prefix}e1" in column and f"{prefix}e2" in column:
                e1, e2 = column[f"{prefix}e1"], column[f"{prefix}e2"]
                size = torch.hypot(e1, e2)
                shrink = size.clamp(max=_LARGEST_ELLIPTICITY) / size.clamp_min(_ROUND)
                column[f"{prefix}e1"], column[f"{prefix}e2"] = e1 * shrink, e2 * shrink
        return torch.stack(list(column.values()), 1)

    def _brightness(self, parameters: Parameters, field: Field2D) -> Tensor:
        population = self.population.model_copy(update={"field": field})
        x, y = render.axes(field, parameters.dtype, parameters.device)
        value = self._columns(parameters)
        return render.surface_brightness(population, (), render.scene(population, (), value, x, y), x, y)

    def _observed(self, brightness: Tensor, field: Field2D) -> Tensor:
        psf = self.population.psf
        kernel = optics.gaussian_psf(sigma=psf.sigma / field.pixel_scale, truncate=psf.truncate)
        return optics.convolve_separable(optics.integrate_pixels(brightness, field.supersample), kernel)

    def _columns_of(self, truth: Mapping[str, object]) -> dict[str, Tensor]:
        names = [*_LENS, *(f"{prefix}_{name}" for prefix in self._lights for name in _LIGHT)]
        return {name: torch.as_tensor(truth[name], dtype=torch.float32) for name in names}

    def _natural(self, column: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return columns of a store in the parameters of the fit."""
        natural = {name: column[name] for name in _LENS}
        for prefix in self._lights:
            angle, q = column[f"{prefix}_angle"], column[f"{prefix}_q"]
            e = (1 - q) / (1 + q)
            natural |= {f"{prefix}_{name}": column[f"{prefix}_{name}"] for name in ("x", "y")}
            natural |= {f"{prefix}_e1": e * torch.cos(2 * angle), f"{prefix}_e2": e * torch.sin(2 * angle)}
            natural |= {f"{prefix}_ln_{name}": column[f"{prefix}_{name}"].log() for name in ("R_e", "n")}
        if "light" in self._lights:
            natural["light_ln_amplitude"] = (column["light_amplitude"] / column["source_amplitude"]).log()
        return natural

    def _columns(self, parameters: Parameters) -> dict[str, Tensor]:
        """Return parameters of the fit as the columns that the renderer takes."""
        natural = {name: value.to(parameters).expand(len(parameters)) for name, value in self._fixed.items()}
        natural |= dict(zip(self.names, parameters.unbind(1), strict=True))
        column = {name: natural[name] for name in _LENS}
        amplitude = self._middle["source_amplitude"].to(parameters).expand(len(parameters))
        for prefix in self._lights:
            e1, e2 = natural[f"{prefix}_e1"], natural[f"{prefix}_e2"]
            e = torch.sqrt(e1 * e1 + e2 * e2 + _ROUND**2)
            column |= {f"{prefix}_{name}": natural[f"{prefix}_{name}"] for name in ("x", "y")}
            column |= {f"{prefix}_{name}": natural[f"{prefix}_ln_{name}"].exp() for name in ("R_e", "n")}
            column |= {f"{prefix}_q": (1 - e) / (1 + e), f"{prefix}_angle": torch.atan2(e2, e1) / 2}
        column["source_amplitude"] = amplitude
        if "light" in self._lights:
            column["light_amplitude"] = amplitude * natural["light_ln_amplitude"].exp()
        return column
