"""Finds observations: folders of one, files, and rows of stacks, and the files that belong to each."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from darklens.data.image_paths import expand
from darklens.data.image_stacks import labels_of, location
from darklens.data.readers.roles import OBSERVATION_FILES, OBSERVATION_SUFFIXES, Role
from darklens.errors import InputError


def find_observations(arguments: Sequence[Path | str]) -> list[str]:
    """Return the observations that arguments name: folders of one observation, files, and rows `FILE#i` of stacks.

    A folder with `image.fits` or `data.fits` is one observation. Other folders mean all observations in them. Patterns
    and lists of arguments are expanded as by `darklens.data.image_paths.find_images`.

    Raises:
        InputError: If there are none.
    """
    paths = [str(path) for path in expand(arguments, lambda folder: [Path(folder)])]
    labels = [label for path in paths for label in (_inside(path) if os.path.isdir(path) else [path])]
    if not any(location(label)[0].exists() for label in labels):
        raise InputError(f"{labels[0]}: no such file or folder.")
    return [label for text in labels for label in _rows(text)]


def _inside(folder: str) -> list[str]:
    """Return the observations in a folder: itself, or those of its subfolders and its files."""
    labels: list[str] = []
    for parent, folders, names in os.walk(folder):
        folders.sort()
        if member_of(Path(parent), "science") is not None:
            labels.append(parent)
            folders.clear()
        else:
            labels += [str(path) for path in _images(Path(parent), names)]
    if not labels:
        raise InputError(f"{folder} contains no images.")
    return labels


def _images(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    from darklens.data.readers import MEASUREMENTS

    yield from (folder / name for name in sorted(names) if name.lower().endswith(MEASUREMENTS))


def _rows(label: str) -> list[str]:
    """Return the rows of a stack; anything else as it is."""
    return [label] if location(label)[1] is not None else [str(path) for path in labels_of(Path(label))]


def files_of(label: str) -> list[Path]:
    """Return the files that belong to an observation."""
    path, _ = location(label)
    if not path.is_dir():
        return [path]
    return [file for role in OBSERVATION_FILES if (file := member_of(path, role)) is not None]


def member_of(folder: Path, role: Role) -> Path | None:
    """Return the file of a role in a folder of one observation."""
    candidates = (
        folder / f"{stem}{suffix}" for stem in OBSERVATION_FILES.get(role, ()) for suffix in OBSERVATION_SUFFIXES
    )
    return next((path for path in candidates if path.is_file()), None)
