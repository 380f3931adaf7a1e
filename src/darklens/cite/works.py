"""Works that a model, its training and its images are based on, by their keys in references.bib."""

from collections.abc import Iterator
from typing import Any

from darklens.calibration import Calibration
from darklens.models.ensemble import EnsembleConfig
from darklens.physics.profiles import PROFILES
from darklens.populations.light_models import SersicLight
from darklens.populations.population import InstrumentNoise, Population, ThetaEOfMass
from darklens.populations.substructure_models import LineMass, PointMasses, ProfileMasses, Subhaloes

Use = tuple[str, str]
"""Key of a work, and its purpose."""

_PROFILES = {
    "sis": ["schneider1992"],
    "sie": ["kormann1994"],
    "shear": ["schneider1992"],
    "point": ["schneider1992"],
    "line": ["alexander2020"],
    "epl": ["tessore2015"],
    "nfw": ["navarro1997", "bartelmann1996", "wright2000"],
    "tnfw": ["baltz2009", "navarro1997", "wright2000"],
}
_INSTRUMENTS = {"hst": "windhorst2011", "euclid": "euclidvis2025", "lsst": "ivezic2019", "rubin": "ivezic2019"}
_NETWORKS = {
    "resnet_simple": ["he2016"],
    "resnet_18": ["he2016"],
    "autoencoder_resnet_simple": ["he2016"],
    "transformer": ["dosovitskiy2021"],
}


def of_population(population: Population) -> Iterator[Use]:
    """Yield the works that the images of a population are based on."""
    lens = population.lens
    yield from _of_lens(population, "smooth lens")
    if lens is not None:
        yield from _of_profile("shear", "external shear")
    if lens is not None and isinstance(lens.theta_E, ThetaEOfMass):
        yield "astropy2022", "distances"
    for name, substructure in population.classes.items():
        what = f"substructure of class {name}"
        if isinstance(substructure, PointMasses):
            yield from _of_profile("point", what)
        elif isinstance(substructure, LineMass):
            yield from _of_profile("line", what)
        elif isinstance(substructure, Subhaloes):
            yield from _of_profile("tnfw", what)
            yield "astropy2022", "distances"
        elif isinstance(substructure, ProfileMasses):
            yield from _of_profile(substructure.profile, what)
    if isinstance(population.source, SersicLight) or population.lens_light is not None or population.scene is not None:
        yield "graham2005", "light of galaxies"
        yield "ciotti1999", "light of galaxies"
    if isinstance(population.noise, InstrumentNoise):
        for part, key in _INSTRUMENTS.items():
            if part in population.noise.name:
                yield key, "instrument"
    yield "salmon2011", "random numbers"
    yield "giles2016", "Poisson noise"
    yield "virtanen2020", "priors"


def other_profiles(population: Population) -> list[str]:
    """Return the references of plug-in profiles, from their cards."""
    names = {s.profile for s in population.classes.values() if isinstance(s, ProfileMasses)} - set(_PROFILES)
    return [f"{name}: {PROFILES[name].reference}" for name in sorted(names)]


def of_model(config: Any) -> Iterator[Use]:
    """Yield the works that a model and its parts are based on."""
    if isinstance(config, EnsembleConfig):
        yield "lakshminarayanan2017", "deep ensemble"
        for member in config.members:
            yield from of_model(member)
        return
    population = getattr(getattr(config, "k_network", config), "population", None)
    if isinstance(population, Population):
        yield "marquardt1963", "lens fits"
        yield from _of_lens(population, "lens fits")
        yield from _of_profile("point", "lens fits")
        yield from _of_profile("line", "lens fits")
    if config.kind.startswith("sis_"):
        yield "alexander2020", "classes of substructure"
        yield from _of_profile("sis", "lens step")
    for part in (config, *(getattr(config, name, None) for name in ("classifier", "k_network", "first", "specialist"))):
        for key in _NETWORKS.get(getattr(part, "kind", ""), []):
            yield key, "network"


def of_training(stages: Any) -> Iterator[Use]:
    """Yield the works that the stages of a training are based on."""
    for stage in stages:
        yield ("loshchilov2019" if stage.optimiser.kind == "adamw" else "kingma2015"), "optimiser"
        if stage.schedule.kind == "one_cycle":
            yield "smith2017", "learning rate"
        if stage.ema_decay:
            yield "polyak1992", "moving average of weights"
            yield "izmailov2018", "moving average of weights"
        if stage.overrides or stage.substructure_scale != 1:
            yield "bengio2009", "curriculum"
    yield "falcon2019", "training"


def of_calibration(calibration: Calibration) -> Iterator[Use]:
    """Yield the works that temperature, curves, prediction sets, risk guarantees and the OOD score are based on."""
    yield "guo2017", "temperature scaling"
    if calibration.curves:
        yield "zadrozny2002", "isotonic calibration"
    yield "sadinle2019", "prediction sets"
    yield "romano2020", "prediction sets"
    yield "angelopoulos2021", "risk guarantees"
    yield "lee2018", "out-of-distribution score"
    yield "ledoit2004", "out-of-distribution score"


def of_software() -> Iterator[Use]:
    """Yield the packages that all computations use."""
    yield "ansel2024", "tensors and gradients"
    yield "harris2020", "arrays"


def _of_lens(population: Population, purpose: str) -> Iterator[Use]:
    if population.scene is not None:
        for component in population.scene.mass.values():
            yield from _of_profile(component.kind, purpose)
    elif population.lens is not None:
        yield from _of_profile("sis" if population.lens.is_round else "sie", purpose)


def _of_profile(name: str, what: str) -> Iterator[Use]:
    for key in _PROFILES.get(name, []):
        yield key, what
