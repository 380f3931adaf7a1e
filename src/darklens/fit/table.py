"""What a classifier is shown of the fits, as arrays, and those of a whole store, kept beside its images.

DIGEST is of the population; "-centred" follows VERSION where lenses were held at the middle of the image.

STORE/fits/DIGEST-VERSION/fits.json            population, version, names of the numbers and channels
STORE/fits/DIGEST-VERSION/00000.maps.npy       float16 (k, channels, m, m)
STORE/fits/DIGEST-VERSION/00000.numbers.npy    float32 (k, numbers)
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

import darklens
from darklens import config, executors
from darklens.data.store import Store
from darklens.errors import ConfigError
from darklens.files import atomic_path, write_json
from darklens.fit.fitter import Images
from darklens.fit.hypotheses import N_POINTS, Hypotheses, weigh_hypotheses
from darklens.kernels.smooth_fit import load_for
from darklens.memory import keep_freed_memory
from darklens.populations.population import Population
from darklens.simulate.backend import Backend

VERSION = 2  # of the fits: another number makes stores be fitted anew
CHANNELS = ("image", "residual", "line_residual", "point_residual", "evidence", "line_evidence")
_LENS = ("theta_E", "gamma1", "gamma2", "source_x", "source_y", "centre_x", "centre_y")
NUMBERS = (
    *_LENS,
    *("blocks", "deviance", "converged", "extra_noise"),
    *("line_gain", "beside_line", "point_peak", *(f"point_gain_{k + 1}" for k in range(N_POINTS)), "beside_points"),
    *("line_mass", "line_x", "line_y", "line_angle", "line_length"),
    *(f"point_{k + 1}_{name}" for k in range(N_POINTS) for name in ("mass", "x", "y")),
)
_LARGEST = 100.0  # standard deviations, of maps


class Seen(NamedTuple):
    """What a classifier is shown of b images: maps (b, channels, m, m) and numbers (b, len(NUMBERS))."""

    maps: Float[Tensor, "b c m m"]
    numbers: Float[Tensor, "b k"]


def see(images: Images, population: Population, *, engine: Backend = "eager", centred: bool = True) -> Seen:
    """Fit images and return what a classifier is shown; arguments as for `weigh_hypotheses`."""
    return shown(weigh_hypotheses(images, population, engine=engine, centred=centred))


def shown(found: Hypotheses) -> Seen:
    """Return maps in standard deviations of the noise (gains as their signed roots) and the numbers, as arrays."""
    evidence = [v.sign() * v.abs().sqrt() for v in (found.evidence, found.line_evidence)]
    maps = torch.stack([found.image, found.residual, found.line_residual, found.point_residual, *evidence], 1)
    smooth = {name: torch.full_like(found.deviance, value) for name, value in found.fixed.items()}
    smooth |= dict(zip(found.names, found.smooth.unbind(1), strict=True))
    numbers = [
        *(smooth[name] for name in _LENS),
        *(found.blocks, found.deviance, found.converged.float(), found.extra_noise),
        *(found.line_gain, found.beside_line, found.evidence.amax((1, 2)), *found.point_gain.unbind(1)),
        found.beside_points,
        *found.line.unbind(1),
        *found.points.flatten(1).unbind(1),
    ]
    finite = {"nan": 0.0, "posinf": _LARGEST, "neginf": -_LARGEST}
    table = torch.stack(numbers, 1).nan_to_num(nan=0.0, posinf=1e9, neginf=-1e9)
    return Seen(maps.clamp(-_LARGEST, _LARGEST).nan_to_num(**finite), table)


class Fits:
    """The fits of all images of a store, read when asked for."""

    def __init__(self, store: Store, folder: Path) -> None:
        self._lengths = [shard.n for shard in store.index.shards]
        self._starts = np.cumsum([0, *self._lengths])
        self._folder = folder

    @cached_property
    def numbers(self) -> Float[np.ndarray, "n k"]:
        """The numbers of all images; NaN for those that are not fitted."""
        return np.concatenate([self._numbers(i) for i in range(len(self._lengths))])

    def _numbers(self, shard: int) -> Float[np.ndarray, "k c"]:
        path = _file(self._folder, shard, "numbers")
        if path.exists():
            return np.asarray(np.load(path))
        return np.full((self._lengths[shard], len(NUMBERS)), np.nan, dtype=np.float32)

    def seen(self, indices: Sequence[int] | Int[np.ndarray, " b"]) -> Seen:
        """Return what is shown of the images with the given numbers, in that order."""
        wanted = np.asarray(indices, dtype=np.int64)
        shard_of = np.searchsorted(self._starts, wanted, side="right") - 1
        maps: np.ndarray | None = None
        for shard in np.unique(shard_of):
            here = np.flatnonzero(shard_of == shard)
            own = np.load(_file(self._folder, int(shard), "maps"), mmap_mode="r")
            if maps is None:
                maps = np.empty((len(wanted), *own.shape[1:]), dtype=np.float32)
            maps[here] = own[wanted[here] - self._starts[shard]]
        return Seen(torch.from_numpy(maps), torch.from_numpy(self.numbers[wanted]))


def fits_of(
    store: Store,
    population: Population,
    *,
    engine: Backend = "eager",
    centred: bool = True,
    workers: int = 1,
    limit: int | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> Fits:
    """Fit all images of a store, or those that are not fitted yet, and keep the fits in its folder.

    Args:
        store: The images.
        population: Whose smooth lenses are fitted.
        engine: See `weigh_hypotheses`.
        centred: See `fit_macro`.
        workers: Processes.
        limit: Fit only the shards that hold the first so many images.
        advance: Called with the number of images just finished.

    Raises:
        ConfigError: If the population's images are of another size.
    """
    found, needed_field = (store.index.n_pixels, store.index.pixel_scale), population.field
    if found[0] != needed_field.n_pixels or not np.isclose(found[1], needed_field.pixel_scale, rtol=1e-3):
        raise ConfigError(
            f"{store.path} has {found[0]} pixels of {found[1]} arcsec, lenses of {population.name} have "
            f"{needed_field.n_pixels} of {needed_field.pixel_scale}; choose a population like the images "
            "(model.population, model.overrides)."
        )
    folder = store.path / "fits" / f"{config.digest(population)[:12]}-{VERSION}{'-centred' if centred else ''}"
    spec = {"schema": 1, "version": VERSION, "channels": list(CHANNELS), "numbers": list(NUMBERS)}
    spec |= {
        "population": population.model_dump(mode="json", by_alias=True),
        "darklens": darklens.__version__,
        "centred": centred,
    }
    text = population.model_dump_json(by_alias=True)
    starts = np.cumsum([0, *(shard.n for shard in store.index.shards)])
    needed = [i for i in range(len(store.index.shards)) if limit is None or starts[i] < limit]
    missing = [i for i in needed if not _file(folder, i, "maps").exists()]
    if missing:
        write_json(folder / "fits.json", spec)
    advance(sum(store.index.shards[i].n for i in set(needed) - set(missing)))
    tasks = ((str(store.path.resolve()), i, str(folder.resolve()), text, engine, centred) for i in missing)
    workers = max(1, min(workers, len(missing)))
    with executors.local(workers) if missing else nullcontext() as chosen:
        for n in executors.as_finished(chosen, _fit_shard, tasks):
            advance(n)
    return Fits(store, folder)


def _fit_shard(path: str, shard: int, folder: str, population: str, engine: Backend, centred: bool) -> int:
    torch.set_num_threads(1)
    keep_freed_memory()
    store = Store(path)
    load_for(len(store))
    start = sum(s.n for s in store.index.shards[:shard])
    rows = range(start, start + store.index.shards[shard].n)
    images = torch.from_numpy(store.images(rows))[:, 0]
    found = see(images, Population.model_validate_json(population), engine=engine, centred=centred)
    # The maps last: they say that the shard is done.
    for name, array in (("numbers", found.numbers.numpy()), ("maps", found.maps.numpy().astype(np.float16))):
        with atomic_path(_file(Path(folder), shard, name)) as temporary:
            np.save(temporary, array, allow_pickle=False)
    return len(rows)


def _file(folder: Path, shard: int, name: str) -> Path:
    return folder / f"{shard:05d}.{name}.npy"
