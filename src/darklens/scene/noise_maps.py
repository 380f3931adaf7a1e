"""What a noise map holds: standard deviations, variances or weights."""

import re
from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float

from darklens.data.readers.planes import Plane
from darklens.data.readers.roles import Role
from darklens.errors import InputError
from darklens.scene.observation import MASKED_NOISE, NOISE_WORDS, NoiseKind, noise_meaning

_KINDS: Mapping[Role, NoiseKind] = {"variance": "variance", "weight": "inverse variance"}
_WEAK = re.compile(r"noise|noise_?map|noisemap", re.IGNORECASE)  # names that do not say in which form the noise is


def standard_deviation(
    plane: Plane,
    noise: Float[np.ndarray, "rows columns"],
    image: Float[np.ndarray, "rows columns"],
    used: Bool[np.ndarray, "rows columns"],
) -> tuple[Float[np.ndarray, "rows columns"], NoiseKind, list[str]]:
    """Return standard deviations from a noise map, variance map or weight map, what it was, and what was assumed.

    The name of the plane decides (WHT, IVM, VAR, ERR, RMS and the like), and for others the scatter of the image.

    Args:
        plane: Where the map was read.
        noise: Its values.
        image: The image.
        used: Pixels to compare.

    Raises:
        InputError: If a variance map or weight map does not agree with the image.
    """
    valid = used & np.isfinite(noise) & (noise > 0)
    if valid.any():
        valid &= noise <= MASKED_NOISE * np.median(noise[valid])
    judged, comparison = noise_meaning(image, noise, valid)
    kind = _KINDS.get(plane.role, "standard deviation")
    changes = [f"noise map {plane} taken as {NOISE_WORDS[kind]}"] if plane.role in _KINDS else []
    is_weak = plane.role not in _KINDS and _WEAK.search(plane.name or plane.path.name.partition(".")[0])
    if plane.role == "exposure" and judged is None:
        raise InputError(
            f"{plane} does not agree with the image as a noise map ({comparison}); it may be an exposure map."
        )
    if plane.role not in _KINDS and judged is None:
        changes.append(f"noise map {plane} does not agree with the image: {comparison}")
    elif is_weak and judged in ("variance", "inverse variance"):
        kind = judged
        changes.append(f"noise map {plane} taken as {NOISE_WORDS[kind]}: {comparison}")
    with np.errstate(divide="ignore", invalid="ignore"):
        if kind == "variance":
            noise = np.sqrt(noise)
        elif kind == "inverse variance":
            noise = np.where(noise > 0, noise, np.nan) ** -0.5
    if plane.role in _KINDS:
        judged, comparison = noise_meaning(image, noise, valid)
        if judged != "standard deviation":
            raise InputError(
                f"{plane} as {NOISE_WORDS[kind]} does not agree with the image: the median of the standard deviation "
                + comparison.removeprefix("its median ")
                + "; it may be an exposure map, give a noise map with --noise-map."
            )
    return noise, kind, changes
