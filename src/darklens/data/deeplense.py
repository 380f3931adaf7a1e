"""DeepLense's folder layout: one folder a class with `N.npy` of shape (1, n, n), or an index.csv; other files too."""

import csv
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from darklens.data.classes import ALIASES, CLASSES, label_of
from darklens.data.importers import IMPORTERS, Entry, Importer, ImportReport, import_images
from darklens.data.labelled_arrays import open_stack
from darklens.data.listing import images_in
from darklens.data.readers import read_image, require_file
from darklens.data.store import Store, prepare_folder
from darklens.errors import InputError
from darklens.files import atomic_path, write_text

__all__ = ["CLASSES", "ImportReport", "export_folder", "import_folder", "list_images"]


def import_folder(
    source: Path, out: Path, *, pixel_scale: float | None = None, advance: Callable[[int], None] = lambda _: None
) -> ImportReport:
    """Import labelled images; a bad one is left out and listed, the others go on.

    Args:
        source: A folder of class folders (no, sphere, vort or their DeepLenseSim names), or with an index.csv that
            names files and labels; a folder with images.npy and labels.npy; or an npz or HDF5 file with `images`
            (k, n, n) or (k, 1, n, n) and `labels` (k,).
        out: Store to write.
        pixel_scale: Pixel scale of the images, arcsec; by default what they say, or 0.05.
        advance: Called with the number of files just handled.

    Raises:
        InputError: If there is nothing to import, a label is no class, or `out` is taken; nothing is written then.
    """
    return import_images(IMPORTERS["deeplense"], source, out, pixel_scale=pixel_scale, advance=advance)


def _entries(source: Path) -> list[Entry]:
    stack = open_stack(source)
    if stack is None:
        return [
            Entry(path.relative_to(source).as_posix(), label, partial(read_image, path), str(path))
            for path, label in list_images(source)
        ]
    images, name = stack.images(), stack.path.name
    return [
        Entry(f"{name}/{i}", label, partial(next, images), f"{stack.path}, image {i}")
        for i, label in enumerate(stack.labels.tolist())
    ]


IMPORTERS.add(
    "deeplense",
    Importer(
        classes=CLASSES,
        entries=_entries,
        about="One folder a class (no, sphere, vort) with image files, an index.csv that names files and labels, or an "
        "npz or HDF5 file with images and labels.",
    ),
)


def list_images(source: Path) -> list[tuple[Path, int]]:
    """Return the image files of a folder and their labels, sorted by class and number.

    Args:
        source: Folder with class folders (no, sphere, vort or their DeepLenseSim names) of image files of any kind, or
            with an index.csv that has a file and a label a line.

    Raises:
        InputError: If the folder is missing, has neither class folders nor index.csv, or the index is malformed.
    """
    if not source.is_dir():
        raise InputError(
            f"{source} is not a folder{'' if source.exists() else ', nor is there such a file'}; see the path."
        )
    if (source / "index.csv").exists():
        return _from_index(source)
    folders = sorted(folder for folder in source.iterdir() if folder.is_dir())
    found = [
        (path, label)
        for folder in folders
        if (label := ALIASES.get(folder.name.lower())) is not None
        for path in images_in(folder)
    ]
    if not found:
        inner = [name for name in ("train", "val", "test") if (source / name).is_dir()]
        hint = f"import one of its parts, such as {source / inner[0]}" if inner else f"it needs {', '.join(CLASSES)}"
        there = f"; it has {', '.join(folder.name for folder in folders[:5])}" if folders and not inner else ""
        raise InputError(f"{source} has no class folders with images{there}; {hint}.")
    unknown = [folder.name for folder in folders if folder.name.lower() not in ALIASES and images_in(folder)]
    if unknown:
        raise InputError(
            f"{source}: the folder {unknown[0]!r} has images and is no class; classes are {', '.join(CLASSES)}."
        )
    return sorted(found, key=lambda entry: (entry[1], _natural(entry[0].name)))


def export_folder(store: Store, out: Path, *, advance: Callable[[int], None] = lambda _: None) -> None:
    """Write a store as a DeepLense folder: float64 images scaled to [0, 1] in `class/N.npy`, and index.csv.

    Raises:
        InputError: If `out` already holds something.
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
                    continue  # names of columns
                if label is None:
                    raise InputError(
                        f"{index}, line {number}: expected `folder/N.npy,label` with a label from 0 to 2, or "
                        f"{', '.join(CLASSES)}."
                    )
                path = source / row[0].strip()
                if not path.resolve().is_relative_to(source.resolve()):
                    raise InputError(f"{index}, line {number}: {row[0]} lies outside the folder.")
                entries.append((path, label))
    except (csv.Error, ValueError, OSError, RuntimeError):
        raise InputError(f"{index} is no table of files and labels; write `folder/N.npy,label` a line.") from None
    if not entries:
        raise InputError(f"{index} lists no images.")
    return entries


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
