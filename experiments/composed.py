"""Smooth scenes that no population of the package contains, with the noise of common-test-i: counts per pixel."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from darklens import rng
from darklens.populations.population import Population
from darklens.scene import EPL, PSF, SIE, Detector, MassProfile, Multipole, Scene, Sersic, Shear

SKY = 10.0  # counts per pixel


def images_of(name: str, seed: int, n: int, population: Population) -> Float[np.ndarray, "b 1 n n"]:
    """Return n images of a kind of scene."""
    side, scale = population.field.n_pixels, population.field.pixel_scale
    detector = Detector((side, side), scale, PSF.gaussian(fwhm=0.087 * 2.3548, pixel_scale=scale))
    images = []
    for i in range(n):
        g = rng.generator(seed, name, i)
        scene, amplitudes = SCENES[name](g)
        model = np.asarray(scene.image({}, amplitudes, detector))
        images.append(g.poisson(np.clip(model, 0, None) + SKY))
    return np.stack(images)[:, None].astype(np.float32)


Made = tuple[Scene, dict[str, float]]


def source(g: np.random.Generator, *, radius: float = 0.5, spread: float = 0.3, name: str | None = None) -> Sersic:
    """Return a Sersic source like those of common-test-i."""
    angle, q, at = g.uniform(0, np.pi), g.uniform(0.5, 1), g.uniform(0, 2 * np.pi)
    e, r = (1 - q) / (1 + q), spread * g.uniform()
    shape = {"e1": e * np.cos(2 * angle), "e2": e * np.sin(2 * angle)}
    return Sersic(name=name, R_e=radius, n=1.5, centre_x=r * np.cos(at), centre_y=r * np.sin(at), **shape)


def lens(g: np.random.Generator, *, slope: float = 2.0, e: float = 0.0) -> list[MassProfile]:
    """Return an elliptical power law with shear."""
    phi, angle, gamma = g.uniform(0, 2 * np.pi), g.uniform(0, 2 * np.pi), g.uniform(0, 0.1)
    shape = {"e1": e * np.cos(phi), "e2": e * np.sin(phi), "centre_x": 0.0, "centre_y": 0.0}
    shear = Shear(gamma1=gamma * np.cos(angle), gamma2=gamma * np.sin(angle))
    return [EPL(theta_E=g.uniform(1.0, 1.5), slope=slope, **shape), shear]


def power_law(g: np.random.Generator) -> Made:
    """Return a lens with a slope of 1.8 or 2.2 and an axis ratio of about 0.8."""
    return Scene(lens(g, slope=float(g.choice([1.8, 2.2])), e=0.1), [source(g)]), {"source.amplitude": 100.0}


def boxy(g: np.random.Generator) -> Made:
    """Return a lens with m = 4 multipoles of 3 %."""
    mass, phase = lens(g, e=0.1), g.uniform(0, 2 * np.pi)
    a, b = 0.03 * 1.2 * np.cos(phase), 0.03 * 1.2 * np.sin(phase)
    return Scene([*mass, Multipole(4, a=a, b=b)], [source(g)]), {"source.amplitude": 100.0}


def two_lenses(g: np.random.Generator) -> Made:
    """Return a lens with a companion of a third of its Einstein radius, 1.5 to 2.5 arcsec away."""
    at, r = g.uniform(0, 2 * np.pi), g.uniform(1.5, 2.5)
    place = {"centre_x": r * np.cos(at), "centre_y": r * np.sin(at)}
    companion = SIE(name="companion", theta_E=0.4, e1=0.0, e2=0.0, **place)
    return Scene([*lens(g), companion], [source(g)]), {"source.amplitude": 100.0}


def two_sources(g: np.random.Generator) -> Made:
    """Return a lens of two sources 0.3 to 0.8 arcsec apart."""
    pair = [source(g, name="one"), source(g, radius=0.2, spread=0.8, name="two")]
    return Scene(lens(g), pair), {"one.amplitude": 80.0, "two.amplitude": 80.0}


def clumpy_source(g: np.random.Generator) -> Made:
    """Return a lens of a galaxy with six star-forming regions."""
    clumps = [source(g, radius=0.05, spread=0.5, name=f"clump{k}") for k in range(6)]
    amplitudes = {f"clump{k}.amplitude": float(g.uniform(50, 200)) for k in range(6)}
    return Scene(lens(g), [source(g, name="disc"), *clumps]), {"disc.amplitude": 60.0, **amplitudes}


def unlensed(g: np.random.Generator) -> Made:
    """Return a galaxy of 0.4 to 1 arcsec without a lens."""
    return Scene([], [source(g, radius=g.uniform(0.4, 1.0), spread=0.05)]), {"source.amplitude": 100.0}


def lens_galaxy(g: np.random.Generator) -> Made:
    """Return a lens whose own light, R_e of 0.6 arcsec, is as bright as the arcs."""
    light: Sequence[Sersic] = [Sersic(R_e=0.6, n=3.0, e1=0.05, e2=0.0, centre_x=0.0, centre_y=0.0)]
    return Scene(lens(g, e=0.05), [source(g)], light), {"source.amplitude": 100.0, "light.amplitude": 30.0}


SCENES: dict[str, Callable[[np.random.Generator], Made]] = {
    "power law": power_law,
    "boxy lens": boxy,
    "two lenses": two_lenses,
    "two sources": two_sources,
    "clumpy source": clumpy_source,
    "unlensed galaxy": unlensed,
    "lens galaxy": lens_galaxy,
}
