"""Labelled images of any layout brought into a store: a bad one is left out and told of, the others go on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float

import darklens
from darklens.data.readers import check_pixels
from darklens.data.readers.image import damaged
from darklens.data.store import Shard, Store, StoreIndex, prepare_folder, write_index, write_shard
from darklens.errors import DarklensError, InputError
from darklens.registry import Registry

_SHARD_SIZE = 256


@dataclass(frozen=True)
class Entry:
    """One labelled image.

    Args:
        name: What it is called in the store's column `path` and in messages.
        label: Number of its class.
        read: Returns its pixels; row 0 is lowest. Whatever it raises becomes one sentence on this image.
    """

    name: str
    label: int
    read: Callable[[], Float[np.ndarray, "n m"]]


@dataclass(frozen=True, kw_only=True)
class Importer:
    """A layout of files that `darklens import --format NAME` reads.

    Args:
        classes: Class names in the order of their labels.
        entries: Lists the images of a source, without reading their pixels.
        about: One sentence for people.
    """

    classes: Sequence[str]
    entries: Callable[[Path], Sequence[Entry]]
    about: str = ""


IMPORTERS: Registry[Importer] = Registry("import format", extensible=True)


@dataclass
class ImportReport:
    """What an import did: the store, and one sentence for each image that was left out."""

    store: Store
    problems: list[str] = field(default_factory=list)


def import_images(
    importer: Importer,
    source: Path,
    out: Path,
    *,
    pixel_scale: float,
    entries: Sequence[Entry] | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> ImportReport:
    """Import images into a store.

    Args:
        importer: How the source is laid out.
        source: File or folder.
        out: Store to write.
        pixel_scale: Pixel scale of the images, arcsec.
        entries: What the importer lists, where that is known already.
        advance: Called with the number of images just handled.

    Raises:
        InputError: If there is nothing to import or `out` is taken; nothing is written then.
    """
    entries = list_entries(importer, source) if entries is None else entries
    prepare_folder(out)
    problems: list[str] = []
    shards: list[Shard] = []
    images: list[np.ndarray] = []
    labels: list[int] = []
    names: list[str] = []
    size: int | None = None

    def flush() -> None:
        truth = {"label": np.array(labels, dtype=np.int64), "path": np.array(names)}
        shards.append(write_shard(out, len(shards), np.stack(images)[:, None], truth))
        for pending in (images, labels, names):
            pending.clear()

    for entry in entries:
        try:
            image = _read(entry, importer, size)
            size = size or image.shape[0]
            images.append(image)
            labels.append(entry.label)
            names.append(entry.name)
        except DarklensError as error:
            problems.append(str(error))
        if len(images) == _SHARD_SIZE:
            flush()
        advance(1)
    if images:
        flush()
    if not shards or size is None:
        raise InputError(f"{source}: none of its {len(entries)} images can be used; the first: {problems[0]}")
    write_index(
        out,
        StoreIndex(
            classes=list(importer.classes),
            n_pixels=size,
            pixel_scale=pixel_scale,
            source=f"imported from {source.name}",
            version=darklens.__version__,
            columns={"path": "file below the imported folder"},
            shards=shards,
        ),
    )
    return ImportReport(Store(out), problems)


def list_entries(importer: Importer, source: Path) -> Sequence[Entry]:
    """Return the images of a source.

    Raises:
        InputError: If there is none, or the source cannot be read.
    """
    with damaged(source, "imported"):
        entries = importer.entries(source)
    if not entries:
        raise InputError(f"{source}: holds no images that this format knows.")
    return entries


def _read(entry: Entry, importer: Importer, size: int | None) -> np.ndarray:
    with damaged(Path(entry.name), "image"), np.errstate(over="ignore"):
        image = np.asarray(entry.read()).astype(np.float32)
    if image.ndim != 2 or image.shape != ((size or image.shape[0]),) * 2:
        wanted = f"the others {size} x {size}" if size else "one square image is expected"
        raise InputError(f"{entry.name}: has {' x '.join(map(str, image.shape))} pixels, {wanted}.")
    if not 0 <= entry.label < len(importer.classes):
        raise InputError(f"{entry.name}: has label {entry.label}, but there are {len(importer.classes)} classes.")
    check_pixels(image, entry.name)
    return image
