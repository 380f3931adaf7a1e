"""Import of labelled images into a store; images that cannot be used are skipped and listed."""

import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import darklens
from darklens.data.assumed_scale import UnknownScaleError, assumed_scale
from darklens.data.deeplense import DEEPLENSE, import_folder
from darklens.data.entries import Entry, Importer
from darklens.data.prepare import SAME_SCALE
from darklens.data.readers import Image, check_pixels
from darklens.data.readers.image import as_float64, reject_damaged
from darklens.data.readers.pixel_scale import replacing_unreadable
from darklens.data.store import INDEX, Shard, Store, StoreIndex, is_shard, prepare_folder, write_index, write_shard
from darklens.errors import DarklensError, InputError
from darklens.files import locked, writing
from darklens.registry import Registry

__all__ = ["IMPORTERS", "Entry", "ImportReport", "Importer", "import_folder", "import_images", "list_entries"]

DEFAULT_PIXEL_SCALE = 0.05  # arcsec, of DeepLense images, whose files do not state it
_SHARD_SIZE = 256

IMPORTERS: Registry[Importer] = Registry("import format", extensible=True)
IMPORTERS.add("deeplense", DEEPLENSE)


@dataclass
class ImportReport:
    """The outcome of an import.

    Attributes:
        store: The store that was written.
        problems: One sentence for each image that was skipped.
        warnings: Sentences about the images that were imported.
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
    """Import images into a store. An interrupted import starts again from the beginning.

    Args:
        importer: Layout of the source.
        source: File or folder.
        out: Store to write.
        pixel_scale: Pixel scale of the images, arcsec; by default that of the files, or that which `assumed_scale`
            chooses.
        entries: Result of `list_entries`, if it is already known.
        advance: Called with the number of images just processed.

    Raises:
        InputError: If there is nothing to import, `out` is not empty, or the pixel scale is unknown and several are
            equally likely; nothing is written.
    """
    entries = list_entries(importer, source, pixel_scale=pixel_scale) if entries is None else entries
    require_new(out)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        try:
            return _import(importer, source, out, pixel_scale, entries, advance)
        finally:
            with suppress(OSError):  # unless something was written
                out.rmdir()


def _import(
    importer: Importer,
    source: Path,
    out: Path,
    pixel_scale: float | None,
    entries: Sequence[Entry],
    advance: Callable[[int], None],
) -> ImportReport:
    if require_new(out):
        shutil.rmtree(out / "shards")
    problems: list[str] = []
    shards: list[Shard] = []
    images: list[np.ndarray] = []
    labels: list[int] = []
    names: list[str] = []
    n_changed: dict[str, int] = {}
    size: int | None = None
    scale = pixel_scale
    assumed, words, n_assumed = DEFAULT_PIXEL_SCALE, "", 0

    def flush() -> None:
        truth = {"label": np.array(labels, dtype=np.int64), "path": np.array(names)}
        shards.append(write_shard(out, len(shards), np.stack(images)[:, None], truth))
        for pending in (images, labels, names):
            pending.clear()

    for entry in entries:
        try:
            with replacing_unreadable(pixel_scale):
                image = _read(entry, importer, size)
            location = entry.location or entry.name
            size, scale = size or image.pixels.shape[0], scale or image.pixel_scale
            if scale is None:
                likely, phrase = assumed_scale(image.pixels, Path(location), default=assumed, name=location)
                assumed, words = (assumed, words) if words else (likely, phrase)
                _require_scale(likely, assumed, location)
            _require_scale(image.pixel_scale, scale or assumed, location)
            n_assumed += image.pixel_scale is None and pixel_scale is None
            for change in image.changes:
                n_changed[change] = n_changed.get(change, 0) + 1
            images.append(image.pixels)
            labels.append(entry.label)
            names.append(entry.name)
        except UnknownScaleError:
            raise
        except DarklensError as error:
            problems.append(str(error))
        if len(images) == _SHARD_SIZE:
            flush()
        advance(1)
    if images:
        flush()
    if not shards or size is None:
        raise InputError(f"{source}: none of its {len(entries)} images can be used. The first problem: {problems[0]}")
    write_index(
        out,
        StoreIndex(
            classes=list(importer.classes),
            n_pixels=size,
            pixel_scale=scale or assumed,
            source=f"imported from {source.name}",
            version=darklens.__version__,
            columns={"path": "file below the imported folder, or the image's number in the imported file"},
            shards=shards,
        ),
    )
    if n_assumed:
        words = words if scale is None else f"pixel scale of {scale:g} arcsec assumed"
        n_changed[f"{words}; --pixel-scale gives another"] = n_assumed
    return ImportReport(Store(out), problems, [f"{n} of the images: {change}." for change, n in n_changed.items()])


def list_entries(importer: Importer, source: Path, *, pixel_scale: float | None = None) -> Sequence[Entry]:
    """Return the entries of a source.

    Args:
        importer: Layout of the source.
        source: File or folder.
        pixel_scale: Pixel scale in arcsec that replaces one that cannot be read.

    Raises:
        InputError: If there are none, or the source cannot be read.
    """
    with reject_damaged(source, "imported"), replacing_unreadable(pixel_scale):
        entries = importer.entries(source)
    if not entries:
        raise InputError(f"{source}: contains no images in this format.")
    return entries


def _read(entry: Entry, importer: Importer, size: int | None) -> Image:
    location = entry.location or entry.name
    with reject_damaged(Path(location), "image"), np.errstate(over="ignore"):
        content = entry.read()
        image = content if isinstance(content, Image) else Image(as_float64(np.asanyarray(content)))
        pixels = image.pixels.astype(np.float32)
    if pixels.ndim != 2 or pixels.shape != ((size or pixels.shape[0]),) * 2:
        expected = f"the others have {size} x {size}" if size else "but a square image is expected"
        raise InputError(f"{location}: has {' x '.join(map(str, pixels.shape))} pixels, {expected}.")
    if not 0 <= entry.label < len(importer.classes):
        raise InputError(f"{location}: has label {entry.label}, but there are {len(importer.classes)} classes.")
    check_pixels(pixels, location)
    return Image(pixels, image.pixel_scale, image.changes)


def _require_scale(image_scale: float | None, scale: float, location: str) -> None:
    if image_scale is not None and abs(image_scale / scale - 1) > SAME_SCALE:
        raise InputError(
            f"{location}: has pixels of {image_scale:.4g} arcsec, the store {scale:.4g}; import it into another "
            "store, or give --pixel-scale."
        )


def require_new(out: Path) -> bool:
    """Check that an import can write the store `out`; return whether it holds shards of an interrupted import.

    Raises:
        InputError: If it holds anything else.
    """
    shards = out / "shards"
    interrupted = shards.is_dir() and not (out / INDEX).exists() and all(is_shard(path) for path in shards.iterdir())
    prepare_folder(out, except_for=shards.name if interrupted else "")
    return interrupted
