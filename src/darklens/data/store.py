"""The image store: a folder of memory-mapped shards with the true parameters of every image.

    STORE/store.json                   schema, classes, population, seed, version, shard list with checksums
    STORE/shards/00000.images.npy      float32 (k, 1, n, n)
    STORE/shards/00000.truth.npz       label (k,), and one array per parameter (k,) or (k, m)

Image i of the store is row i of the shards put end to end. Every file opens with one call of numpy.
"""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field, ValidationError

from darklens.config import Frozen
from darklens.errors import InputError
from darklens.files import atomic_path, read_json, sha256_of, write_json

INDEX = "store.json"


class Shard(Frozen):
    """One shard's length and checksums."""

    n: int = Field(ge=1)
    images_sha256: str
    truth_sha256: str


class StoreIndex(Frozen):
    """The contents of store.json."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    kind: Literal["darklens-store"] = "darklens-store"
    classes: list[str] = Field(min_length=2)
    n_pixels: int = Field(ge=1)
    pixel_scale: float = Field(gt=0, description="arcsec")
    population: dict[str, Any] | None = None
    seed: int | None = None
    source: str = ""
    version: str
    columns: dict[str, str] = Field(default_factory=dict, description="unit and meaning of the truth columns")
    shards: list[Shard] = Field(min_length=1)


class Store:
    """A store opened for reading. Images are read from disk when asked for, never all at once."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise InputError(
                f"{self.path} is not a folder; give the folder that `darklens simulate` or `import` wrote."
            )
        if not (self.path / INDEX).exists():
            raise InputError(f"{self.path} has no {INDEX}: it is not a store, or writing it was interrupted.")
        try:
            self.index = StoreIndex.model_validate(read_json(self.path / INDEX))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise InputError(f"{self.path / INDEX}: {where}: {first['msg']}; simulate or import it again.") from None
        self._starts = np.cumsum([0, *(shard.n for shard in self.index.shards)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def classes(self) -> list[str]:
        """Class names in the order of their labels."""
        return self.index.classes

    @property
    def population_name(self) -> str:
        """Name of the population the images were simulated from, or where they were imported from."""
        return str(self.index.population["name"]) if self.index.population else self.index.source

    @cached_property
    def labels(self) -> Int[np.ndarray, " n"]:
        """Labels of all images."""
        return self.truth("label").astype(np.int64)

    @cached_property
    def sha256(self) -> str:
        """A digest of all images and parameters, from the checksums of the shards."""
        text = ",".join(f"{s.images_sha256}:{s.truth_sha256}" for s in self.index.shards)
        return hashlib.sha256(",".join([*self.classes, text]).encode()).hexdigest()

    def images(self, indices: Sequence[int] | Int[np.ndarray, " b"]) -> Float[np.ndarray, "b 1 n n"]:
        """Return the images with the given numbers, in that order."""
        wanted = np.asarray(indices, dtype=np.int64)
        n = self.index.n_pixels
        out = np.empty((len(wanted), 1, n, n), dtype=np.float32)
        shard_of = np.searchsorted(self._starts, wanted, side="right") - 1
        for shard in np.unique(shard_of):
            here = np.flatnonzero(shard_of == shard)
            out[here] = self._mapped(int(shard))[wanted[here] - self._starts[shard]]
        return out

    def truth(self, name: str) -> np.ndarray:
        """Return one column of true parameters for all images.

        Raises:
            InputError: If the store has no such column.
        """
        parts = []
        for i in range(len(self.index.shards)):
            with np.load(self._file(i, "truth.npz"), allow_pickle=False) as archive:
                if name not in archive:
                    raise InputError(f"{self.path} has no column {name!r}; it has {', '.join(sorted(archive))}.")
                parts.append(archive[name])
        return np.concatenate(parts)

    def verify(self) -> list[str]:
        """Check every shard against its checksum, shape and labels; return what is wrong, a sentence each."""
        problems = []
        for i, shard in enumerate(self.index.shards):
            for suffix, expected in (("images.npy", shard.images_sha256), ("truth.npz", shard.truth_sha256)):
                path = self._file(i, suffix)
                if not path.exists():
                    problems.append(f"{path} is missing.")
                elif sha256_of(path) != expected:
                    problems.append(f"{path} does not match its checksum.")
        if problems:
            return problems
        for i, shard in enumerate(self.index.shards):
            mapped, expected_shape = self._mapped(i), (shard.n, 1, self.index.n_pixels, self.index.n_pixels)
            if mapped.shape != expected_shape or mapped.dtype != np.float32:
                problems.append(
                    f"{self._file(i, 'images.npy')}: {mapped.dtype} {mapped.shape}, not float32 {expected_shape}."
                )
            elif not np.isfinite(mapped).all():
                problems.append(f"{self._file(i, 'images.npy')} has NaN or infinite pixels.")
        if len(self.labels) != len(self) or self.labels.min() < 0 or self.labels.max() >= len(self.classes):
            problems.append(f"{self.path}: labels must be {len(self)} integers from 0 to {len(self.classes) - 1}.")
        return problems

    def _file(self, shard: int, suffix: str) -> Path:
        return shard_file(self.path, shard, suffix)

    def _mapped(self, shard: int) -> np.ndarray:
        path = self._file(shard, "images.npy")
        try:
            return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
        except (OSError, ValueError, EOFError):
            raise InputError(
                f"{path} is missing or damaged; `darklens inspect --verify` lists what is wrong."
            ) from None


def shard_file(store: Path, shard: int, suffix: str) -> Path:
    """Return the path of a shard's file, `suffix` being images.npy or truth.npz."""
    return store / "shards" / f"{shard:05d}.{suffix}"


def write_shard(
    store: Path, shard: int, images: Float[np.ndarray, "k 1 n n"], truth: Mapping[str, np.ndarray]
) -> Shard:
    """Write one shard, whole or not at all, and return its entry for the index. `truth` must hold `label`."""
    if any(len(column) != len(images) for column in truth.values()):
        raise ValueError("every truth column must have one row per image")
    images_path, truth_path = shard_file(store, shard, "images.npy"), shard_file(store, shard, "truth.npz")
    with atomic_path(truth_path) as temporary:
        columns: dict[str, Any] = {name: np.asarray(column) for name, column in truth.items()}
        np.savez(temporary, **columns)
    with atomic_path(images_path) as temporary:
        np.save(temporary, np.ascontiguousarray(images, dtype=np.float32), allow_pickle=False)
    return Shard(n=len(images), images_sha256=sha256_of(images_path), truth_sha256=sha256_of(truth_path))


def write_index(store: Path, index: StoreIndex) -> None:
    """Write store.json, which makes the folder a store; the last step of writing one."""
    write_json(store / INDEX, index.model_dump(mode="json", by_alias=True))


def prepare_folder(path: Path) -> None:
    """Refuse to write over anything that is already there.

    Raises:
        InputError: If `path` is a file, or a folder that is not empty.
    """
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise InputError(f"{path} already exists and is not empty; choose another --out or remove it.")


def remove_folder(path: Path) -> None:
    """Remove a folder that this process made and could not finish."""
    shutil.rmtree(path, ignore_errors=True)
