"""DeepLense's folder layout: one folder a class with `N.npy` of shape (1, n, n), and optionally an index.csv."""

import csv
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from darklens.data.importers import IMPORTERS, Entry, Importer, ImportReport, import_images
from darklens.data.readers import read_whole
from darklens.data.store import Store, prepare_folder
from darklens.errors import InputError
from darklens.files import atomic_path, write_text

__all__ = ["CLASSES", "ImportReport", "export_folder", "import_folder", "list_images"]

CLASSES = ["no", "sphere", "vort"]
_ALIASES = {
    "no": 0, "no_sub": 0, "nosub": 0, "no_substructure": 0,
    "sphere": 1, "cdm": 1, "subhalo": 1,
    "vort": 2, "vortex": 2, "axion": 2,
}  # fmt: skip


def import_folder(
    source: Path, out: Path, *, pixel_scale: float = 0.05, advance: Callable[[int], None] = lambda _: None
) -> ImportReport:
    """Import a DeepLense folder; a bad file is left out and listed, the others go on.

    Args:
        source: Folder with class folders (no, sphere, vort or their DeepLenseSim names), or an index.csv naming files.
        out: Store to write.
        pixel_scale: Pixel scale of the images, arcsec.
        advance: Called with the number of files just handled.

    Raises:
        InputError: If there is nothing to import or `out` is taken; nothing is written then.
    """
    return import_images(IMPORTERS["deeplense"], source, out, pixel_scale=pixel_scale, advance=advance)


def _entries(source: Path) -> list[Entry]:
    return [
        Entry(path.relative_to(source).as_posix(), label, partial(read_whole, path))
        for path, label in list_images(source)
    ]


IMPORTERS.add(
    "deeplense",
    Importer(
        classes=CLASSES,
        entries=_entries,
        about="One folder a class (no, sphere, vort) with .npy files, or an index.csv that names files and labels.",
    ),
)


def list_images(source: Path) -> list[tuple[Path, int]]:
    """Return the files of a DeepLense folder and their labels, sorted by class and number.

    Raises:
        InputError: If the folder is missing, has neither class folders nor index.csv, or the index is malformed.
    """
    if not source.is_dir():
        raise InputError(f"{source} is not a folder.")
    if (source / "index.csv").exists():
        return _from_index(source)
    found = [
        (path, _ALIASES[folder.name])
        for folder in source.iterdir()
        if folder.is_dir() and folder.name in _ALIASES
        for path in folder.glob("*.npy")
    ]
    if not found:
        inner = [name for name in ("train", "val", "test") if (source / name).is_dir()]
        hint = f"import one of its parts, such as {source / inner[0]}" if inner else f"it needs {', '.join(CLASSES)}"
        raise InputError(f"{source} has no class folders with .npy images; {hint}.")
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
    entries = []
    with index.open(newline="", encoding="utf-8") as stream:
        for number, row in enumerate(csv.reader(stream), start=1):
            if not row:
                continue
            if len(row) != 2 or not row[1].strip().isdigit() or int(row[1]) >= len(CLASSES):
                raise InputError(f"{index}, line {number}: expected `folder/N.npy,label` with a label from 0 to 2.")
            path = (source / row[0].strip()).resolve()
            if not path.is_relative_to(source.resolve()):
                raise InputError(f"{index}, line {number}: {row[0]} lies outside the folder.")
            entries.append((source / row[0].strip(), int(row[1])))
    if not entries:
        raise InputError(f"{index} lists no images.")
    return entries


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
