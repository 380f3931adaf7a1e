"""The fits of the images of a store, cached in its folder and read by index.

DIGEST is the digest of the population without its description; a folder named after the digest with the description, as
in earlier versions, is used where it exists. "-centred" follows VERSION if lenses are fixed at the centre of the image.

STORE/fits/DIGEST-VERSION/fits.json            population, version, names of the maps and of the summary columns
STORE/fits/DIGEST-VERSION/00000.maps.npy       float16 (k, maps, m, m)
STORE/fits/DIGEST-VERSION/00000.numbers.npy    float32 (k, summary columns)
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

import darklens
from darklens import aliases, config, executors
from darklens.data.store import Store
from darklens.errors import ConfigError
from darklens.files import atomic_path, read_json, write_json
from darklens.fit.features import MAP_NAMES, SUMMARY_NAMES, FitFeatures, extract_features
from darklens.kernels.smooth_fit import load_for
from darklens.memory import keep_freed_memory
from darklens.populations.population import Population

VERSION = 7  # of the fits; cached fits of other versions are ignored


class FitSettings(NamedTuple):
    """How a system fits lenses: the population, and whether the lens is fixed at the centre of the image."""

    population: Population
    centred: bool

    def extract_features(
        self, images: Float[Tensor, "b n n"], *, exposure: Float[Tensor, "b n n"] | None = None, **options: Any
    ) -> FitFeatures:
        """Fit images (b, n, n) and return their features; other arguments as for `fit_hypotheses`."""
        return extract_features(images, self.population, exposure=exposure, centred=self.centred, **options)


def fit_settings_of(config: Any) -> FitSettings | None:
    """Return the `fit_settings` of the configuration of a system; None if the system takes images."""
    settings: FitSettings | None = getattr(config, "fit_settings", None)
    return settings


class FitCache:
    """The cached fits of a store for one population and version, read from disk on request.

    Raises:
        ConfigError: If the maps or the summary columns are not those of this version.
    """

    def __init__(self, store: Store, folder: Path) -> None:
        self._lengths = [shard.n for shard in store.index.shards]
        self._starts = np.cumsum([0, *self._lengths])
        self._folder = folder
        _check_names(folder)

    @cached_property
    def summary(self) -> Float[np.ndarray, "n k"]:
        """The summary of all images (n, k); NaN for images that are not fitted."""
        return np.concatenate([self._summary_of(i) for i in range(len(self._lengths))])

    def column(self, name: str) -> Float[np.ndarray, " n"]:
        """Return one column of the summary, named in `SUMMARY_NAMES`."""
        return np.asarray(self.summary[:, SUMMARY_NAMES.index(name)])

    def _summary_of(self, shard: int) -> Float[np.ndarray, "k c"]:
        path = _file(self._folder, shard, "numbers")
        if path.exists():
            return np.asarray(np.load(path))
        return np.full((self._lengths[shard], len(SUMMARY_NAMES)), np.nan, dtype=np.float32)

    def features(self, indices: Sequence[int] | Int[np.ndarray, " b"]) -> FitFeatures:
        """Return the features of images, in the order of `indices`."""
        rows = np.asarray(indices, dtype=np.int64)
        shard_of = np.searchsorted(self._starts, rows, side="right") - 1
        maps: np.ndarray | None = None
        for shard in np.unique(shard_of):
            in_shard = np.flatnonzero(shard_of == shard)
            stored = np.load(_file(self._folder, int(shard), "maps"), mmap_mode="r")
            if maps is None:
                maps = np.empty((len(rows), *stored.shape[1:]), dtype=np.float32)
            maps[in_shard] = stored[rows[in_shard] - self._starts[shard]]
        return FitFeatures(torch.from_numpy(maps), torch.from_numpy(self.summary[rows]))


def cached_fits(
    store: Store,
    population: Population,
    *,
    centred: bool = True,
    workers: int = 1,
    device: torch.device | str = "cpu",
    limit: int | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> FitCache:
    """Fit the images of a store that are not in its cache yet, and return the cache.

    Args:
        store: The images.
        population: Defines the smooth lens, the PSF and the noise.
        centred: See `fit_macro`.
        workers: Number of processes on the CPU; a GPU has one.
        device: Device of new fits; those in the cache may be of another.
        limit: Number of images, in the order of the store, whose shards are fitted; None for all.
        advance: Called with the number of images just finished.

    Raises:
        ConfigError: If images of the population have another size or pixel scale.
    """
    index, field = store.index, population.field
    if index.n_pixels != field.n_pixels or not np.isclose(index.pixel_scale, field.pixel_scale, rtol=1e-3):
        raise ConfigError(
            f"{store.path} has {index.n_pixels} pixels of {index.pixel_scale} arcsec, {population.name} has "
            f"{field.n_pixels} of {field.pixel_scale}; set model.population or model.overrides to match the images."
        )
    folder = _folder(store, population, centred)
    spec = {"schema": 1, "version": VERSION, "maps": list(MAP_NAMES), "summary": list(SUMMARY_NAMES)}
    spec |= {
        "population": population.model_dump(mode="json", by_alias=True),
        "darklens": darklens.__version__,
        "centred": centred,
    }
    text = population.model_dump_json(by_alias=True)
    starts = np.cumsum([0, *(shard.n for shard in index.shards)])
    needed = [i for i in range(len(index.shards)) if limit is None or starts[i] < limit]
    missing = [i for i in needed if not _file(folder, i, "maps").exists()]
    if missing:
        write_json(folder / "fits.json", spec)
    advance(sum(index.shards[i].n for i in set(needed) - set(missing)))
    name = str(device)
    tasks = ((str(store.path.resolve()), i, str(folder.resolve()), text, centred, name) for i in missing)
    workers = max(1, min(workers, len(missing))) if name == "cpu" else 1
    with executors.local(workers) if missing else nullcontext() as pool:
        for n in executors.as_finished(pool, _fit_shard, tasks):
            advance(n)
    return FitCache(store, folder)


def _folder(store: Store, population: Population, centred: bool) -> Path:
    digests = (config.digest(population), config.digest(population, without="description"))
    earlier, folder = (
        store.path / "fits" / f"{digest[:12]}-{VERSION}{'-centred' if centred else ''}" for digest in digests
    )
    return earlier if (earlier / "fits.json").exists() else folder


def _check_names(folder: Path) -> None:
    stored = read_json(folder / "fits.json")
    summary = [aliases.FITS.get(name, name) for name in stored.get("summary", stored.get("numbers", []))]
    if (summary, stored.get("maps", stored.get("channels"))) != (list(SUMMARY_NAMES), list(MAP_NAMES)):
        raise ConfigError(
            f"{folder} has fits with other columns than this version of darklens; remove it to fit again."
        )


def _fit_shard(path: str, shard: int, folder: str, population: str, centred: bool, device: str) -> int:
    torch.set_num_threads(1)
    keep_freed_memory()
    store = Store(path)
    load_for(len(store))
    start = sum(s.n for s in store.index.shards[:shard])
    rows = range(start, start + store.index.shards[shard].n)
    images = torch.from_numpy(store.images(rows))[:, 0].to(device)
    fits = extract_features(images, Population.model_validate_json(population), centred=centred).to(torch.device("cpu"))
    # The maps are written last: their file marks the shard as finished.
    for name, array in (("numbers", fits.summary.numpy()), ("maps", fits.maps.numpy().astype(np.float16))):
        with atomic_path(_file(Path(folder), shard, name)) as temporary:
            np.save(temporary, array, allow_pickle=False)
    return len(rows)


def _file(folder: Path, shard: int, name: str) -> Path:
    return folder / f"{shard:05d}.{name}.npy"
