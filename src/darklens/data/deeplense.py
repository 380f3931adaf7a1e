"""Import and export of DeepLense folders: one folder per class with files `N.npy` of shape (1, n, n), or an index.csv.

The import also accepts other file types and single files with labelled arrays.
"""

import csv
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from darklens.data.classes import ALIASES, CLASSES, label_of
from darklens.data.entries import Entry, Importer
from darklens.data.image_paths import images_in
from darklens.data.labelled_arrays import open_labelled_arrays
from darklens.data.readers import read_image, require_file
from darklens.data.store import Store, prepare_folder
from darklens.errors import InputError
from darklens.files import atomic_path, write_text


def _entries(source: Path) -> list[Entry]:
    arrays = open_labelled_arrays(source)
    if arrays is None:
        return [
            Entry(path.relative_to(source).as_posix(), label, partial(read_image, path), str(path))
            for path, label in list_images(source)
        ]
    images, name = arrays.images(), arrays.path.name
    return [
        Entry(f"{name}/{i}", label, partial(next, images), f"{arrays.path}, image {i}")
        for i, label in enumerate(arrays.labels.tolist())
    ]


DEEPLENSE = Importer(
    classes=CLASSES,
    entries=_entries,
    about="One folder per class (no, sphere, vort) with image files, an index.csv of files and labels, or an npz or "
    "HDF5 file with images and labels.",
)


def list_images(source: Path) -> list[tuple[Path, int]]:
    """Return the image files of a folder and their labels, sorted by class and number.

    Args:
        source: Folder with class folders (no, sphere, vort or their DeepLenseSim names) of image files of any type, or
            with an index.csv that has one file and one label per line.

    Raises:
        InputError: If the folder is missing, has neither class folders nor index.csv, or the index is malformed.
    """
    if not source.is_dir():
        raise InputError(f"{source} {'is not a folder' if source.exists() else 'does not exist'}; check the path.")
    if (source / "index.csv").exists():
        return _from_index(source)
    folders = sorted(folder for folder in source.iterdir() if folder.is_dir())
    entries = [
        (path, label)
        for folder in folders
        if (label := ALIASES.get(folder.name.lower())) is not None
        for path in images_in(folder)
    ]
    if not entries:
        splits = [name for name in ("train", "val", "test") if (source / name).is_dir()]
        remedy = f"import one split, such as {source / splits[0]}" if splits else f"name them {', '.join(CLASSES)}"
        listed = f" (it has {', '.join(folder.name for folder in folders[:5])})" if folders and not splits else ""
        raise InputError(f"{source} has no class folders with images{listed}; {remedy}.")
    unknown = [folder.name for folder in folders if folder.name.lower() not in ALIASES and images_in(folder)]
    if unknown:
        raise InputError(
            f"{source}: the folder {unknown[0]!r} has images but is not a class; the classes are {', '.join(CLASSES)}."
        )
    return sorted(entries, key=lambda entry: (entry[1], _natural(entry[0].name)))


def export_folder(store: Store, out: Path, *, advance: Callable[[int], None] = lambda _: None) -> None:
    """Write a store as a DeepLense folder: float64 images scaled to [0, 1] in `class/N.npy`, and an index.csv.

    Raises:
        InputError: If `out` is not empty.
    """
    prepare_folder(out)
    counters = dict.fromkeys(range(len(store.classes)), 0)
    lines: list[tuple[int, int, str]] = []
    for i, label in enumerate(store.labels):
        counters[int(label)] += 1
        name = f"{store.classes[label]}/{counters[int(label)]}.npy"
        image = store.images([i])[0].astype(np.float64)
        with atomic_path(out / name) as temporary:
            np.save(temporary, (image - image.min()) / (image.max() - image.min()), allow_pickle=False)
        lines.append((int(label), counters[int(label)], f"{name},{label}\n"))
        advance(1)
    write_text(out / "index.csv", "".join(line for _, _, line in sorted(lines)))


def _from_index(source: Path) -> list[tuple[Path, int]]:
    index = source / "index.csv"
    require_file(index)
    entries = []
    try:
        with index.open(newline="", encoding="utf-8") as stream:
            for number, row in enumerate(csv.reader(stream), start=1):
                if not row:
                    continue
                label = label_of(row[1]) if len(row) == 2 else None
                if number == 1 and len(row) == 2 and label is None and not (source / row[0].strip()).exists():
                    continue  # the header
                if label is None:
                    raise InputError(
                        f"{index}, line {number}: expected `folder/N.npy,label` with a label from 0 to 2, or "
                        f"{', '.join(CLASSES)}."
                    )
                path = source / row[0].strip()
                if not path.resolve().is_relative_to(source.resolve()):
                    raise InputError(f"{index}, line {number}: {row[0]} is outside the folder.")
                entries.append((path, label))
    except (csv.Error, ValueError, OSError, RuntimeError):
        raise InputError(
            f"{index} is not a table of files and labels; write one `folder/N.npy,label` per line."
        ) from None
    if not entries:
        raise InputError(f"{index} lists no images.")
    return entries


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
