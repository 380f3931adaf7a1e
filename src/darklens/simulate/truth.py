"""The true parameters of each image: samples of the priors of a population."""

from collections.abc import Sequence

import numpy as np
import torch

from darklens.errors import ConfigError
from darklens.physics import light
from darklens.populations import galaxies
from darklens.populations.light_models import ImageLight, SersicLight
from darklens.populations.population import InstrumentNoise, Noise, Population, ThetaEOfMass
from darklens.populations.scene_priors import ScenePriors
from darklens.simulate.sampling import PerImage, PriorSampler
from darklens.simulate.substructure import KINDS, Columns

_LENS = {
    "theta_E": "arcsec, smooth lens",
    "e1": "smooth lens",
    "e2": "smooth lens",
    "gamma1": "external shear",
    "gamma2": "external shear",
}
_POSITION = {"x": "arcsec", "y": "arcsec", "angle": "radians from x towards y"}
_SERSIC_AMPLITUDE = "brightness at R_e, counts (or rate) per pixel"
_LIGHT = {
    "sersic": _POSITION
    | {
        "amplitude": _SERSIC_AMPLITUDE,
        "R_e": "arcsec",
        "n": "Sersic index",
        "q": "axis ratio",
    },
    "images": _POSITION
    | {
        "amplitude": "total brightness, counts (or rate)",
        "size": "factor on the cut-out's angular size",
        "galaxy": "number of the cut-out",
    },
}

Truth = Columns


def columns(population: Population) -> dict[str, str]:
    """Return the unit and meaning of each parameter that images of the population have."""
    if population.scene is not None:
        return _columns_of_scene(population.scene, population)
    meanings = dict(_LENS)
    for prefix, spec in (("source", population.source), ("light", population.lens_light)):
        if spec:
            meanings |= {f"{prefix}_{name}": meaning for name, meaning in _LIGHT[spec.kind].items()}
    return meanings | _other_columns(population)


def _other_columns(population: Population) -> dict[str, str]:
    meanings: dict[str, str] = {}
    for substructure in population.classes.values():
        meanings |= KINDS[substructure.kind].columns(substructure)
    return meanings | {"exposure": "seconds; 1 where the rate is already in counts"}


def _columns_of_scene(priors: ScenePriors, population: Population) -> dict[str, str]:
    """Return the columns of a scene: its free parameters, the brightness of its light, and theta_E of the main lens."""
    meanings = {"theta_E": f"arcsec, of {priors.main_lens}"}
    meanings |= {name: p.unit for name, p in zip(priors.scene.names, priors.scene.free, strict=True)}
    for name, component in priors.lights.items():
        described = _LIGHT["images"] if isinstance(component, ImageLight) else {"amplitude": _SERSIC_AMPLITUDE}
        meanings |= {f"{name}.{column}": meaning for column, meaning in described.items()}
    return meanings | _other_columns(population)


def label_of(population: Population, index: int) -> int:
    """Return the label of image `index`. Classes alternate, so that the first n images are balanced for any n."""
    return index % len(population.classes)


def draw(population: Population, seed: int, indices: Sequence[int]) -> Truth:
    """Return the true parameters of images: columns of shape (b,), or (b, k) for k masses; units as in `columns`.

    Raises:
        ConfigError: If `conserve_mass` leaves no mass to a lens.
    """
    n, sampler = len(indices), PriorSampler(seed, indices)
    smooth, theta_E = _smooth_lens(population, seed, indices)
    truth: Truth = {**smooth, "exposure": _exposure(population.noise, sampler, n)}
    labels = np.array([label_of(population, i) for i in indices])
    inside = np.zeros(n)
    truth |= _empty_substructure(population, n)
    for label, (name, substructure) in enumerate(population.classes.items()):
        rows = np.flatnonzero(labels == label)
        if not len(rows):
            continue
        class_sampler = PriorSampler(seed, [indices[int(i)] for i in rows], f"classes.{name}.")
        class_columns, inside[rows] = KINDS[substructure.kind].draw(substructure, class_sampler, theta_E[rows])
        for column, values in class_columns.items():
            cells = (rows, slice(values.shape[1])) if values.ndim == 2 else rows
            truth[column][cells] = values
    truth["theta_E"] = _without_mass(population, truth, theta_E, inside) if population.conserve_mass else theta_E
    if not (truth["theta_E"] > 0).all():  # NaN where the power of a negative mass is taken
        raise ConfigError(f"{population.name}: the substructure has more mass than the lens; make it less massive.")
    if population.scene is not None and f"{population.scene.main_lens}.theta_E" in truth:
        truth[f"{population.scene.main_lens}.theta_E"] = truth["theta_E"]
    return {name: truth[name] for name in columns(population)}


def _without_mass(population: Population, truth: Truth, theta_E: PerImage, inside: PerImage) -> PerImage:
    """Return the Einstein radii of lenses with less mass inside the ring, by `inside` (arcsec^2, as theta_E^2).

    The mass of a lens of slope s within R is theta_E^(s - 1) R^(3 - s), in units of pi Sigma_crit.
    """
    if population.scene is None:
        return np.asarray(theta_E - inside / theta_E)
    slope = population.scene.value("slope", truth, 2.0)
    with np.errstate(invalid="ignore"):
        return np.asarray((theta_E ** (slope - 1) - inside * theta_E ** (slope - 3)) ** (1 / (slope - 1)))


def _smooth_lens(population: Population, seed: int, indices: Sequence[int]) -> tuple[Truth, PerImage]:
    """Return the columns of lens and light, and the Einstein radii (arcsec) without substructure."""
    n, sampler = len(indices), PriorSampler(seed, indices)
    if population.scene is not None:
        return _scene(population, population.scene, PriorSampler(seed, indices, "scene."))
    lens = population.lens
    assert lens is not None
    gamma, angle = sampler.one("lens.gamma", lens.gamma), np.radians(sampler.one("lens.gamma_angle", lens.gamma_angle))
    theta_E = (
        np.full(n, lens.theta_E.theta_E())
        if isinstance(lens.theta_E, ThetaEOfMass)
        else sampler.one("lens.theta_E", lens.theta_E)
    )
    truth: Truth = {
        "e1": sampler.one("lens.e1", lens.e1),
        "e2": sampler.one("lens.e2", lens.e2),
        "gamma1": gamma * np.cos(2 * angle),
        "gamma2": gamma * np.sin(2 * angle),
    }
    for prefix, spec in (("source", population.source), ("light", population.lens_light)):
        if spec:
            light_columns = _light(population, spec, PriorSampler(seed, indices, f"{prefix}."))
            truth |= {f"{prefix}_{name}": values for name, values in light_columns.items()}
    return truth, theta_E


def _scene(population: Population, priors: ScenePriors, sampler: PriorSampler) -> tuple[Truth, PerImage]:
    """Return the free parameters, amplitudes and cut-outs of a scene, and theta_E of its main lens."""
    truth: Truth = {name: sampler.one(name, prior) for name, prior in priors.priors.items()}
    for name, component in priors.lights.items():
        if isinstance(component, ImageLight):
            truth |= {f"{name}.{k}": v for k, v in _light(population, component, sampler.within(name)).items()}
        elif component.amplitude is not None:
            truth[f"{name}.amplitude"] = sampler.one(f"{name}.amplitude", component.amplitude)
        else:
            magnitude = sampler.one(f"{name}.magnitude", component.magnitude)
            R_e, n = (priors.value(f"{name}.{symbol}", truth) * np.ones_like(magnitude) for symbol in ("R_e", "n"))
            truth[f"{name}.amplitude"] = _brightness(population, magnitude, R_e, n, component.b_n)
    return truth, priors.value("theta_E", truth) * np.ones(len(sampler))


def _empty_substructure(population: Population, n: int) -> Truth:
    """Return zeros for all columns of substructure, and ones for lengths and radii, which are divisors."""
    empty: Truth = {}
    for spec in population.classes.values():
        width = KINDS[spec.kind].width(spec)
        for column in KINDS[spec.kind].columns(spec):
            if width is None:
                shape: tuple[int, ...] = (n,)
            else:
                shape = (n, max(width, empty[column].shape[1] if column in empty else 0))
            empty[column] = np.full(shape, 1.0 if column in ("line_length", "halo_R_s", "halo_r_t") else 0.0)
    return empty


def _exposure(noise: Noise, sampler: PriorSampler, n: int) -> np.ndarray:
    if noise.kind == "exposure":
        return sampler.one("noise.exposure", noise.exposure)
    return np.full(n, noise.instrument.total_time if noise.kind == "instrument" else 1.0)


def _light(population: Population, spec: SersicLight | ImageLight, sampler: PriorSampler) -> Truth:
    x, y = sampler.position("position", spec.position)
    values: Truth = {"x": x, "y": y, "angle": np.radians(sampler.one("angle", spec.angle))}
    if isinstance(spec, SersicLight):
        values |= {name: sampler.one(name, getattr(spec, name)) for name in ("R_e", "n", "q")}
    else:
        values |= {
            "size": sampler.one("size", spec.size),
            "galaxy": np.floor(sampler.uniform("galaxy", 1)[:, 0] * len(galaxies.files(spec))),
        }
    if spec.amplitude is not None:
        values["amplitude"] = sampler.one("amplitude", spec.amplitude)
        return values
    assert spec.magnitude is not None
    magnitude = sampler.one("magnitude", spec.magnitude)
    values["amplitude"] = (
        _brightness(population, magnitude, values["R_e"], values["n"], spec.b_n)
        if isinstance(spec, SersicLight)
        else _total(population, magnitude)
    )
    return values


def _total(population: Population, magnitude: PerImage) -> PerImage:
    """Return the total brightness of light of an AB magnitude, in the unit of the instrument."""
    assert isinstance(population.noise, InstrumentNoise)
    return np.asarray(10 ** (-0.4 * (magnitude - population.noise.instrument.zero_point)))


def _brightness(population: Population, magnitude: PerImage, R_e: PerImage, n: PerImage, b_n: str) -> PerImage:
    """Return the brightness at R_e, per pixel, of Sersic light of an AB magnitude."""
    index = torch.from_numpy(n)
    b = (light.sersic_b_linear if b_n == "linear" else light.sersic_b)(index)
    total = light.sersic_total(R_e=torch.from_numpy(R_e), n=index, b=b).numpy()
    return np.asarray(_total(population, magnitude) * (population.field.pixel_scale**2 / total))
