"""Whether the part of an image in which lenses are fitted still has contrast, in float32 and after scaling to 0..1."""

import numpy as np
from jaxtyping import Float

from darklens.errors import InputError

HALF_WIDTH = 2.4  # arcsec, of the central square in which lenses are fitted; only the faintest arcs extend beyond it
_TRIMMED = 0.015  # fraction of the window: brightest and faintest pixels to ignore, such as a column of bad pixels
_OF_WINDOW, _OF_IMAGE = 1e-3, 1e-4  # smallest contrast relative to the range of the window and of the image
_STEPS = 32  # smallest contrast in steps of float32 values


def contrast_problem(image: Float[np.ndarray, "n m"], pixel_scale: float) -> str:
    """Return why an image has no contrast at its centre; an empty string if it has.

    The contrast is the range of the central 4.8 arcsec without the brightest and the faintest 1.5 % of their pixels.

    Args:
        image: Image in any linear unit.
        pixel_scale: Side of a pixel, arcsec.
    """
    pixels = np.asarray(image)
    height, width = pixels.shape
    side = max(1, min(height, width, round(2 * HALF_WIDTH / pixel_scale)))
    bottom, first = (height - side) // 2, (width - side) // 2
    window = pixels[bottom : bottom + side, first : first + side].astype(np.float64).ravel()
    window = window[np.isfinite(window)]
    if not len(window) or (spread := float(window.max() - window.min())) == 0:
        return f"all pixels of the central {side} x {side} have the same value, so there is nothing to classify"
    n_trimmed = int(_TRIMMED * len(window))
    last = len(window) - 1 - n_trimmed
    window.partition((n_trimmed, last))
    contrast = float(window[last] - window[n_trimmed])
    if contrast == 0:  # few bright pixels on an even background
        return ""
    if contrast < _OF_WINDOW * spread or contrast < _OF_IMAGE * float(np.nanmax(pixels) - np.nanmin(pixels)):
        return (
            "a few pixels are so much brighter or fainter than all others that no contrast is left; replace them, "
            "for example by the median of their neighbours"
        )
    step = float(np.finfo(np.float32).eps * np.abs(window).max())
    if contrast < _STEPS * step:
        return "its pixel values differ too little from their mean for float32; subtract the background first"
    return ""


def require_contrast(image: Float[np.ndarray, "n m"], pixel_scale: float, name: str) -> None:
    """Raise `InputError` if an image has no contrast at its centre, see `contrast_problem`."""
    problem = contrast_problem(image, pixel_scale)
    if problem:
        raise InputError(f"{name}: {problem}.")
