"""Artefacts and neighbours added to simulated images, in counts per pixel."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from darklens import rng

Plane = Float[np.ndarray, "n n"]
SCALE = 0.05  # arcsec per pixel
PSF_SIGMA = 0.087  # arcsec


def star(image: Plane, g: np.random.Generator) -> Plane:
    """Add a star of 50 to 300 counts at its peak, 1.7 to 2.2 arcsec from the lens."""
    x, y = _position(g, 1.7, 2.2)
    across, up = _offsets(image, x, y)
    return image + g.poisson(g.uniform(50, 300) * np.exp(-(across**2 + up**2) / 2 / PSF_SIGMA**2))


def galaxy(image: Plane, g: np.random.Generator) -> Plane:
    """Add an exponential galaxy of 30 to 200 counts at its peak, 1.7 to 3 arcsec from the lens."""
    x, y = _position(g, 1.7, 3.0)
    across, up = _offsets(image, x, y)
    radius = np.hypot(across, up / g.uniform(0.5, 1))
    profile = np.exp(-np.hypot(radius, PSF_SIGMA) / g.uniform(0.08, 0.25))
    return image + g.poisson(g.uniform(30, 200) * profile / profile.max())


def sloped_sky(image: Plane, g: np.random.Generator) -> Plane:
    """Add a gradient that rises by 5 to 15 counts across the image."""
    angle = g.uniform(0, 2 * np.pi)
    across, up = _offsets(image, 0, 0)
    along = (across * np.cos(angle) + up * np.sin(angle)) / (len(image) * SCALE)
    return image + g.poisson(g.uniform(5, 15) * (along - along.min()))


def cosmic_rays(image: Plane, g: np.random.Generator) -> Plane:
    """Add three to six tracks of 100 to 1,000 counts, at least one within 1.5 arcsec of the lens."""
    hit = image.copy()
    for k in range(g.integers(3, 7)):
        x, y = _position(g, 0.3, 1.5 if k == 0 else 3.0)
        angle, length, counts = g.uniform(0, np.pi), g.integers(1, 8), g.uniform(100, 1000)
        for step in range(length):
            column = round(len(image) / 2 + x / SCALE + step * np.cos(angle))
            row = round(len(image) / 2 + y / SCALE + step * np.sin(angle))
            hit[row, column] += counts
    return hit


def dead_columns(image: Plane, g: np.random.Generator) -> Plane:
    """Set one or two columns within 1.5 arcsec of the lens to zero."""
    damaged = image.copy()
    for _ in range(g.integers(1, 3)):
        damaged[:, round(len(image) / 2 + g.uniform(-1.5, 1.5) / SCALE)] = 0
    return damaged


def correlated(image: Plane, _: np.random.Generator) -> Plane:
    """Average 2 x 2 neighbouring pixels in part, as drizzling does: noise correlates, the PSF widens a little."""
    mixed = image
    for axis in (0, 1):
        mixed = 0.7 * mixed + 0.15 * np.roll(mixed, 1, axis) + 0.15 * np.roll(mixed, -1, axis)
    return mixed


def subtracted_lens_light(image: Plane, g: np.random.Generator) -> Plane:
    """Add a de Vaucouleurs lens galaxy with its noise and subtract a model that is wrong by 5 %."""
    across, up = _offsets(image, 0, 0)
    radius = np.hypot(np.hypot(across, up / g.uniform(0.6, 1)), PSF_SIGMA)
    light = g.uniform(30, 100) * np.exp(-7.67 * ((radius / 0.7) ** 0.25 - 1))
    return image + g.poisson(light) - light * (1 + g.choice([-0.05, 0.05]))


def saturated(image: Plane, g: np.random.Generator) -> Plane:
    """Clip the image at 50 to 80 % of its maximum."""
    return np.minimum(image, g.uniform(0.5, 0.8) * image.max())


def adu(image: Plane, g: np.random.Generator) -> Plane:
    """Add read noise of 5 counts and divide by a gain of 2 to 4, rounded."""
    return np.round((image + g.normal(0, 5, image.shape)) / g.uniform(2, 4))


CONTAMINANTS: dict[str, Callable[[Plane, np.random.Generator], Plane]] = {
    "star": star,
    "galaxy": galaxy,
    "sloped sky": sloped_sky,
    "cosmic rays": cosmic_rays,
    "dead columns": dead_columns,
    "correlated noise": correlated,
    "subtracted lens light": subtracted_lens_light,
    "saturated": saturated,
    "ADU": adu,
}


def contaminate(images: Float[np.ndarray, "b 1 n n"], name: str, seed: int) -> Float[np.ndarray, "b 1 n n"]:
    """Return images in counts with a contaminant, float32."""
    change = CONTAMINANTS[name]
    changed = [change(image[0].astype(np.float64), rng.generator(seed, name, i)) for i, image in enumerate(images)]
    return np.stack(changed)[:, None].astype(np.float32)


def _position(g: np.random.Generator, low: float, high: float) -> tuple[float, float]:
    radius, angle = g.uniform(low, high), g.uniform(0, 2 * np.pi)
    return radius * np.cos(angle), radius * np.sin(angle)


def _offsets(image: Plane, x: float, y: float) -> tuple[Plane, Plane]:
    axis = (np.arange(len(image)) - (len(image) - 1) / 2) * SCALE
    return axis[None, :] - x, axis[:, None] - y
