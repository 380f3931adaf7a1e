"""Import and export of DeepLense folders: one folder per class with files `N.npy` of shape (1, n, n), or an index.csv.

The import also accepts other file types and single files with labelled arrays.
"""

import csv
import io
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from darklens.data.classes import ALIASES, CLASSES, label_of
from darklens.data.entries import Entry, Importer
from darklens.data.image_paths import images_in
from darklens.data.labelled_arrays import open_labelled_arrays
from darklens.data.readers import read_image, require_file
from darklens.data.store import Store, prepare_folder
from darklens.errors import InputError
from darklens.files import atomic_path, decode_text, write_text

if TYPE_CHECKING:
    from darklens.data.importers import ImportReport


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
    labels: dict[str, tuple[Path, int]] = {}  # by file, links followed
    for path, label in entries:
        other, expected = labels.setdefault(os.path.realpath(path), (path, label))
        if label != expected:
            raise InputError(f"{other} and {path} are one file, but of two classes; remove one of them.")
    return sorted(entries, key=lambda entry: (entry[1], _natural(entry[0].name)))


def import_folder(
    source: Path, out: Path, *, pixel_scale: float | None = None, advance: Callable[[int], None] = lambda _: None
) -> "ImportReport":
    """Import labelled images; images that cannot be used are skipped and listed.

    Args:
        source: Folder with class folders (no, sphere, vort or their DeepLenseSim names), with an index.csv of files and
            labels, or with images.npy and labels.npy; or npz or HDF5 file with `images` (k, n, n) or (k, 1, n, n) and
            `labels` (k,).
        out: Store to write.
        pixel_scale: Pixel scale of the images, arcsec; by default that of the files, or that which `assumed_scale`
            chooses.
        advance: Called with the number of files just processed.

    Raises:
        InputError: If there is nothing to import, a label is not a class, or `out` is not empty; nothing is written.
    """
    from darklens.data.importers import import_images  # it imports this module for its registry

    return import_images(DEEPLENSE, source, out, pixel_scale=pixel_scale, advance=advance)


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
    entries: list[tuple[Path, int]] = []
    lines: dict[str, int] = {}  # by file, links followed
    try:
        reader = csv.reader(io.StringIO(decode_text(index.read_bytes()), newline=""))
        for row in reader:
            if not row:
                continue
            number, label = reader.line_num, label_of(row[1]) if len(row) == 2 else None
            if number == 1 and len(row) == 2 and label is None and not (source / row[0].strip()).exists():
                continue  # the header
            if label is None:
                raise InputError(
                    f"{index}, line {number}: expected `folder/N.npy,label` with a label from 0 to 2, or "
                    f"{', '.join(CLASSES)}."
                )
            path = _in_folder(source, row[0] if (source / row[0]).exists() else row[0].strip())
            if path is None:
                raise InputError(f"{index}, line {number}: {row[0]} is outside the folder.")
            first = lines.setdefault(os.path.realpath(path), number)
            if first != number:
                raise InputError(
                    f"{index}, lines {first} and {number}: both list {row[0].strip()}; keep the line with its label."
                )
            entries.append((path, label))
    except (csv.Error, ValueError, OSError, RuntimeError):
        raise InputError(
            f"{index} is not a table of files and labels; write one `folder/N.npy,label` per line."
        ) from None
    if not entries:
        raise InputError(f"{index} lists no images.")
    return entries


def _in_folder(source: Path, name: str) -> Path | None:
    """Return the path of a file below a folder, as `source` / relative path; None if it is outside."""
    path, folder = source / name, source.resolve()
    if not path.resolve().is_relative_to(folder):
        return None
    if not os.path.isabs(name):
        return path
    for parent, child in ((source.absolute(), path), (folder, path), (folder, path.resolve())):
        if child.is_relative_to(parent):
            return source / child.relative_to(parent)
    return None


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
