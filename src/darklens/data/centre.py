"""Find the position of the lens in a wide image."""

from collections.abc import Callable
from operator import itemgetter

import numpy as np
import torch
from jaxtyping import Float

from darklens.physics.profiles import shear, sis
from darklens.physics.raytrace import source_plane

_PIXEL_SCALES = (0.2, 0.1, 0.05)  # arcsec, of the binned images of the successive searches
_RADIUS = 3.0  # arcsec from the centre of light, within which pixels are used
_LARGEST_OFFSET = 1.2  # arcsec of the lens from the centre of light
_SOURCE_HALF_WIDTH = 1.5  # arcsec
_CELL_SIZE = 1.2  # of the source plane, in image pixels
_LIGHT_PIXEL_SCALE = 0.1  # arcsec, of the binned image in which the centre of light is determined
_LARGEST_N_PIXELS = 600  # along a side of that image
_BRIGHT = 5.0  # standard deviations of the smoothed sky
_SMALLEST_THETA_E, _LARGEST_THETA_E, _LARGEST_SHEAR = 0.3, 2.5, 0.4
_LOW, _HIGH = (-0.8, -0.8, 0.7, -0.25, -0.25), (0.8, 0.8, 1.7, 0.25, 0.25)  # range of the trial lenses
_N_TRIALS, _N_STARTS = 500, 4
_LARGEST_SCATTER = 0.06  # fraction of the variance; above, the best lens is rejected
_OUT_OF_BOUNDS = 9.0
_FIRST_STEPS, _LAST_STEPS = np.array([0.2, 0.2, 0.15, 0.1, 0.1]), np.array([0.03, 0.03, 0.03, 0.02, 0.02])


def find_lens(pixels: Float[np.ndarray, "h w"], pixel_scale: float) -> tuple[float, float] | None:
    """Return row and column of the lens, in pixels from the centre of the image; None if no light is detected.

    The function ray-traces the pixels to the source plane for singular isothermal spheres with external shear, and
    minimises the scatter of the pixels that share a cell of the source plane. It assumes neither a source profile nor a
    PSF. If the best lens leaves more than 6 % of the variance, for example because the lens galaxy outshines the ring,
    the function returns the centre of light.

    Args:
        pixels: Image in any linear unit; NaN where missing.
        pixel_scale: arcsec.
    """
    finite = np.isfinite(pixels)
    if not finite.any():
        return None
    low, high = pixels[finite].min(), pixels[finite].max()
    if not 0 < high - low < np.inf:
        return None
    image = (np.where(finite, pixels, np.median(pixels[finite])) - low) / (high - low)
    coarse = max(1, round(_LIGHT_PIXEL_SCALE / pixel_scale), -(-max(image.shape) // _LARGEST_N_PIXELS))
    light = _centre_of_light(_binned(image, coarse), pixel_scale * coarse)
    if light is None:
        return None
    light = light * coarse + (coarse - 1) / 2
    corner = np.maximum(0, np.floor(light - _RADIUS / pixel_scale).astype(int))
    end = np.ceil(light + _RADIUS / pixel_scale).astype(int) + 1
    window = image[corner[0] : end[0], corner[1] : end[1]]
    root = np.sqrt(np.clip(window - np.median(image), 0, None))  # limits the weight of a peak relative to the ring
    scatters = []
    for scale in _PIXEL_SCALES:
        block = max(1, round(scale / pixel_scale))
        at = (light - corner - (block - 1) / 2) / block
        scatters.append(_scatter(_binned(root, block), at, pixel_scale * block))
    trials = np.random.default_rng(0).uniform(_LOW, _HIGH, (_N_TRIALS, len(_LOW)))
    refined = [_minimise(scatters[1], lens, _FIRST_STEPS) for lens in sorted(trials, key=scatters[0])[:_N_STARTS]]
    lens, scatter = _minimise(scatters[2], min(refined, key=itemgetter(1))[0], _LAST_STEPS)
    best = light + lens[[1, 0]] / pixel_scale if scatter < _LARGEST_SCATTER else light
    offset = best - (np.array(image.shape) - 1) / 2
    return float(offset[0]), float(offset[1])


def _centre_of_light(image: Float[np.ndarray, "h w"], pixel_scale: float) -> Float[np.ndarray, "2"] | None:
    """Return row and column of the centre of light within `_RADIUS` of the brightest region; None if there is none."""
    from scipy.ndimage import gaussian_filter, uniform_filter

    smooth = gaussian_filter(image - np.median(image), 1.0)
    noise = 1.4826 * np.median(np.abs(smooth - np.median(smooth)))
    bright = np.sqrt(np.where(smooth > _BRIGHT * noise, smooth, 0.0))
    if not bright.any():
        return None
    coverage = uniform_filter(bright, max(3, round(_RADIUS / pixel_scale)), mode="constant")
    at = np.array(np.unravel_index(np.argmax(coverage), coverage.shape), dtype=np.float64)
    rows, columns = np.arange(image.shape[0])[:, None], np.arange(image.shape[1])
    for _ in range(3):
        near = bright**2 * (np.hypot(rows - at[0], columns - at[1]) < _RADIUS / pixel_scale)
        if not near.any():
            break
        at = np.array([(near * rows).sum(), (near * columns).sum()]) / near.sum()
    return at


def _binned(image: Float[np.ndarray, "h w"], block: int) -> Float[np.ndarray, "h2 w2"]:
    height, width = (n // block for n in image.shape)
    cropped = image[: height * block, : width * block]
    return np.asarray(cropped.reshape(height, block, width, block).mean((1, 3)))


def _scatter(
    image: Float[np.ndarray, "h w"], at: Float[np.ndarray, "2"], pixel_scale: float
) -> Callable[[Float[np.ndarray, " 5"]], float]:
    """Return the function that maps a lens to the fraction of the variance it leaves in the source plane.

    A lens is x, y (arcsec from the pixel `at`), theta_E, gamma1, gamma2. The brightness of the source is interpolated
    between the four nearest cells of its plane. Pixels outside these cells are compared with their mean.
    """
    rows, columns = np.indices(image.shape)
    x, y = (columns - at[1]) * pixel_scale, (rows - at[0]) * pixel_scale
    near = np.hypot(x, y) < _RADIUS
    x, y, value = (torch.from_numpy(v[near]) for v in (x, y, image))
    cell = _CELL_SIZE * pixel_scale
    n = int(2 * _SOURCE_HALF_WIDTH / cell) + 2
    corners = torch.tensor([[0], [1], [n], [n + 1]])
    variance = float(((value - value.mean()) ** 2).sum())

    def scatter(lens: Float[np.ndarray, " 5"]) -> float:
        at_x, at_y, theta_E, gamma1, gamma2 = (torch.tensor(v, dtype=torch.float64) for v in lens)
        allowed = np.hypot(lens[0], lens[1]) < _LARGEST_OFFSET and np.hypot(lens[3], lens[4]) < _LARGEST_SHEAR
        if not (allowed and _SMALLEST_THETA_E < lens[2] < _LARGEST_THETA_E and variance > 0):
            return _OUT_OF_BOUNDS
        from_x, from_y = x - at_x, y - at_y
        deflections = [
            sis.deflection(from_x, from_y, theta_E=theta_E),
            shear.deflection(from_x, from_y, gamma1=gamma1, gamma2=gamma2),
        ]
        u, v = ((beta + _SOURCE_HALF_WIDTH) / cell for beta in source_plane(from_x, from_y, deflections))
        inside = (u >= 0) & (u < n - 1) & (v >= 0) & (v < n - 1)
        u, v, brightness = u[inside], v[inside], value[inside]
        column, row = u.floor(), v.floor()
        right, up = u - column, v - row
        weights = torch.stack([(1 - right) * (1 - up), right * (1 - up), (1 - right) * up, right * up])
        cells = (row.long() * n + column.long() + corners).flatten()
        total = torch.bincount(cells, (weights * brightness).flatten(), n * n)
        source = total / torch.bincount(cells, weights.flatten(), n * n).clamp_min(1e-9)
        squares = ((brightness - (weights * source[cells].reshape(4, -1)).sum(0)) ** 2).sum()
        outside = value[~inside]
        if len(outside):
            squares = squares + ((outside - outside.mean()) ** 2).sum()
        return float(squares) / variance

    return scatter


def _minimise(
    scatter: Callable[[Float[np.ndarray, " 5"]], float], start: Float[np.ndarray, " 5"], steps: Float[np.ndarray, " 5"]
) -> tuple[Float[np.ndarray, " 5"], float]:
    """Return the lens of minimal scatter near a starting lens, and its scatter."""
    from scipy.optimize import minimize

    simplex = np.vstack([start, start + np.diag(steps)])
    options = {"initial_simplex": simplex, "maxfev": 120, "xatol": 1e-3, "fatol": 2e-5}
    best = minimize(scatter, start, method="Nelder-Mead", options=options)
    return best.x, float(best.fun)
