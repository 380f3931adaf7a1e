"""Where in a wide image the lens is."""

from collections.abc import Callable
from operator import itemgetter

import numpy as np
import torch
from jaxtyping import Float

from darklens.physics.profiles import shear, sis
from darklens.physics.raytrace import source_plane

_SIDES = (0.2, 0.1, 0.05)  # arcsec, of the pixels that are looked at, one after the other
_REACH = 3.0  # arcsec from the centre of light, of the pixels that are looked at
_LARGEST_OFFSET = 1.2  # arcsec of the lens from the centre of light
_SOURCE, _CELLS = 1.5, 1.2  # arcsec: half the side of the source plane; its cells in pixels
_SMOOTHED = 0.1  # arcsec, of the pixels in which light is sought
_LARGEST_SIDE = 600  # along a side, of those
_BRIGHT = 5.0  # standard deviations of the smoothed sky
_SMALLEST_EINSTEIN, _LARGEST_EINSTEIN, _LARGEST_SHEAR = 0.3, 2.5, 0.4
_LOW, _HIGH = (-0.8, -0.8, 0.7, -0.25, -0.25), (0.8, 0.8, 1.7, 0.25, 0.25)  # of the lenses that are tried first
_TRIED, _STARTS = 500, 4
_UNLIKE_A_LENS = 0.06  # of the variance that the best lens leaves
_OUT_OF_BOUNDS = 9.0
_FIRST_STEPS, _LAST_STEPS = np.array([0.2, 0.2, 0.15, 0.1, 0.1]), np.array([0.03, 0.03, 0.03, 0.02, 0.02])


def find_lens(pixels: Float[np.ndarray, "h w"], pixel_scale: float) -> tuple[float, float] | None:
    """Return row and column of the lens, in pixels from the middle of the image; none, if nothing shines.

    A lens sends the light of each place of the source to several places of the image. So of all singular isothermal
    spheres with shear that one is taken which, when it sends the image back, puts equal brightness on equal places:
    what remains is the scatter of the pixels that land together. Neither the source's form nor the PSF is assumed. If
    even the best leaves more than 6 % of the variance, as where a lensing galaxy outshines the ring, the centre of
    light is taken instead.

    Args:
        pixels: In any linear unit; NaN where missing.
        pixel_scale: arcsec.
    """
    finite = np.isfinite(pixels)
    if not finite.any():
        return None
    low, high = pixels[finite].min(), pixels[finite].max()
    if not 0 < high - low < np.inf:
        return None
    image = (np.where(finite, pixels, np.median(pixels[finite])) - low) / (high - low)
    coarse = max(1, round(_SMOOTHED / pixel_scale), -(-max(image.shape) // _LARGEST_SIDE))
    light = _centre_of_light(_binned(image, coarse), pixel_scale * coarse)
    if light is None:
        return None
    light = light * coarse + (coarse - 1) / 2
    corner = np.maximum(0, np.floor(light - _REACH / pixel_scale).astype(int))
    end = np.ceil(light + _REACH / pixel_scale).astype(int) + 1
    window = image[corner[0] : end[0], corner[1] : end[1]]
    root = np.sqrt(np.clip(window - np.median(image), 0, None))  # a peak shall not outweigh the ring
    scatters = []
    for side in _SIDES:
        block = max(1, round(side / pixel_scale))
        at = (light - corner - (block - 1) / 2) / block
        scatters.append(_scatter(_binned(root, block), at, pixel_scale * block))
    tried = np.random.default_rng(0).uniform(_LOW, _HIGH, (_TRIED, len(_LOW)))
    refined = [_refined(scatters[1], lens, _FIRST_STEPS) for lens in sorted(tried, key=scatters[0])[:_STARTS]]
    lens, scatter_about = _refined(scatters[2], min(refined, key=itemgetter(1))[0], _LAST_STEPS)
    best = light + lens[[1, 0]] / pixel_scale if scatter_about < _UNLIKE_A_LENS else light
    off = best - (np.array(image.shape) - 1) / 2
    return float(off[0]), float(off[1])


def _centre_of_light(image: Float[np.ndarray, "h w"], pixel_scale: float) -> Float[np.ndarray, "2"] | None:
    """Return row and column of the light within `_REACH` of itself, where there is most of it."""
    from scipy.ndimage import gaussian_filter, uniform_filter

    smooth = gaussian_filter(image - np.median(image), 1.0)
    noise = 1.4826 * np.median(np.abs(smooth - np.median(smooth)))
    bright = np.sqrt(np.where(smooth > _BRIGHT * noise, smooth, 0.0))
    if not bright.any():
        return None
    coverage = uniform_filter(bright, max(3, round(_REACH / pixel_scale)), mode="constant")
    at = np.array(np.unravel_index(np.argmax(coverage), coverage.shape), dtype=np.float64)
    rows, columns = np.arange(image.shape[0])[:, None], np.arange(image.shape[1])
    for _ in range(3):
        near = bright**2 * (np.hypot(rows - at[0], columns - at[1]) < _REACH / pixel_scale)
        if not near.any():
            break
        at = np.array([(near * rows).sum(), (near * columns).sum()]) / near.sum()
    return at


def _binned(image: Float[np.ndarray, "h w"], block: int) -> Float[np.ndarray, "h2 w2"]:
    height, width = (n // block for n in image.shape)
    kept = image[: height * block, : width * block]
    return np.asarray(kept.reshape(height, block, width, block).mean((1, 3)))


def _scatter(
    image: Float[np.ndarray, "h w"], at: Float[np.ndarray, "2"], pixel_scale: float
) -> Callable[[Float[np.ndarray, " 5"]], float]:
    """Return the part of the variance that is left when a lens sends the pixels to the source plane.

    A lens is x, y (arcsec from the pixel `at`), theta_E, gamma1, gamma2. Each pixel is shared by the four nearest cells
    of the source plane, and compared with what their means say.
    """
    rows, columns = np.indices(image.shape)
    x, y = (columns - at[1]) * pixel_scale, (rows - at[0]) * pixel_scale
    near = np.hypot(x, y) < _REACH
    x, y, value = (torch.from_numpy(v[near]) for v in (x, y, image))
    cell = _CELLS * pixel_scale
    n = int(2 * _SOURCE / cell) + 2
    corners = torch.tensor([[0], [1], [n], [n + 1]])
    variance = float(((value - value.mean()) ** 2).sum())

    def scatter_about(lens: Float[np.ndarray, " 5"]) -> float:
        at_x, at_y, theta_E, gamma1, gamma2 = (torch.tensor(v, dtype=torch.float64) for v in lens)
        allowed = np.hypot(lens[0], lens[1]) < _LARGEST_OFFSET and np.hypot(lens[3], lens[4]) < _LARGEST_SHEAR
        if not (allowed and _SMALLEST_EINSTEIN < lens[2] < _LARGEST_EINSTEIN and variance > 0):
            return _OUT_OF_BOUNDS
        from_x, from_y = x - at_x, y - at_y
        deflections = [
            sis.deflection(from_x, from_y, theta_E=theta_E),
            shear.deflection(from_x, from_y, gamma1=gamma1, gamma2=gamma2),
        ]
        u, v = ((beta + _SOURCE) / cell for beta in source_plane(from_x, from_y, deflections))
        inside = (u >= 0) & (u < n - 1) & (v >= 0) & (v < n - 1)
        u, v, brightness = u[inside], v[inside], value[inside]
        column, row = u.floor(), v.floor()
        right, up = u - column, v - row
        weights = torch.stack([(1 - right) * (1 - up), right * (1 - up), (1 - right) * up, right * up])
        cells = (row.long() * n + column.long() + corners).flatten()
        total = torch.bincount(cells, (weights * brightness).flatten(), n * n)
        source = total / torch.bincount(cells, weights.flatten(), n * n).clamp_min(1e-9)
        missed = ((brightness - (weights * source[cells].reshape(4, -1)).sum(0)) ** 2).sum()
        outside = value[~inside]
        if len(outside):
            missed = missed + ((outside - outside.mean()) ** 2).sum()
        return float(missed) / variance

    return scatter_about


def _refined(
    scatter: Callable[[Float[np.ndarray, " 5"]], float], near: Float[np.ndarray, " 5"], steps: Float[np.ndarray, " 5"]
) -> tuple[Float[np.ndarray, " 5"], float]:
    """Return the best lens near one, and what it leaves."""
    from scipy.optimize import minimize

    options = {"initial_simplex": np.vstack([near, near + np.diag(steps)]), "maxfev": 120, "xatol": 1e-3, "fatol": 2e-5}
    best = minimize(scatter, near, method="Nelder-Mead", options=options)
    return best.x, float(best.fun)
