"""Images that belong to an observation, selected by name or role from files with several."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from darklens.data.readers.planes import Plane, contents
from darklens.data.readers.roles import Role, companion
from darklens.errors import InputError

NOISE_ROLES: tuple[Role, ...] = ("noise", "variance", "weight")
_SELECTED = re.compile(r"(?P<file>.+)\[(?P<name>[^\]]+)\]")


def plane_of(text: str, role: Role, *, science: str = "", row: int | None = None) -> Plane:
    """Return the image that an option names: `FILE`, or `FILE[NAME]` for one of several.

    Args:
        text: The option.
        role: Role of the image in the file; "noise" also for variances and weights.
        science: Name of the science image, which tells the band.
        row: Row of a stack.

    Raises:
        InputError: If the file cannot be read, has no such image, or has several that may be meant.
    """
    match = None if os.path.lexists(text) else _SELECTED.fullmatch(text)
    path = Path(match["file"] if match else text)
    content = contents(path)
    if content.n_rows is not None:
        content = contents(path, row=row)
    if match:
        name = match["name"].lower()
        matches = [plane for plane in content.planes if name in (plane.name.lower(), plane.key)]
        if not matches:
            raise InputError(f"{path} has no image {match['name']!r}.")
        return matches[0]
    if len(content.planes) == 1:
        return content.planes[0]
    roles: Sequence[Role] = NOISE_ROLES if role == "noise" else (role,)
    for candidate in roles:
        planes = [plane for plane in content.planes if plane.role == candidate]
        chosen = companion(science, [plane.name for plane in planes])
        if chosen is not None:
            return next(plane for plane in planes if plane.name == chosen)
    listed = ", ".join(plane.name or str(plane.key) for plane in content.planes[:8])
    raise InputError(f"{path} holds several images ({listed}); select one as {path.name}[NAME].")


def require_shape(name: str, shape: tuple[int, ...], image: tuple[int, ...]) -> None:
    """Raise InputError unless a map has the shape of the image."""
    if shape != image:
        raise InputError(
            f"{name} has {shape[0]} x {shape[1]} pixels, the image {image[0]} x {image[1]}; give one value "
            "for each pixel of the image."
        )
