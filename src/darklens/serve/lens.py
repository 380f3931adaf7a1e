"""One lens from sliders: the parameters that a population would draw are given, all else is the simulator's."""

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
_POINT, _LINE = ["sphere"], ["vort"]

SLIDERS = {
    slider.name: slider
    for slider in (
        Slider(name="theta_E", label="Einstein radius", unit="arcsec", min=0.7, max=1.9, step=0.01, default=1.28),
        Slider(name="gamma1", label="Shear along x", unit="", min=-0.2, max=0.2, step=0.005, default=0.05),
        Slider(name="gamma2", label="Shear along the diagonal", unit="", min=-0.2, max=0.2, step=0.005, default=0.0),
        Slider(name="source_x", label="Source, x", unit="arcsec", min=-0.35, max=0.35, step=0.01, default=0.1),
        Slider(name="source_y", label="Source, y", unit="arcsec", min=-0.35, max=0.35, step=0.01, default=0.05),
        Slider(
            name="mass",
            label="Mass of the substructure",
            unit="M_sun",
            min=1e7,
            max=1e11,
            step=0.05,
            default=1e10,
            scale="log",
            classes=_POINT + _LINE,
        ),
        Slider(
            name="x", label="Its place, x", unit="arcsec", min=-2, max=2, step=0.02, default=1.2, classes=_POINT + _LINE
        ),
        Slider(
            name="y", label="Its place, y", unit="arcsec", min=-2, max=2, step=0.02, default=0.4, classes=_POINT + _LINE
        ),
        Slider(name="length", label="Its length", unit="arcsec", min=0.5, max=3, step=0.05, default=2, classes=_LINE),
        Slider(name="angle", label="Its direction", unit="deg", min=0, max=180, step=1, default=60, classes=_LINE),
        Slider(name="exposure", label="Exposure", unit="", min=0.1, max=10, step=0.05, default=1, scale="log"),
        Slider(name="seed", label="Source and noise", unit="", min=0, max=9999, step=1, default=0),
    )
}


def _number(name: str) -> Any:
    slider = SLIDERS[name]
    unit = f", {slider.unit}" if slider.unit else ""
    return Field(default=slider.default, ge=slider.min, le=slider.max, description=slider.label + unit)


def _whole(value: Any) -> Any:
    """JSON knows one kind of number: 3.0 is 3."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class LensRequest(BaseModel):
    """A lens to simulate and classify; what is left out has its slider's default."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    model: str | None = Field(default=None, description="the classifier; none: the default one")
    kind: Annotated[Literal["no", "sphere", "vort"], Field(alias="class", description="of substructure")] = "sphere"
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
    seed: Annotated[int, BeforeValidator(_whole)] = Field(
        default=0, ge=0, le=9999, description="fixes the shape of the source, and the noise"
    )

    def truth(self) -> dict[str, float | int | str]:
        """Return what the lens is made from; numbers of substructure that it does not have are left out."""
        given = self.model_dump(by_alias=True, exclude={"model"})
        return {
            name: value
            for name, value in given.items()
            if name == "class" or (classes := SLIDERS[name].classes) is None or self.kind in classes
        }


def simulate(wanted: LensRequest) -> Float32[np.ndarray, "n n"]:
    """Return the image of a lens, scaled from 0 to 1.

    The shape of the source and the noise are those of image 0 of the seed; a longer exposure has more of all counts.
    """
    population = populations_at(wanted.exposure)
    truth = draw(population, wanted.seed, [0])
    smooth = ("theta_E", "gamma1", "gamma2", "source_x", "source_y")
    truth |= {name: np.array([getattr(wanted, name)]) for name in smooth}
    truth["source_amplitude"] = truth["source_amplitude"] * wanted.exposure
    if wanted.kind != "no":
        squared = _points(population).theta_E_squared(wanted.mass, wanted.theta_E)
        if wanted.kind == "sphere":
            for name, value in (("theta_E", squared**0.5), ("x", wanted.x), ("y", wanted.y)):
                truth[f"point_{name}"][0, 0] = value
        else:
            line = {"mass": squared, "x": wanted.x, "y": wanted.y, "length": wanted.length}
            line["angle"] = float(np.radians(wanted.angle))
            truth |= {f"line_{name}": np.array([value]) for name, value in line.items()}
    with torch.no_grad():
        images = observe(population, render(population, truth), truth, seed=wanted.seed, indices=[0])
    return images[0, 0].numpy()


@cache
def population() -> Population:
    """Return the population whose lenses and detector are simulated."""
    return populations.get(POPULATION)


def populations_at(exposure: float) -> Population:
    """Return that population with the sky of another exposure."""
    chosen = population()
    assert isinstance(chosen.noise, PoissonNoise)
    return chosen.model_copy(update={"noise": PoissonNoise(sky=chosen.noise.sky * exposure)})


def sliders() -> Sliders:
    """Return what a lens can be made from, and some to begin with."""
    return Sliders(parameters=list(SLIDERS.values()), examples=list(_EXAMPLES))


def _points(chosen: Population) -> PointMasses:
    return next(spec for spec in chosen.classes.values() if isinstance(spec, PointMasses))


def _example(name: str, label: str, **changed: float | str) -> Example:
    usual: dict[str, float | int | str] = {slider.name: slider.default for slider in SLIDERS.values()}
    return Example(name=name, label=label, parameters=usual | changed | {"seed": 0})


_EXAMPLES = (
    _example("smooth", "A smooth lens", **{"class": "no"}),
    _example("subhalo", "A heavy subhalo on the ring", **{"class": "sphere"}, mass=1e10),
    _example("hidden", "A subhalo too light to show", **{"class": "sphere"}, mass=3e7),
    _example("vortex", "A line mass across the ring", **{"class": "vort"}, mass=4e10, x=0.3, y=0.2),
)
