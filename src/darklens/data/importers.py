"""Labelled images of any layout brought into a store: a bad one is left out and told of, the others go on."""

import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float

import darklens
from darklens.data.prepare import SAME_SCALE
from darklens.data.readers import Image, check_pixels
from darklens.data.readers.image import damaged
from darklens.data.store import INDEX, Shard, Store, StoreIndex, is_shard, prepare_folder, write_index, write_shard
from darklens.errors import DarklensError, InputError
from darklens.registry import Registry

USUAL_SCALE = 0.05  # arcsec, of DeepLense's images, which do not say
_SHARD_SIZE = 256


@dataclass(frozen=True)
class Entry:
    """One labelled image.

    Args:
        name: What it is called in the store's column `path` and in messages.
        label: Number of its class.
        read: Returns its pixels; row 0 is lowest, or an `Image` with its pixel scale. It is called once, in order of
            the entries. Whatever it raises becomes one sentence on this image.
        where: What messages call it; by default its name.
    """

    name: str
    label: int
    read: Callable[[], Float[np.ndarray, "n m"] | Image]
    where: str = ""


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
    """What an import did.

    Attributes:
        store: What was written.
        problems: One sentence for each image that was left out.
        warnings: What is known of the others that a user should know, in words.
    """

    store: Store
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def import_images(
    importer: Importer,
    source: Path,
    out: Path,
    *,
    pixel_scale: float | None = None,
    entries: Sequence[Entry] | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> ImportReport:
    """Import images into a store. One that was interrupted starts again from the beginning.

    Args:
        importer: How the source is laid out.
        source: File or folder.
        out: Store to write.
        pixel_scale: Pixel scale of the images, arcsec; by default what they say, or 0.05.
        entries: What the importer lists, where that is known already.
        advance: Called with the number of images just handled.

    Raises:
        InputError: If there is nothing to import or `out` is taken; nothing is written then.
    """
    entries = list_entries(importer, source) if entries is None else entries
    _clear(out)
    problems: list[str] = []
    shards: list[Shard] = []
    images: list[np.ndarray] = []
    labels: list[int] = []
    names: list[str] = []
    said: dict[str, int] = {}
    size: int | None = None
    scale = pixel_scale

    def flush() -> None:
        truth = {"label": np.array(labels, dtype=np.int64), "path": np.array(names)}
        shards.append(write_shard(out, len(shards), np.stack(images)[:, None], truth))
        for pending in (images, labels, names):
            pending.clear()

    for entry in entries:
        try:
            image = _read(entry, importer, size)
            size, scale = size or image.pixels.shape[0], scale or image.pixel_scale
            _require_scale(image, scale or USUAL_SCALE, entry.where or entry.name)
            for words in image.changes:
                said[words] = said.get(words, 0) + 1
            images.append(image.pixels)
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
            pixel_scale=scale or USUAL_SCALE,
            source=f"imported from {source.name}",
            version=darklens.__version__,
            columns={"path": "file below the imported folder, or the image's number in the imported file"},
            shards=shards,
        ),
    )
    return ImportReport(Store(out), problems, [f"{n} of the images: {words}." for words, n in said.items()])


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


def _read(entry: Entry, importer: Importer, size: int | None) -> Image:
    where = entry.where or entry.name
    with damaged(Path(where), "image"), np.errstate(over="ignore"):
        given = entry.read()
        image = given if isinstance(given, Image) else Image(np.asarray(given, dtype=np.float64))
        pixels = image.pixels.astype(np.float32)
    if pixels.ndim != 2 or pixels.shape != ((size or pixels.shape[0]),) * 2:
        wanted = f"the others {size} x {size}" if size else "one square image is expected"
        raise InputError(f"{where}: has {' x '.join(map(str, pixels.shape))} pixels, {wanted}.")
    if not 0 <= entry.label < len(importer.classes):
        raise InputError(f"{where}: has label {entry.label}, but there are {len(importer.classes)} classes.")
    check_pixels(pixels, where)
    return Image(pixels, image.pixel_scale, image.changes)


def _require_scale(image: Image, scale: float, where: str) -> None:
    own = image.pixel_scale
    if own is not None and abs(own / scale - 1) > SAME_SCALE:
        raise InputError(
            f"{where}: has pixels of {own:.4g} arcsec, the store {scale:.4g}; import it alone, or give --pixel-scale."
        )


def _clear(out: Path) -> None:
    """Make room for a store: refuse a folder with anything in it but the shards of an interrupted import."""
    shards = out / "shards"
    interrupted = shards.is_dir() and not (out / INDEX).exists() and all(is_shard(path) for path in shards.iterdir())
    prepare_folder(out, besides=shards.name if interrupted else "")
    if interrupted:
        shutil.rmtree(shards)
        with suppress(OSError):
            out.rmdir()
