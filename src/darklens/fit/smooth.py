"""The smooth lens of a population: noise-free images and their derivatives with respect to the parameters."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from darklens.constants import constant
from darklens.errors import ConfigError
from darklens.physics import light, optics
from darklens.physics.duals import slopes_of, value_of, variable
from darklens.physics.profiles import shear, sie, sis
from darklens.physics.raytrace import source_plane
from darklens.populations.light_models import SersicLight
from darklens.populations.population import Field2D, Population
from darklens.simulate import render
from darklens.simulate.truth import draw

Parameters = Float[Tensor, "b p"]
Deflection = tuple[Tensor, Tensor]

_LENS = ("theta_E", "e1", "e2", "gamma1", "gamma2")
_LIGHT = ("x", "y", "amplitude", "R_e", "n", "q", "angle")
_N_DRAWS = 256  # lenses drawn to determine which parameters a population varies
_SMALLEST_ELLIPTICITY = 1e-6  # below, the direction of the major axis is undefined
_LARGEST_ELLIPTICITY = 0.8
SMALLEST_THETA_E = 0.05  # arcsec
CENTRE = ("centre_x", "centre_y")
CENTRE_SPREAD, LARGEST_CENTRE = 0.05, 0.3  # arcsec, of the lens position: expected spread, and limit
PSF = "psf_ln_width"
PSF_SPREAD, LARGEST_PSF_LN_WIDTH = 0.1, 0.35  # of ln width: expected spread, and limit
NOT_SERSIC = "{}: only Sersic light can be fitted; choose a population with kind sersic."
_RANGE_MARGIN = math.log(2)  # by which logarithms may exceed the range of the population
_AMPLITUDE_MARGIN = 3.0  # the same for faint amplitudes: lens light may almost vanish


class LensImage(NamedTuple):
    """Brightness in the image plane (b, s, s), its derivatives (b, p, s, s), and the gradient of the source by beta.

    For a lens parameter p, dI/dp = -grad S . d alpha/dp.
    """

    brightness: Tensor
    slopes: Tensor
    by_beta_x: Tensor
    by_beta_y: Tensor


class SmoothLens:
    """The lenses of a population without substructure: an SIS or SIE with shear, and Sersic light.

    The free parameters are those that the population varies. Axis ratio and angle of light become the ellipticity
    e1, e2 = (1 - q)/(1 + q) (cos 2 angle, sin 2 angle), which is smooth for round light. Effective radius and Sersic
    index become their logarithms. The amplitude of the source is the scale of the image, so it is no parameter here.
    An unknown PSF adds ln(width / width of the population). A free centre adds the position of the lens; source and
    lens light move with it, perturbers do not.

    Args:
        population: Defines the free parameters, the values of the others, the detector and the PSF.
        centred: Whether the lens is fixed at the centre of the image.

    Raises:
        ConfigError: If the light of the population is not Sersic profiles.
    """

    retry_above = 5.0
    """chi2 per pixel after the coarse steps from which other starts are tried: it is a local minimum."""

    def __init__(self, population: Population, *, centred: bool = True) -> None:
        self.population, self.centred = population, centred
        self._lights: dict[str, SersicLight] = {}
        for prefix, spec in (("source", population.source), ("light", population.lens_light)):
            if isinstance(spec, SersicLight):
                self._lights[prefix] = spec
            elif spec:
                raise ConfigError(NOT_SERSIC.format(population.name))
        assert population.lens is not None
        self._is_round = population.lens.is_round
        drawn = self._columns_of(draw(population, 0, range(_N_DRAWS)))
        self._median = {name: column.median() for name, column in drawn.items()}
        natural = self._to_fit_columns(drawn)
        spread = {name: column.std() for name, column in natural.items()}
        free = {name for name, deviation in spread.items() if deviation > 1e-6}
        free.discard("source_amplitude")
        for prefix in self._lights:  # both or none, so that the model can be rotated
            pair = {f"{prefix}_e1", f"{prefix}_e2"}
            free |= pair if free & pair else set()
        self.names = [name for name in natural if name in free]
        self.spread = torch.stack([spread[name].clamp_min(1e-3) for name in self.names])
        limits = {
            name: (float(natural[name].min()) - below, float(natural[name].max()) + _RANGE_MARGIN)
            for prefix in self._lights
            for name, below in (
                *((f"{prefix}_ln_{of}", _RANGE_MARGIN) for of in ("R_e", "n")),
                (f"{prefix}_ln_amplitude", _AMPLITUDE_MARGIN),
            )
            if name in free
        }
        if not centred:
            self.names += CENTRE
            self.spread = torch.cat([self.spread, torch.full((2,), CENTRE_SPREAD)])
            limits |= dict.fromkeys(CENTRE, (-LARGEST_CENTRE, LARGEST_CENTRE))
        if not population.psf.known:
            self.names.append(PSF)
            self.spread = torch.cat([self.spread, torch.tensor([PSF_SPREAD])])
            limits[PSF] = (-LARGEST_PSF_LN_WIDTH, LARGEST_PSF_LN_WIDTH)
        limits["theta_E"] = (SMALLEST_THETA_E, math.inf)
        bounds = [limits.get(name, (-math.inf, math.inf)) for name in self.names]
        self._lowest, self._highest = zip(*bounds, strict=True)
        pairs = [(f"{prefix}e1", f"{prefix}e2") for prefix in ("", *(f"{prefix}_" for prefix in self._lights))]
        columns = [self.names.index(pair[0]) for pair in pairs if set(pair) <= set(self.names)]
        self._ellipticities = [slice(column, column + 2) for column in columns]
        self.fixed = {name: column.median() for name, column in natural.items() if name not in free}
        if centred:
            self.fixed |= dict.fromkeys(CENTRE, torch.zeros(()))

    def to(self, device: torch.device) -> "SmoothLens":
        """Move the constants to a device, and return the lens."""
        self.spread = self.spread.to(device)
        self.fixed = {name: value.to(device) for name, value in self.fixed.items()}
        self._median = {name: value.to(device) for name, value in self._median.items()}
        return self

    def from_truth(self, truth: Mapping[str, object]) -> Parameters:
        """Return the parameters of centred lenses with a known PSF from the columns of `draw` or of a store."""
        natural = self._to_fit_columns(self._columns_of(truth))
        natural |= dict.fromkeys((PSF, *CENTRE), torch.zeros_like(natural["theta_E"]))
        return torch.stack([natural[name] for name in self.names], 1)

    def images(self, parameters: Parameters, field: Field2D | None = None) -> Float[Tensor, "b n n"]:
        """Return noise-free images without sky, with the PSF of the population, on its detector or on `field`."""
        chosen = field or self.population.field
        return self._observed(self._brightness(parameters, chosen), chosen)

    def scene(
        self, parameters: Parameters, x: Tensor, y: Tensor, extra_deflections: Sequence[Deflection] = ()
    ) -> LensImage:
        """Return the brightness at x, y and its derivatives, before pixel integration and PSF.

        Args:
            parameters: Parameters of the lenses (b, p).
            x: Positions (1, s), arcsec.
            y: Positions (s, 1), arcsec.
            extra_deflections: Deflections of perturbers, x and y components (b, s, s), arcsec.
        """
        value, x, y = self._in_lens_frame(parameters, x, y)
        alphas, alpha_slopes = self._deflection(value, x, y)
        beta_x, beta_y = source_plane(x, y, [*alphas, *extra_deflections])
        image, slopes = self._light("source", value, beta_x, beta_y, self._free_parameters_of("source") | {"x", "y"})
        by_beta_x, by_beta_y = slopes.pop("source_x"), slopes.pop("source_y")
        slopes |= {"source_x": -by_beta_x, "source_y": -by_beta_y}
        for name, (by_x, by_y) in alpha_slopes.items():
            slopes[name] = -(by_beta_x * by_x + by_beta_y * by_y)
        if not self.centred:
            xx, xy, yy = self._hessian(value, x, y)
            slopes["centre_x"] = by_beta_x * (xx - 1) + by_beta_y * xy
            slopes["centre_y"] = by_beta_x * xy + by_beta_y * (yy - 1)
        if "light" in self._lights:
            fixed_centre = set() if self.centred else {"x", "y"}
            light_value, light_slopes = self._light(
                "light", value, x, y, self._free_parameters_of("light") | fixed_centre
            )
            if not self.centred:
                slopes["centre_x"] = slopes["centre_x"] - light_slopes["light_x"]
                slopes["centre_y"] = slopes["centre_y"] - light_slopes["light_y"]
            for name in {"light_x", "light_y"} & set(light_slopes):
                light_slopes[name] = -light_slopes[name]
            image, slopes = image + light_value, slopes | light_slopes | {"light_ln_amplitude": light_value}
        slopes[PSF] = torch.zeros_like(image)  # acts on the detector
        stacked = torch.stack([slopes[name].expand_as(image) for name in self.names], 1)
        return LensImage(image, stacked, by_beta_x, by_beta_y)

    def brightness(
        self, parameters: Parameters, x: Tensor, y: Tensor, extra_deflections: Sequence[Deflection] = ()
    ) -> Float[Tensor, "b s s"]:
        """Return the brightness of `scene` alone."""
        value, x, y = self._in_lens_frame(parameters, x, y)
        beta_x, beta_y = source_plane(x, y, [*self._alphas(value, x, y), *extra_deflections])
        image, _ = self._light("source", value, beta_x, beta_y, set())
        return image + self._light("light", value, x, y, set())[0] if "light" in self._lights else image

    def _in_lens_frame(self, parameters: Parameters, x: Tensor, y: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Return the values of all parameters (b, 1, 1), and positions relative to the lens."""
        value = {name: v[:, None, None] for name, v in self._values(parameters).items()}
        return (value, x, y) if self.centred else (value, x - value["centre_x"], y - value["centre_y"])

    def _free_parameters_of(self, prefix: str) -> set[str]:
        """Return the free parameters of the source or of the lens light."""
        start = f"{prefix}_"
        return {name.removeprefix(start) for name in self.names if name.startswith(start)}

    def _alphas(self, value: Mapping[str, Tensor], x: Tensor, y: Tensor) -> list[Deflection]:
        """Return the deflections of the shear and of the main lens."""
        external = shear.deflection(x, y, gamma1=value["gamma1"], gamma2=value["gamma2"])
        if self._is_round:
            return [external, sis.deflection(x, y, theta_E=value["theta_E"])]
        return [external, sie.deflection(x, y, **{name: value[name] for name in ("theta_E", "e1", "e2")})]

    def _deflection(
        self, value: Mapping[str, Tensor], x: Tensor, y: Tensor
    ) -> tuple[list[Deflection], dict[str, Deflection]]:
        """Return the deflections of shear and lens, and their derivatives with respect to the free parameters."""
        theta_E, shape = value["theta_E"], {"e1", "e2"} & set(self.names)
        external, lens = self._alphas({**value, **{name: variable(name, value[name]) for name in shape}}, x, y)
        alpha_x, alpha_y = map(value_of, lens)
        one, zero = torch.ones_like(theta_E), torch.zeros_like(theta_E)
        slopes = {
            "gamma1": shear.deflection(x, y, gamma1=one, gamma2=zero),  # linear in both
            "gamma2": shear.deflection(x, y, gamma1=zero, gamma2=one),
        }
        slopes |= {name: (slopes_of(lens[0])[name], slopes_of(lens[1])[name]) for name in shape}
        slopes["theta_E"] = alpha_x / theta_E, alpha_y / theta_E
        return [external, (alpha_x, alpha_y)], {name: slope for name, slope in slopes.items() if name in self.names}

    def _hessian(self, value: Mapping[str, Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the second derivatives of the potential of lens and shear."""
        if self._is_round:
            xx, xy, yy = sis.hessian(x, y, theta_E=value["theta_E"])
        else:
            xx, xy, yy = sie.hessian(x, y, **{name: value[name] for name in ("theta_E", "e1", "e2")})
        external = shear.hessian(x, y, gamma1=value["gamma1"], gamma2=value["gamma2"])
        return xx + external[0], xy + external[1], yy + external[2]

    def _light(
        self, prefix: str, value: Mapping[str, Tensor], x: Tensor, y: Tensor, by: set[str]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the light at x, y and its derivatives with respect to `by`; there, x and y are the position."""
        spec = self._lights[prefix]
        light_value = {
            name: value[f"{prefix}_{name}"] for name in ("amplitude", "x", "y", "e1", "e2", "ln_R_e", "ln_n")
        }
        brightness, slopes = light.sersic_slopes(
            x - light_value["x"],
            y - light_value["y"],
            amplitude=light_value["amplitude"],
            R_e=light_value["ln_R_e"].exp(),
            n=light_value["ln_n"].exp(),
            e1=light_value["e1"],
            e2=light_value["e2"],
            b=light.sersic_b_linear if spec.b_n == "linear" else light.sersic_b,
            by=by,
        )
        return brightness, {f"{prefix}_{name}": slope for name, slope in slopes.items()}

    def bounded(self, parameters: Parameters) -> Parameters:
        """Return the parameters clamped to their bounds: theta_E above 0.05 arcsec, ellipticities up to 0.8.

        Logarithms of radii, Sersic indices and amplitudes stay near the range of the population. Faint light would
        drift beyond it.
        """
        lowest, highest = (constant(v, parameters.dtype, parameters.device) for v in (self._lowest, self._highest))
        bounded = torch.maximum(torch.minimum(parameters, highest), lowest)
        for columns in self._ellipticities:
            e = bounded[:, columns].clone()
            size = torch.hypot(*e.unbind(1))[:, None]
            bounded[:, columns] = e * (size.clamp(max=_LARGEST_ELLIPTICITY) / size.clamp_min(_SMALLEST_ELLIPTICITY))
        return bounded

    def mirrored(self, parameters: Parameters) -> Parameters:
        """Return lenses with the source on the opposite side and images at about the same positions.

        The two images of a source lie around centre + source, for either side of the lens. With a free centre, a fit
        may end in the local minimum on the wrong side. Requires a free centre.
        """
        other_side = parameters.clone()
        for centre, source in zip(CENTRE, ("source_x", "source_y"), strict=True):
            c, s = self.names.index(centre), self.names.index(source)
            other_side[:, c] = (parameters[:, c] + 2 * parameters[:, s]).clamp(-LARGEST_CENTRE, LARGEST_CENTRE)
            other_side[:, s] += parameters[:, c] - other_side[:, c]
        return other_side

    def _brightness(self, parameters: Parameters, field: Field2D) -> Tensor:
        population = self.population.model_copy(update={"field": field})
        x, y = render.axes(field, parameters.dtype, parameters.device)
        value = self._columns(parameters)
        if not self.centred:
            cx, cy = (parameters[:, self.names.index(name), None, None] for name in CENTRE)
            x, y = x - cx, y - cy
        return render.surface_brightness(population, (), render.scene_terms(population, (), value, x, y), x, y)

    def _observed(self, brightness: Tensor, field: Field2D) -> Tensor:
        psf = self.population.psf
        sigma = psf.width(self.population.field.pixel_scale) / field.pixel_scale
        kernel = optics.gaussian_psf(sigma=sigma, truncate=psf.truncate)
        return optics.convolve_separable(optics.integrate_pixels(brightness, field.supersample), kernel)

    def _columns_of(self, truth: Mapping[str, object]) -> dict[str, Tensor]:
        names = [*_LENS, *(f"{prefix}_{name}" for prefix in self._lights for name in _LIGHT)]
        return {name: torch.as_tensor(truth[name], dtype=torch.float32) for name in names}

    def _to_fit_columns(self, column: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Convert the columns of a store to the parameters of the fit."""
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

    def _values(self, parameters: Parameters) -> dict[str, Tensor]:
        """Return free and fixed parameters of the fit, and the amplitudes of source and lens light."""
        value = {name: fixed.to(parameters).expand(len(parameters)) for name, fixed in self.fixed.items()}
        value |= dict(zip(self.names, parameters.unbind(1), strict=True))
        value["source_amplitude"] = self._median["source_amplitude"].to(parameters).expand(len(parameters))
        if "light" in self._lights:
            value["light_amplitude"] = value["source_amplitude"] * value["light_ln_amplitude"].exp()
        return value

    def _columns(self, parameters: Parameters) -> dict[str, Tensor]:
        """Convert parameters of the fit to the columns of the renderer."""
        value = self._values(parameters)
        column = {name: value[name] for name in _LENS}
        for prefix in self._lights:
            e1, e2 = value[f"{prefix}_e1"], value[f"{prefix}_e2"]
            e = torch.sqrt(e1 * e1 + e2 * e2 + _SMALLEST_ELLIPTICITY**2)
            column |= {f"{prefix}_{name}": value[f"{prefix}_{name}"] for name in ("x", "y", "amplitude")}
            column |= {f"{prefix}_{name}": value[f"{prefix}_ln_{name}"].exp() for name in ("R_e", "n")}
            column |= {f"{prefix}_q": (1 - e) / (1 + e), f"{prefix}_angle": torch.atan2(e2, e1) / 2}
        return column
