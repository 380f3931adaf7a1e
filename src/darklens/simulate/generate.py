"""A population and a seed to a store on disk: shards in any order, on any number of processes, the same bytes."""

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import darklens
from darklens import config
from darklens.data.store import (
    INDEX,
    Shard,
    Store,
    StoreIndex,
    prepare_folder,
    shard_file,
    write_index,
    write_shard,
)
from darklens.errors import InputError
from darklens.files import read_json, sha256_of, write_json
from darklens.simulate.batch import simulate_batch
from darklens.simulate.draw import COLUMNS
from darklens.simulate.populations import Population

SHARD_SIZE = 256
_PLAN = "simulation.json"


def generate(
    population: Population,
    out: Path,
    *,
    n_per_class: int,
    seed: int,
    workers: int = 1,
    advance: Callable[[int], None] = lambda _: None,
) -> Store:
    """Simulate a store, or finish one that was interrupted.

    Args:
        population: What to simulate.
        out: Folder to write; it must not hold anything else.
        n_per_class: Images of each class.
        seed: The same seed gives the same bytes, whatever the number of workers.
        workers: Processes. More than one needs a script guarded by `if __name__ == "__main__"`, as they are spawned.
        advance: Called with the number of images just finished.

    Raises:
        InputError: If `out` holds something else.
    """
    n = n_per_class * len(population.classes)
    bounds = [(start, min(start + SHARD_SIZE, n)) for start in range(0, n, SHARD_SIZE)]
    tree = population.model_dump(mode="json", by_alias=True)
    plan = {
        "population": tree,
        "seed": seed,
        "n": n,
        "shard_size": SHARD_SIZE,
        "version": darklens.__version__,
    }
    _claim(out, plan)
    if (out / INDEX).exists():
        advance(n)
        return Store(out)

    shards: dict[int, Shard] = {}
    with _executor(min(workers, len(bounds))) as executor:
        futures: dict[Future[Shard], int] = {}
        for number, (start, stop) in enumerate(bounds):
            done = _finished(out, number, stop - start)
            if done:
                shards[number] = done
                advance(stop - start)
            else:
                futures[executor.submit(_make_shard, tree, seed, number, start, stop, str(out))] = number
        for future in as_completed(futures):
            number = futures[future]
            shards[number] = future.result()
            advance(shards[number].n)
    write_index(
        out,
        StoreIndex(
            classes=population.class_names,
            n_pixels=population.field.n_pixels,
            pixel_scale=population.field.pixel_scale,
            population=tree,
            seed=seed,
            source=f"simulated from {population.name}",
            version=darklens.__version__,
            columns=COLUMNS,
            shards=[shards[i] for i in range(len(bounds))],
        ),
    )
    (out / _PLAN).unlink()
    return Store(out)


def _make_shard(tree: dict[str, Any], seed: int, number: int, start: int, stop: int, out: str) -> Shard:
    population = config.load(Population, tree)
    images, truth = simulate_batch(population, seed, list(range(start, stop)))
    return write_shard(Path(out), number, images, truth)


def _claim(out: Path, plan: dict[str, Any]) -> None:
    """Make `out` this simulation's folder, or recognise it as such."""
    if (out / INDEX).exists():
        index = Store(out).index
        same = index.population == plan["population"] and index.seed == plan["seed"]
        if not same or sum(s.n for s in index.shards) != plan["n"]:
            raise InputError(f"{out} already holds another store; choose another --out or remove it.")
    elif (out / _PLAN).exists():
        if read_json(out / _PLAN) != plan:
            raise InputError(f"{out} holds an unfinished simulation of another recipe, seed or size; remove it first.")
    else:
        prepare_folder(out)
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / _PLAN, plan)


def _finished(out: Path, number: int, n: int) -> Shard | None:
    """Return a shard that an interrupted run completed: both its files were renamed into place."""
    images, truth = shard_file(out, number, "images.npy"), shard_file(out, number, "truth.npz")
    if not (images.exists() and truth.exists()):
        return None
    return Shard(n=n, images_sha256=sha256_of(images), truth_sha256=sha256_of(truth))


@contextmanager
def _executor(workers: int) -> Iterator[Executor]:
    if workers <= 1:
        yield _InProcess()
        return
    # Spawned, not forked: torch's threads do not survive a fork.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


class _InProcess(Executor):
    """Runs each task when it is submitted."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future
