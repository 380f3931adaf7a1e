"""Labelled images as an importer lists them, before any is read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from darklens.data.readers import Image


@dataclass(frozen=True)
class Entry:
    """One labelled image.

    Args:
        name: Name of the image in the column `path` of the store and in messages.
        label: Number of its class.
        read: Returns the pixels, with row 0 at the bottom, or an `Image` with its pixel scale. It is called once per
            entry, in order. If it raises an exception, the image is skipped and listed.
        location: Name of the image in messages, if different from `name`.
    """

    name: str
    label: int
    read: Callable[[], Float[np.ndarray, "n m"] | Image]
    location: str = ""


@dataclass(frozen=True, kw_only=True)
class Importer:
    """A layout of files that `darklens import --format NAME` reads.

    Args:
        classes: Class names in the order of their labels.
        entries: Lists the images of a source without reading their pixels.
        about: Description in one sentence.
    """

    classes: Sequence[str]
    entries: Callable[[Path], Sequence[Entry]]
    about: str = ""
