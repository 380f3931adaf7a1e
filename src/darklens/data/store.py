"""The image store: a folder of memory-mapped shards with the true parameters of every image.

    STORE/store.json                   schema, classes, population, seed, version, shard list with checksums
    STORE/shards/00000.images.npy      float32 (k, 1, n, n)
    STORE/shards/00000.truth.npz       label (k,), and one array per parameter (k,) or (k, m)

Image i of the store is row i of the concatenated shards. NumPy opens each file with one call.
"""

import hashlib
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from pydantic import Field, ValidationError, field_validator

from darklens.config import ClassName, Frozen
from darklens.errors import InputError
from darklens.files import atomic_path, is_temporary, read_json, sha256_of, write_json
from darklens.targets import check_targets

INDEX = "store.json"
IMAGES, TRUTH = "images.npy", "truth.npz"
_MAX_TRUTH_BYTES = 1_000_000_000  # decompressed, of a shard
_DAMAGED = (OSError, ValueError, TypeError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)


class Shard(Frozen):
    """Number of images and checksums of a shard."""

    n: int = Field(ge=1)
    images_sha256: str
    truth_sha256: str


class StoreIndex(Frozen):
    """The contents of store.json."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    kind: Literal["darklens-store"] = "darklens-store"
    classes: list[ClassName] = Field(min_length=2)
    n_pixels: int = Field(ge=1)
    pixel_scale: float = Field(gt=0, description="arcsec")
    population: dict[str, Any] | None = None
    seed: int | None = None
    source: str = ""
    backend: str | None = Field(
        default=None, alias="engine", description="that computed simulated images; it decides the last bits"
    )
    version: str
    columns: dict[str, str] = Field(default_factory=dict, description="unit and meaning of the truth columns")
    shards: list[Shard] = Field(min_length=1)

    @field_validator("population")
    @classmethod
    def _has_a_name(cls, population: dict[str, Any] | None) -> dict[str, Any] | None:
        name = population.get("name") if population else ""
        if not (isinstance(name, str) and name.isprintable()):
            raise ValueError("needs a name without control characters")
        return population


class Store:
    """A store opened for reading. Images are read from disk on demand.

    Raises:
        InputError: If the folder is not a store, or its index is damaged.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise InputError(
                f"{self.path} is not a folder; give the folder that `darklens simulate` or `import` wrote."
            )
        if not (self.path / INDEX).exists():
            raise InputError(f"{self.path} has no {INDEX}: it is not a store, or its creation was interrupted.")
        try:
            self.index = StoreIndex.model_validate(read_json(self.path / INDEX))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise InputError(f"{self.path / INDEX}: {key}: {first['msg']}; simulate or import it again.") from None
        self._starts = np.cumsum([0, *(shard.n for shard in self.index.shards)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def classes(self) -> list[str]:
        """Class names in the order of their labels."""
        return self.index.classes

    @property
    def population_name(self) -> str:
        """Name of the population of simulated images, or origin of imported ones."""
        return str(self.index.population["name"]) if self.index.population else self.index.source

    @cached_property
    def labels(self) -> Int[np.ndarray, " n"]:
        """Labels of all images.

        Raises:
            InputError: If one is not the number of a class.
        """
        labels = self.truth("label").astype(np.int64)
        if labels.min() < 0 or labels.max() >= len(self.classes):
            raise InputError(f"{self.path} has labels that are no class; `darklens inspect --verify` lists them.")
        return labels

    def require_all_classes(self, purpose: str) -> None:
        """Check that there are images of every class.

        Raises:
            InputError: If there are none of one; `purpose` needs them.
        """
        absent = [name for i, name in enumerate(self.classes) if not (self.labels == i).any()]
        if absent:
            raise InputError(
                f"{self.path} has no images of {' and '.join(absent)}; {purpose} needs images of each of its classes "
                f"({', '.join(self.classes)})."
            )

    @cached_property
    def sha256(self) -> str:
        """Digest of all images and parameters, computed from the checksums of the shards."""
        text = ",".join(f"{s.images_sha256}:{s.truth_sha256}" for s in self.index.shards)
        return hashlib.sha256(",".join([*self.classes, text]).encode()).hexdigest()

    def images(
        self, indices: Sequence[int] | Int[np.ndarray, " b"] | Bool[np.ndarray, " k"]
    ) -> Float[np.ndarray, "b 1 n n"]:
        """Return images by index, in the order of the indices, as float32.

        Args:
            indices: Indices, negative ones from the end, or a boolean mask over all images, as in NumPy.

        Raises:
            IndexError: If an index is out of range, or the mask has the wrong length.
        """
        numbers, n = self._numbers(np.asarray(indices)), self.index.n_pixels
        out = np.empty((len(numbers), 1, n, n), dtype=np.float32)
        shard_of = np.searchsorted(self._starts, numbers, side="right") - 1
        for shard in np.unique(shard_of):
            rows = np.flatnonzero(shard_of == shard)
            out[rows] = self._mapped(int(shard))[numbers[rows] - self._starts[shard]]
        return out

    def _numbers(self, indices: np.ndarray) -> Int[np.ndarray, " b"]:
        total = len(self)
        if indices.dtype == bool:
            if indices.shape != (total,):
                raise IndexError(f"{self.path} has {total} images, but the mask has shape {indices.shape}")
            return np.flatnonzero(indices)
        if indices.ndim != 1 or (len(indices) and indices.dtype.kind not in "iu"):
            raise IndexError(f"indices must be integers or a boolean mask, not {indices.dtype.name}")
        numbers = indices.astype(np.int64)
        out_of_range = numbers[(numbers < -total) | (numbers >= total)]
        if len(out_of_range):
            raise IndexError(f"{self.path} has {total} images; index {out_of_range[0]} is out of range")
        return np.where(numbers < 0, numbers + total, numbers)

    def truth(self, name: str) -> np.ndarray:
        """Return one column of true parameters for all images.

        Raises:
            InputError: If the store has no such column.
        """
        return np.concatenate([self._columns(i, name)[name] for i in range(len(self.index.shards))])

    def problems(self) -> Iterator[str]:
        """Check each shard against its checksum and the schema; yield one sentence per problem."""
        layout: dict[str, tuple[str, tuple[int, ...]]] = {}
        for i, shard in enumerate(self.index.shards):
            damages = list(shard_damage(self.path, i, shard))
            yield from damages
            if damages:
                continue
            yield from self._image_problems(i)
            try:
                columns = self._columns(i)
            except InputError as error:
                yield str(error)
                continue
            yield from self._truth_problems(i, columns)
            shard_layout = {name: (str(column.dtype.kind), column.shape[1:]) for name, column in columns.items()}
            layout = layout or shard_layout
            if shard_layout != layout:
                yield f"{self._file(i, TRUTH)}: its columns differ from those of the previous shards."
        expected = {
            shard_file(self.path, i, suffix) for i in range(len(self.index.shards)) for suffix in (IMAGES, TRUTH)
        }
        for path in sorted(set((self.path / "shards").glob("*")) - expected):
            yield f"{path} does not belong to the store; remove it."

    def verify(self) -> list[str]:
        """Return all `problems` as a list."""
        return list(self.problems())

    def _image_problems(self, shard: int) -> Iterator[str]:
        try:
            images = self._mapped(shard)
        except InputError as error:
            yield str(error)
            return
        if not np.isfinite(images).all():
            yield f"{self._file(shard, IMAGES)} has NaN or infinite pixels."

    def _truth_problems(self, shard: int, columns: dict[str, np.ndarray]) -> Iterator[str]:
        path, n = self._file(shard, TRUTH), self.index.shards[shard].n
        for name in sorted({"label", *self.index.columns} - set(columns)):
            yield f"{path} has no column {name!r}."
        for name, column in columns.items():
            if column.shape[:1] != (n,):
                yield f"{path}: column {name!r} has shape {column.shape}, not {n} rows."
            elif column.dtype.kind not in "iufU":
                yield f"{path}: column {name!r} is {column.dtype}, neither numbers nor text."
            elif column.dtype.kind == "f" and not np.isfinite(column).all():
                yield f"{path}: column {name!r} has NaN or infinite values."
        if "label" in columns:
            label, k = columns["label"], len(self.classes)
            if label.dtype.kind not in "iu" or label.ndim != 1 or not ((label >= 0) & (label < k)).all():
                yield f"{path}: labels must be {n} integers from 0 to {k - 1}."

    def _file(self, shard: int, suffix: str) -> Path:
        return shard_file(self.path, shard, suffix)

    def _columns(self, shard: int, *names: str) -> dict[str, np.ndarray]:
        """Read the named truth columns of a shard, or all of them."""
        path = self._file(shard, TRUTH)
        try:
            if not path.is_file():
                raise _damaged(path)
            with np.load(path, allow_pickle=False) as archive:
                if sum(member.file_size for member in archive.zip.infolist()) > _MAX_TRUTH_BYTES:
                    raise _damaged(path)
                absent = [name for name in names if name not in archive]
                columns = {name: archive[name] for name in names or archive.files if name not in absent}
                available = ", ".join(sorted(archive))
        except _DAMAGED:
            raise _damaged(path) from None
        if absent:
            raise InputError(f"{self.path} has no column {absent[0]!r}; it has {available}.")
        return columns

    def _mapped(self, shard: int) -> np.ndarray:
        path, n = self._file(shard, IMAGES), self.index.n_pixels
        try:
            if not path.is_file():
                raise _damaged(path)
            images = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
        except _DAMAGED:
            raise _damaged(path) from None
        expected = (self.index.shards[shard].n, 1, n, n)
        if images.shape != expected or images.dtype != np.float32:
            raise InputError(f"{path}: {images.dtype} {images.shape}, not float32 {expected}.")
        return images


def _damaged(path: Path) -> InputError:
    return InputError(f"{path} is missing or damaged; `darklens inspect --verify` lists the problems.")


def shard_damage(store: Path, shard: int, expected: Shard) -> Iterator[str]:
    """Compare the files of a shard with their checksums; yield one sentence per missing or different file."""
    for suffix, sha256 in ((IMAGES, expected.images_sha256), (TRUTH, expected.truth_sha256)):
        path = shard_file(store, shard, suffix)
        try:
            if sha256_of(path) != sha256:
                yield f"{path} does not match its checksum."
        except FileNotFoundError:
            yield f"{path} is missing."
        except OSError as error:
            yield f"{path} cannot be read ({error.strerror})."


def shard_file(store: Path, shard: int, suffix: str) -> Path:
    """Return the path of a file of a shard; `suffix` is images.npy or truth.npz."""
    return store / "shards" / f"{shard:05d}.{suffix}"


def is_shard(path: Path) -> bool:
    """Return whether a file in the folder `shards` has the name of a shard file, or of an unfinished one."""
    number, _, suffix = path.name.partition(".")
    return is_temporary(path) or (number.isdecimal() and suffix in (IMAGES, TRUTH))


def write_shard(
    store: Path, shard: int, images: Float[np.ndarray, "k 1 n n"], truth: Mapping[str, np.ndarray]
) -> Shard:
    """Write one shard atomically and return its entry for the index. `truth` must contain `label`."""
    if any(len(column) != len(images) for column in truth.values()):
        raise ValueError("every truth column must have one row per image")
    images_path, truth_path = shard_file(store, shard, IMAGES), shard_file(store, shard, TRUTH)
    with atomic_path(truth_path) as temporary:
        columns: dict[str, Any] = {name: np.asarray(column) for name, column in truth.items()}
        np.savez(temporary, **columns)
    with atomic_path(images_path) as temporary:
        np.save(temporary, np.ascontiguousarray(images, dtype=np.float32), allow_pickle=False)
    return Shard(n=len(images), images_sha256=sha256_of(images_path), truth_sha256=sha256_of(truth_path))


def write_index(store: Path, index: StoreIndex) -> None:
    """Write store.json, the last step of writing a store."""
    write_json(store / INDEX, index.model_dump(mode="json", by_alias=True))


def prepare_folder(path: Path, *, except_for: str = "") -> None:
    """Check that a folder to write is empty or does not exist.

    An entry named `except_for` and temporary files of killed processes are allowed.

    Raises:
        InputError: If `path` is no folder, is not empty, or cannot be written.
    """
    check_targets(folders=[path])
    if path.is_dir() and any(p.name != except_for and not is_temporary(p) for p in path.iterdir()):
        raise InputError(f"{path} already exists and is not empty; choose another folder or remove it.")
