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
_POINT, _LINE = ["sphere"], ["vort"]  # classes with point masses, and with a line mass

SLIDERS = {
    slider.name: slider
    for slider in (
        Slider(name="theta_E", label="Einstein radius", unit="arcsec", min=0.7, max=1.9, step=0.01, default=1.28),
        Slider(name="gamma1", label="Shear γ₁", unit="", min=-0.2, max=0.2, step=0.005, default=0.05),
        Slider(name="gamma2", label="Shear γ₂", unit="", min=-0.2, max=0.2, step=0.005, default=0.0),
        Slider(name="source_x", label="Source position x", unit="arcsec", min=-0.35, max=0.35, step=0.01, default=0.1),
        Slider(name="source_y", label="Source position y", unit="arcsec", min=-0.35, max=0.35, step=0.01, default=0.05),
        Slider(
            name="mass",
            label="Perturber mass",
            unit="M_sun",
            min=1e7,
            max=1e11,
            step=0.05,
            default=1e10,
            scale="log",
            classes=_POINT + _LINE,
        ),
        Slider(
            name="x",
            label="Perturber position x",
            unit="arcsec",
            min=-2,
            max=2,
            step=0.02,
            default=1.2,
            classes=_POINT + _LINE,
        ),
        Slider(
            name="y",
            label="Perturber position y",
            unit="arcsec",
            min=-2,
            max=2,
            step=0.02,
            default=0.4,
            classes=_POINT + _LINE,
        ),
        Slider(name="length", label="Line length", unit="arcsec", min=0.5, max=3, step=0.05, default=2, classes=_LINE),
        Slider(
            name="angle",
            label="Line angle from the x axis",
            unit="deg",
            min=0,
            max=180,
            step=1,
            default=60,
            classes=_LINE,
        ),
        Slider(
            name="exposure", label="Exposure, relative", unit="", min=0.1, max=10, step=0.05, default=1, scale="log"
        ),
        Slider(name="seed", label="Random seed", unit="", min=0, max=9999, step=1, default=0),
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
