"""A population and a seed to a store on disk: shards in any order, on any number of processes, the same bytes.

STORE/unfinished/plan.json     what is being simulated; any process that sees it can make any shard
STORE/unfinished/00000.json    checksums of a finished shard, written after its files
STORE/shards/00000.*           the shard, see `darklens.data.store`
STORE/store.json               written last; then `unfinished` is removed
"""

import shutil
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

import darklens
from darklens import executors
from darklens.config import Frozen
from darklens.data.store import INDEX, Shard, Store, StoreIndex, damage, prepare_folder, write_index, write_shard
from darklens.errors import InputError
from darklens.files import locked, read_json, remove_temporaries, require_space, write_json
from darklens.memory import keep_freed_memory
from darklens.populations.population import Population
from darklens.simulate.backend import Backend
from darklens.simulate.batch import simulate_batch
from darklens.simulate.truth import columns, draw

SHARD_SIZE = 256
_SHARD_BYTES = 2**26  # a worker holds one shard in memory
_UNFINISHED = "unfinished"
# torch's number of threads, which is set to one while an image is made, belongs to the process.
_ONE_SHARD_AT_A_TIME = threading.Lock()


class Plan(Frozen):
    """All that decides the bytes of a simulation."""

    population: Population
    seed: int
    n: int = Field(ge=1)
    shard_size: int = Field(ge=1)
    backend: Backend
    version: str

    @property
    def n_shards(self) -> int:
        """Number of shards, of which the last may be shorter."""
        return -(-self.n // self.shard_size)

    def rows(self, shard: int) -> range:
        """Numbers of a shard's images."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.n))

    def tree(self) -> dict[str, Any]:
        """The plan as JSON."""
        return self.model_dump(mode="json", by_alias=True)


def generate(
    population: Population,
    out: Path | str,
    *,
    n_per_class: int,
    seed: int,
    workers: int = 1,
    executor: Executor | None = None,
    backend: Backend = "eager",
    shard_size: int | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> Store:
    """Simulate a store, or finish one that was interrupted.

    Args:
        population: What to simulate.
        out: Folder to write; it must not hold anything else.
        n_per_class: Images of each class.
        seed: The same seed gives the same bytes, whatever the number of workers.
        workers: Processes. More than one needs a script guarded by `if __name__ == "__main__"`, as they are spawned.
        executor: Where to run instead of `workers` processes: any executor whose workers see `out`.
        backend: How images are computed, see `darklens.simulate.backend`; it decides the last bits.
        shard_size: Images in a file; by default 256, or fewer large images so that a shard stays below 64 MB.
        advance: Called with the number of images just finished.

    Raises:
        InputError: If `out` holds something else, cannot be written to, or its disk has too little space.
        StoppedError: If workers were killed; finished shards stay, and the same call goes on.
    """
    out, n = Path(out), n_per_class * len(population.classes)
    size = shard_size or _shard_size(population)
    plan = Plan(population=population, seed=seed, n=n, shard_size=size, backend=backend, version=darklens.__version__)
    if _claim(out, plan):
        with locked(out / _UNFINISHED / "lock"):
            _make_shards(plan, out, workers, executor, advance)
            shutil.rmtree(out / _UNFINISHED)
    else:
        advance(n)
    return Store(out)


def bytes_needed(population: Population, n: int) -> int:
    """Return the size of `n` images and their true parameters on disk."""
    row = sum(column.nbytes for column in draw(population, 0, [0]).values())
    return n * (4 * population.field.n_pixels**2 + row + 8)


def _shard_size(population: Population) -> int:
    return max(1, min(SHARD_SIZE, _SHARD_BYTES // (4 * population.field.n_pixels**2)))


def _claim(out: Path, plan: Plan) -> bool:
    """Make `out` this simulation's folder, or recognise it as such; return whether shards are missing."""
    if (out / INDEX).exists():
        index = Store(out).index
        found = index.population, index.seed, index.backend, sum(s.n for s in index.shards)
        if found != (plan.tree()["population"], plan.seed, plan.backend, plan.n):
            raise InputError(f"{out} already holds another store; choose another --out or remove it.")
        shutil.rmtree(out / _UNFINISHED, ignore_errors=True)
        return False
    planned = out / _UNFINISHED / "plan.json"
    begun = planned.exists()
    if not begun:
        prepare_folder(out, besides=_UNFINISHED)
    elif read_json(planned) != plan.tree():
        raise InputError(f"{out} holds an unfinished simulation of another recipe, seed or size; remove it first.")
    written = sum(path.stat().st_size for path in (out / "shards").glob("*"))
    require_space(out, bytes_needed(plan.population, plan.n) - written)
    if not begun:
        write_json(planned, plan.tree())
    return True


def _make_shards(
    plan: Plan, out: Path, workers: int, executor: Executor | None, advance: Callable[[int], None]
) -> None:
    for folder in (out, out / "shards", out / _UNFINISHED):
        remove_temporaries(folder)
    shards: dict[int, Shard] = {}
    tasks = ((str(out.resolve()), number) for number in range(plan.n_shards))
    with nullcontext(executor) if executor else executors.local(min(workers, plan.n_shards)) as chosen:
        for number, shard in executors.as_finished(chosen, _make_shard, tasks):
            shards[number] = shard
            advance(shard.n)
    write_index(
        out,
        StoreIndex(
            classes=plan.population.class_names,
            n_pixels=plan.population.field.n_pixels,
            pixel_scale=plan.population.field.pixel_scale,
            population=plan.tree()["population"],
            seed=plan.seed,
            source=f"simulated from {plan.population.name}",
            engine=plan.backend,
            version=plan.version,
            columns=columns(plan.population),
            shards=[shards[number] for number in range(plan.n_shards)],
        ),
    )


def _make_shard(store: str, number: int) -> tuple[int, Shard]:
    """Make one shard of the simulation planned in `store`, unless an earlier run made it and its bytes are whole."""
    out = Path(store)
    entry = out / _UNFINISHED / f"{number:05d}.json"
    with _ONE_SHARD_AT_A_TIME:
        plan = _read_plan(out)
        done = _finished(out, number, entry)
        if done:
            return number, done
        keep_freed_memory()
        images, truth = simulate_batch(plan.population, plan.seed, plan.rows(number), backend=plan.backend)
        shard = write_shard(out, number, images, truth)
        write_json(entry, shard.model_dump())
    return number, shard


def _read_plan(out: Path) -> Plan:
    host = socket.gethostname()
    try:
        plan = _parsed((out / _UNFINISHED / "plan.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"The worker on {host} cannot see {out}: --out must be on a file system that all workers share."
        ) from None
    if plan.version != darklens.__version__:
        raise InputError(
            f"The worker on {host} has darklens {darklens.__version__}, not {plan.version}; install that one there."
        )
    return plan


@lru_cache(maxsize=1)
def _parsed(plan: str) -> Plan:
    """Validate a plan once, not for each shard; a renderer also recognises a population by its identity."""
    return Plan.model_validate_json(plan)


def _finished(out: Path, number: int, entry: Path) -> Shard | None:
    """Return the shard that an interrupted run completed, if its bytes are still those it recorded."""
    try:
        shard = Shard.model_validate(read_json(entry))
    except (InputError, ValidationError):
        return None
    return None if any(damage(out, number, shard)) else shard
