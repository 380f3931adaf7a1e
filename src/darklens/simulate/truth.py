"""The true parameters of each image: samples of the priors of a population."""

from collections.abc import Sequence

import numpy as np
import torch

from darklens.physics import light
from darklens.populations import galaxies
from darklens.populations.light_models import ImageLight, SersicLight
from darklens.populations.population import InstrumentNoise, Noise, Population, ThetaEOfMass
from darklens.simulate.sampling import PriorSampler
from darklens.simulate.substructure import KINDS, Columns

_LENS = {
    "theta_E": "arcsec, smooth lens",
    "e1": "smooth lens",
    "e2": "smooth lens",
    "gamma1": "external shear",
    "gamma2": "external shear",
}
_POSITION = {"x": "arcsec", "y": "arcsec", "angle": "radians from x towards y"}
_LIGHT = {
    "sersic": _POSITION
    | {
        "amplitude": "brightness at R_e, counts (or rate) per pixel",
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
    meanings = dict(_LENS)
    for prefix, spec in (("source", population.source), ("light", population.lens_light)):
        if spec:
            meanings |= {f"{prefix}_{name}": meaning for name, meaning in _LIGHT[spec.kind].items()}
    for substructure in population.classes.values():
        meanings |= KINDS[substructure.kind].columns(substructure)
    return meanings | {"exposure": "seconds; 1 where the rate is already in counts"}


def label_of(population: Population, index: int) -> int:
    """Return the label of image `index`. Classes alternate, so that the first n images are balanced for any n."""
    return index % len(population.classes)


def draw(population: Population, seed: int, indices: Sequence[int]) -> Truth:
    """Return the true parameters of images: columns of shape (b,), or (b, k) for k masses; units as in `columns`."""
    n, sampler, lens = len(indices), PriorSampler(seed, indices), population.lens
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
        "exposure": _exposure(population.noise, sampler, n),
    }
    for prefix, spec in (("source", population.source), ("light", population.lens_light)):
        if spec:
            light_columns = _light(population, spec, PriorSampler(seed, indices, f"{prefix}."))
            truth |= {f"{prefix}_{name}": values for name, values in light_columns.items()}

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
    # An isothermal lens has mass theta_E * R within R, in units of pi Sigma_crit.
    truth["theta_E"] = theta_E - inside / theta_E if population.conserve_mass else theta_E
    return {name: truth[name] for name in columns(population)}


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
    assert isinstance(population.noise, InstrumentNoise)
    total = 10 ** (-0.4 * (sampler.one("magnitude", spec.magnitude) - population.noise.instrument.zero_point))
    if isinstance(spec, SersicLight):
        R_e, n = (torch.from_numpy(values[name]) for name in ("R_e", "n"))
        b = light.sersic_b_linear if spec.b_n == "linear" else light.sersic_b
        total *= population.field.pixel_scale**2 / light.sersic_total(R_e=R_e, n=n, b=b(n)).numpy()
    values["amplitude"] = total
    return values
