"""Simulates one lens from parameters that the user sets with sliders; the simulator draws the others."""

from functools import cache
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Float32
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from darklens import populations
from darklens.populations.population import PoissonNoise, Population
from darklens.populations.substructure_models import PointMasses
from darklens.serve.responses import Example, Slider, Sliders
from darklens.simulate.detection import observe
from darklens.simulate.render import render
from darklens.simulate.truth import draw

POPULATION = "common-test-i"
_LINE = ["vort"]  # classes with a line mass
_ANY = ["sphere", *_LINE]  # classes with a perturber

Real = int | float  # run-time checks of types take no integer for a float


def _slider(
    name: str, label: str, unit: str, low: Real, high: Real, step: Real, default: Real, **others: Any
) -> Slider:
    return Slider(name=name, label=label, unit=unit, min=low, max=high, step=step, default=default, **others)


SLIDERS = {
    slider.name: slider
    for slider in (
        _slider("theta_E", "Einstein radius", "arcsec", 0.7, 1.9, 0.01, 1.28),
        _slider("gamma1", "Shear γ₁", "", -0.2, 0.2, 0.005, 0.05),
        _slider("gamma2", "Shear γ₂", "", -0.2, 0.2, 0.005, 0.0),
        _slider("source_x", "Source position x", "arcsec", -0.35, 0.35, 0.01, 0.1),
        _slider("source_y", "Source position y", "arcsec", -0.35, 0.35, 0.01, 0.05),
        _slider("mass", "Perturber mass", "M_sun", 1e7, 1e11, 0.05, 1e10, scale="log", classes=_ANY),
        _slider("x", "Perturber position x", "arcsec", -2, 2, 0.02, 1.2, classes=_ANY),
        _slider("y", "Perturber position y", "arcsec", -2, 2, 0.02, 0.4, classes=_ANY),
        _slider("length", "Line length", "arcsec", 0.5, 3, 0.05, 2, classes=_LINE),
        _slider("angle", "Line angle from the x axis", "deg", 0, 180, 1, 60, classes=_LINE),
        _slider("exposure", "Exposure, relative", "", 0.1, 10, 0.05, 1, scale="log"),
        _slider("seed", "Random seed", "", 0, 9999, 1, 0),
    )
}


def _number(name: str) -> Any:
    slider = SLIDERS[name]
    unit = f", {slider.unit}" if slider.unit else ""
    return Field(default=slider.default, ge=slider.min, le=slider.max, description=slider.label + unit)


def _to_integer(value: Any) -> Any:
    """Return 3 for 3.0: JSON has one type of number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class LensRequest(BaseModel):
    """A lens to simulate and classify; omitted parameters take the default of their slider."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    model: str | None = Field(default=None, description="name of the model; by default the first one")
    kind: Annotated[Literal["no", "sphere", "vort"], Field(alias="class", description="class of the substructure")] = (
        "sphere"
    )
    theta_E: float = _number("theta_E")
    gamma1: float = _number("gamma1")
    gamma2: float = _number("gamma2")
    source_x: float = _number("source_x")
    source_y: float = _number("source_y")
    mass: float = _number("mass")
    x: float = _number("x")
    y: float = _number("y")
    length: float = _number("length")
    angle: float = _number("angle")
    exposure: float = _number("exposure")
    seed: Annotated[int, BeforeValidator(_to_integer)] = Field(
        default=0, ge=0, le=9999, description="seed of the shape of the source and of the noise"
    )

    def truth(self) -> dict[str, float | int | str]:
        """Return the class and the parameters of the lens, without those of other classes."""
        values = self.model_dump(by_alias=True, exclude={"model"})
        return {
            name: value
            for name, value in values.items()
            if name == "class" or (classes := SLIDERS[name].classes) is None or self.kind in classes
        }


def simulate(lens: LensRequest) -> Float32[np.ndarray, "n n"]:
    """Return the image of a lens, scaled to [0, 1].

    The shape of the source and the noise are those of image 0 of the seed. The exposure scales the counts of source and
    sky.
    """
    population = population_at(lens.exposure)
    truth = draw(population, lens.seed, [0])
    smooth = ("theta_E", "gamma1", "gamma2", "source_x", "source_y")
    truth |= {name: np.array([getattr(lens, name)]) for name in smooth}
    truth["source_amplitude"] = truth["source_amplitude"] * lens.exposure
    if lens.kind != "no":
        squared = _points(population).theta_E_squared(lens.mass, lens.theta_E)
        if lens.kind == "sphere":
            for name, value in (("theta_E", squared**0.5), ("x", lens.x), ("y", lens.y)):
                truth[f"point_{name}"][0, 0] = value
        else:
            line = {"mass": squared, "x": lens.x, "y": lens.y, "length": lens.length}
            line["angle"] = float(np.radians(lens.angle))
            truth |= {f"line_{name}": np.array([value]) for name, value in line.items()}
    with torch.no_grad():
        images = observe(population, render(population, truth), truth, seed=lens.seed, indices=[0])
    return images[0, 0].numpy()


@cache
def population() -> Population:
    """Return the population that the lens belongs to."""
    return populations.get(POPULATION)


def population_at(exposure: float) -> Population:
    """Return the population with the sky counts of an exposure, relative to the exposure of the population."""
    reference = population()
    assert isinstance(reference.noise, PoissonNoise)
    return reference.model_copy(update={"noise": PoissonNoise(sky=reference.noise.sky * exposure)})


def sliders() -> Sliders:
    """Return the parameters of a simulated lens, and examples."""
    return Sliders(parameters=list(SLIDERS.values()), examples=list(_EXAMPLES))


def _points(population: Population) -> PointMasses:
    return next(spec for spec in population.classes.values() if isinstance(spec, PointMasses))


def _example(name: str, label: str, **changes: float | str) -> Example:
    defaults: dict[str, float | int | str] = {slider.name: slider.default for slider in SLIDERS.values()}
    return Example(name=name, label=label, parameters=defaults | changes | {"seed": 0})


_EXAMPLES = (
    _example("smooth", "A smooth lens", **{"class": "no"}),
    _example("subhalo", "A heavy subhalo on the ring", **{"class": "sphere"}, mass=1e10),
    _example("hidden", "A subhalo too light to detect", **{"class": "sphere"}, mass=3e7),
    _example("vortex", "A line mass across the ring", **{"class": "vort"}, mass=4e10, x=0.3, y=0.2),
)
