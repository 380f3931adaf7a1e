"""Simulation of a store on disk. Its bytes do not depend on the order of the shards or the number of processes.

STORE/unfinished/plan.json     what is simulated; every process that reads it can make every shard
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

import torch
from pydantic import Field, ValidationError

import darklens
from darklens import executors
from darklens.config import Frozen
from darklens.data.store import INDEX, Shard, Store, StoreIndex, prepare_folder, shard_damage, write_index, write_shard
from darklens.devices import require_device
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
# `simulate_batch` sets the number of threads of torch, which is one setting for the whole process.
_ONE_SHARD_AT_A_TIME = threading.Lock()


class Plan(Frozen):
    """Everything that determines the bytes of a simulation."""

    population: Population
    seed: int
    n: int = Field(ge=1)
    shard_size: int = Field(ge=1)
    backend: Backend
    device: str = "cpu"
    version: str

    @property
    def engine(self) -> str:
        """Backend and, if it is not the CPU, the device, which decide the bytes."""
        return self.backend if self.device == "cpu" else f"{self.backend}, {torch.device(self.device).type}"

    @property
    def n_shards(self) -> int:
        """Number of shards; the last may be shorter."""
        return -(-self.n // self.shard_size)

    def rows(self, shard: int) -> range:
        """Numbers of the images of a shard."""
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
    device: torch.device | str = "cpu",
    shard_size: int | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> Store:
    """Simulate a store, or finish one that was interrupted.

    Args:
        population: What to simulate.
        out: Folder to write; it must not contain anything else.
        n_per_class: Images of each class.
        seed: The same seed gives the same bytes, for any number of workers.
        workers: Processes. More than one needs a script guarded by `if __name__ == "__main__"`, as they are spawned.
        executor: Runs the simulation instead of `workers` processes; its workers must have access to `out`.
        backend: See `darklens.simulate.backend`; it decides the last bits.
        device: Device that renders; a GPU draws other photon counts than the CPU.
        shard_size: Images in a file; by default 256, or fewer if a shard would exceed 64 MB.
        advance: Called with the number of images just finished.

    Raises:
        ConfigError: If there is no such device.
        InputError: If `out` contains something else or cannot be written to, or the disk has too little space.
        StoppedError: If workers were killed. Finished shards stay, and the same call continues.
    """
    out, n = Path(out), n_per_class * len(population.classes)
    size = shard_size or _shard_size(population)
    on = torch.device(device) if executor else require_device(device)
    plan = Plan(
        population=population,
        seed=seed,
        n=n,
        shard_size=size,
        backend=backend,
        device=str(on),
        version=darklens.__version__,
    )
    if _claim(out, plan):
        with locked(out / _UNFINISHED / "lock"):
            _make_shards(plan, out, workers, executor, advance)
            shutil.rmtree(out / _UNFINISHED)
    else:
        advance(n)
    return Store(out)


def bytes_needed(population: Population, n: int) -> int:
    """Return the size of `n` images and their true parameters on disk, bytes."""
    row = sum(column.nbytes for column in draw(population, 0, [0]).values())
    return n * (4 * population.field.n_pixels**2 + row + 8)


def _shard_size(population: Population) -> int:
    return max(1, min(SHARD_SIZE, _SHARD_BYTES // (4 * population.field.n_pixels**2)))


def _claim(out: Path, plan: Plan) -> bool:
    """Prepare `out` for this simulation or recognise an earlier start; return whether shards are to be made."""
    if (out / INDEX).exists():
        index = Store(out).index
        stored = index.population, index.seed, index.backend, sum(s.n for s in index.shards)
        if stored != (plan.tree()["population"], plan.seed, plan.engine, plan.n):
            raise InputError(f"{out} already holds another store; choose another --out or remove it.")
        shutil.rmtree(out / _UNFINISHED, ignore_errors=True)
        return False
    planned = out / _UNFINISHED / "plan.json"
    started = planned.exists()
    if not started:
        prepare_folder(out, except_for=_UNFINISHED)
    elif read_json(planned) != plan.tree():
        raise InputError(f"{out} holds an unfinished simulation of another recipe, seed or size; remove it first.")
    written = sum(path.stat().st_size for path in (out / "shards").glob("*"))
    require_space(out, bytes_needed(plan.population, plan.n) - written)
    if not started:
        write_json(planned, plan.tree())
    return True


def _make_shards(
    plan: Plan, out: Path, workers: int, executor: Executor | None, advance: Callable[[int], None]
) -> None:
    for folder in (out, out / "shards", out / _UNFINISHED):
        remove_temporaries(folder)
    shards: dict[int, Shard] = {}
    tasks = ((str(out.resolve()), number) for number in range(plan.n_shards))
    with nullcontext(executor) if executor else executors.local(min(workers, plan.n_shards)) as pool:
        for number, shard in executors.as_finished(pool, _make_shard, tasks):
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
            engine=plan.engine,
            version=plan.version,
            columns=columns(plan.population),
            shards=[shards[number] for number in range(plan.n_shards)],
        ),
    )


def _make_shard(store: str, number: int) -> tuple[int, Shard]:
    """Make one shard of the simulation planned in `store`, unless it exists undamaged from an earlier run."""
    out = Path(store)
    entry = out / _UNFINISHED / f"{number:05d}.json"
    with _ONE_SHARD_AT_A_TIME:
        plan = _read_plan(out)
        finished = _finished(out, number, entry)
        if finished:
            return number, finished
        keep_freed_memory()
        images, truth = simulate_batch(
            plan.population, plan.seed, plan.rows(number), backend=plan.backend, device=plan.device
        )
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
    """Validate a plan once, not for each shard; renderers are cached by the identity of the population."""
    return Plan.model_validate_json(plan)


def _finished(out: Path, number: int, entry: Path) -> Shard | None:
    """Return the shard of an interrupted run, if its bytes still have the recorded checksums."""
    try:
        shard = Shard.model_validate(read_json(entry))
    except (InputError, ValidationError):
        return None
    return None if any(shard_damage(out, number, shard)) else shard
