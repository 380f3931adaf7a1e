"""Very many image files to one table: in blocks, on any number of processes, and an interrupted run goes on.

TABLE.csv.unfinished/plan.json    all that decides the table: model, files, options
TABLE.csv.unfinished/rows         finished blocks in the order in which they came, each after a line on it (`_Block`)
TABLE.csv.unfinished/model.onnx   of backends that need it
TABLE.csv                         written last, in the order of the files; then the folder is removed
"""

import csv
import hashlib
import json
import os
import shutil
import socket
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from pydantic import Field, ValidationError

import darklens
from darklens import executors
from darklens.bundle import BATCH_SIZE, Bundle, InferenceBackend, sha256_of_bundle
from darklens.config import Frozen
from darklens.data.prepare import Prepared
from darklens.errors import ConfigError, DarklensError, InputError
from darklens.files import atomic_path, locked, read_json, write_json, writing
from darklens.kernels.smooth_fit import load_for
from darklens.locate import SHIPPED, locate
from darklens.memory import keep_freed_memory
from darklens.predict.backends import BackendChoice, backend_of, choose, write_model
from darklens.predict.rows import columns_of, header, lines, predict, read_one, require_usable

IN_FLIGHT = 512  # blocks handed to an executor at a time: their paths, and what waits to be written, are some MB
_FITTED_AT_ONCE = 16  # images: some seconds, which Ctrl-C has to wait for
_EXAMPLES = 64  # images that a backend's file is checked on
_PLAN, _ROWS, _MODEL = "plan.json", "rows", "model.onnx"
# torch's number of threads, which is set to one while images are classified, belongs to the process.
_ONE_BLOCK_AT_A_TIME = threading.Lock()


class Task(Frozen):
    """All of a block's rows but the files: with them, any process that sees the model and the files can make it."""

    model: str = Field(description="bundle folder, absolute, or the name of a shipped model")
    bundle_sha256: str
    backend: BackendChoice
    backend_file: str = Field(default="", description="of backends that need one")
    pixel_scale: float | None = None
    image: str | None = None
    folder: str = Field(description="where relative paths begin")
    files: int = Field(default=0, description="of all blocks")
    version: str = darklens.__version__


class Summary(NamedTuple):
    """How many files there were, how many of them were bad, and how many an earlier run had done."""

    files: int
    bad: int
    kept: int


class Blocks:
    """Files in blocks of a size; the last may be shorter. A block is classified as one batch."""

    def __init__(self, files: Sequence[str], size: int) -> None:
        self.files, self.size = files, size

    def __len__(self) -> int:
        return -(-len(self.files) // self.size)

    def __getitem__(self, number: int) -> Sequence[str]:
        return self.files[number * self.size : (number + 1) * self.size]


class _Block(Frozen):
    """The line before the rows of a block."""

    block: int
    bad: int
    length: int = Field(description="bytes of the rows")
    crc: int = Field(description="CRC-32 of the rows")
    stamp: str = Field(description="sizes and times of the files when they were read")


def predict_table(
    model: Path,
    files: Sequence[str],
    out: Path,
    *,
    pixel_scale: float | None = None,
    image: str | None = None,
    backend: BackendChoice = "auto",
    workers: int | None = None,
    executor: Executor | None = None,
    advance: Callable[[int], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
) -> Summary:
    """Classify files into a table with one row a file, in their order, or finish one that was interrupted.

    The table is the same bytes whatever the number of workers, and however often it was interrupted.

    Args:
        model: A classifier: a run or bundle folder, or the name of a shipped model.
        files: Paths; relative ones begin in the working folder.
        out: Table to write.
        pixel_scale: As for `predict`.
        image: Which image of files that hold several.
        backend: See `darklens.predict.backends`.
        workers: Processes; by default one a usable core, or fewer for few files. More than one needs a script guarded
            by `if __name__ == "__main__"`, as they are spawned.
        executor: Where to run instead: any executor whose workers see the model, the files and the folder of `out`.
        advance: Called with the number of files just finished.
        say: Called with a sentence if an interrupted run cannot be gone on with, and why.

    Raises:
        InputError: If the model does not classify, or the folder of `out` cannot be written to.
        ConfigError: If the backend cannot be used.
        StoppedError: If workers were killed; what is finished is kept, and the same call goes on.
    """
    bundle = Bundle.load(model)
    require_usable(bundle, pixel_scale)
    where = locate(model)
    task = Task(
        model=model.name if where == Path(str(SHIPPED)) / model.name else str(where.resolve()),
        bundle_sha256=sha256_of_bundle(where),
        backend=choose(backend, bundle, len(files)),
        pixel_scale=pixel_scale,
        image=image,
        folder=str(Path.cwd()),
        files=len(files),
    )
    blocks = Blocks(files, _FITTED_AT_ONCE if bundle.requires_fitting else BATCH_SIZE)
    if workers is None:
        # Starting a process takes as long as some blocks of a network, or one of fits.
        workers = min(executors.usable_cores(), len(blocks) // (2 if bundle.requires_fitting else 8))
    work = out.with_name(out.name + ".unfinished")
    with writing(out):
        work.mkdir(parents=True, exist_ok=True)
    with locked(work / "lock"), _kept_if_begun(work):
        finished = _claim(work, task, blocks, say)
        kept = sum(len(blocks[n]) for n in finished)
        advance(kept)
        task = _prepared(task, bundle, work / _MODEL, files, asked=backend)
        with writing(out):
            _make_blocks(work, task, blocks, finished, workers, executor, advance)
        bad = _assemble(work, out, bundle, finished)
        shutil.rmtree(work)
    return Summary(len(files), bad, kept)


def problems_in(table: Path) -> Iterator[str]:
    """Yield what was wrong with each bad file of a table."""
    with table.open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            if row["status"] == "error":
                yield row["message"]


@contextmanager
def _kept_if_begun(work: Path) -> Iterator[None]:
    """Remove the folder of a run that fails or is interrupted before it has finished anything."""
    try:
        yield
    except BaseException:
        if not (work / _ROWS).exists() or (work / _ROWS).stat().st_size == 0:
            shutil.rmtree(work, ignore_errors=True)
        raise


def _claim(work: Path, task: Task, blocks: "Blocks", say: Callable[[str], None]) -> "dict[int, _FinishedBlock]":
    """Make the folder this run's, and return what an interrupted one finished."""
    digest = hashlib.sha256()
    for file in blocks.files:
        digest.update(os.fsencode(file) + b"\0")
    plan = {"schema": 1, **task.model_dump(mode="json"), "files_sha256": digest.hexdigest(), "block": blocks.size}
    if (work / _PLAN).exists():
        try:
            before = read_json(work / _PLAN)
        except InputError:
            before = {}
        changed = sorted(key for key in plan if before.get(key) != plan[key])
        if not changed:
            whole = list(_finished(work / _ROWS))
            return {n: finished_block for n, finished_block in whole if _stamp(blocks[n]) == finished_block.about.stamp}
        if (work / _ROWS).exists():
            names = {"bundle_sha256": "model", "files_sha256": "list of files", "version": "version of darklens"}
            what = ", ".join(dict.fromkeys(names.get(key, key).replace("_", " ") for key in changed))
            say(f"{work} is of an unfinished run that differs in: {what}; this one starts anew.")
    for name in (_ROWS, _MODEL):
        (work / name).unlink(missing_ok=True)
    write_json(work / _PLAN, plan)
    return {}


def _make_blocks(
    work: Path,
    task: Task,
    blocks: "Blocks",
    finished: "dict[int, _FinishedBlock]",
    workers: int,
    executor: Executor | None,
    advance: Callable[[int], None],
) -> None:
    missing = [n for n in range(len(blocks)) if n not in finished]
    text = task.model_dump_json()
    tasks = ((text, n, blocks[n]) for n in missing)
    pool = nullcontext(executor) if executor else executors.local(min(workers, len(missing)))
    with (work / _ROWS).open("ab") as stream, pool as chosen:
        for about, rows in executors.as_finished(chosen, make_block, tasks, in_flight=IN_FLIGHT):
            block = _Block.model_validate(about)
            stream.write(json.dumps(about).encode() + b"\n")
            start = stream.tell()
            stream.write(rows)
            stream.flush()
            finished[block.block] = _FinishedBlock(block, start)
            advance(len(blocks[block.block]))


def make_block(task: str, number: int, files: Sequence[str]) -> tuple[dict[str, object], bytes]:
    """Return what there is to know about a block, and its rows of the table."""
    with _ONE_BLOCK_AT_A_TIME:
        todo, threads = Task.model_validate_json(task), torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            bundle, backend = _loaded(task)
            keep_freed_memory()
            if bundle.requires_fitting:
                load_for(todo.files)
            stamp = _stamp(files, Path(todo.folder))
            rows = predict(
                bundle,
                [Path(file) for file in files],
                pixel_scale=todo.pixel_scale,
                name=todo.image,
                backend=backend,
                folder=Path(todo.folder),
            )
        finally:
            torch.set_num_threads(threads)
    names = columns_of(bundle)
    values = [[row.findings.get(name, "") for name in names] for row in rows]
    text = lines(rows, bundle.contract.classes, values).encode("utf-8", "surrogateescape")
    bad = sum(bool(row.message) for row in rows)
    about = _Block(block=number, bad=bad, length=len(text), crc=zlib.crc32(text), stamp=stamp)
    return about.model_dump(), text


@lru_cache(maxsize=1)
def _loaded(task: str) -> tuple[Bundle, InferenceBackend]:
    """Return the model and the backend of a task, made once in a process."""
    todo, host = Task.model_validate_json(task), socket.gethostname()
    if todo.version != darklens.__version__:
        raise InputError(
            f"The worker on {host} has darklens {darklens.__version__}, not {todo.version}; install that one there."
        )
    try:
        where = locate(Path(todo.model))
    except InputError:
        raise InputError(
            f"The worker on {host} cannot see {todo.model}: the model, the images and the folder of --out must be on a "
            "file system that all workers share."
        ) from None
    if sha256_of_bundle(where) != todo.bundle_sha256:
        raise InputError(f"The model {todo.model} of the worker on {host} is another one; give a folder that both see.")
    bundle = Bundle.load(where)
    if todo.backend_file and not Path(todo.backend_file).exists():
        raise InputError(f"The worker on {host} cannot see {todo.backend_file}: put --out on a file system they share.")
    return bundle, backend_of(todo.backend, bundle, Path(todo.backend_file) if todo.backend_file else None)


def _prepared(task: Task, bundle: Bundle, file: Path, files: Sequence[str], *, asked: BackendChoice) -> Task:
    """Write the file that a backend needs; where that cannot be and nobody asked for the backend, take another."""
    if task.backend not in ("onnx", "int8"):
        return task
    try:
        if not file.exists():
            write_model(task.backend, bundle, file, _examples(bundle, task, files))
    except DarklensError:
        if asked != "auto":
            raise
        return task.model_copy(update={"backend": "eager"})
    return task.model_copy(update={"backend_file": str(file.resolve())})


def _examples(bundle: Bundle, task: Task, files: Sequence[str]) -> np.ndarray:
    """Return the first images that can be read."""
    examples: list[np.ndarray] = []
    for file in files:
        read = read_one(Path(file), bundle, pixel_scale=task.pixel_scale, name=task.image)
        if isinstance(read, Prepared):
            examples.append(read.pixels)
        if len(examples) == _EXAMPLES:
            break
    if len(examples) < 2:
        raise ConfigError(f"Backend {task.backend} needs two images that can be read; use backend eager.")
    return np.stack(examples)[:, None]


class _FinishedBlock(NamedTuple):
    """A finished block, and where its rows start, in bytes."""

    about: _Block
    start: int


def _finished(path: Path) -> Iterator[tuple[int, _FinishedBlock]]:
    """Yield the whole blocks of an unfinished table, and cut off what was being written when it was killed."""
    if not path.exists():
        return
    with path.open("r+b") as stream:
        whole = 0
        while line := stream.readline():
            try:
                about = _Block.model_validate_json(line)
            except ValidationError:
                break
            start = stream.tell()
            rows = stream.read(about.length)
            if len(rows) != about.length or zlib.crc32(rows) != about.crc:
                break
            whole = stream.tell()
            yield about.block, _FinishedBlock(about, start)
        stream.truncate(whole)


def _assemble(work: Path, out: Path, bundle: Bundle, finished: dict[int, _FinishedBlock]) -> int:
    """Write the table from its blocks and return how many files were bad."""
    with atomic_path(out) as temporary, temporary.open("wb") as table, (work / _ROWS).open("rb") as stream:
        table.write(header(bundle.contract.classes, columns_of(bundle)).encode())
        for number in sorted(finished):
            table.write(_read(stream, finished[number]))
    return sum(finished_block.about.bad for finished_block in finished.values())


def _read(stream: BinaryIO, finished_block: _FinishedBlock) -> bytes:
    stream.seek(finished_block.start)
    return stream.read(finished_block.about.length)


def _stamp(files: Sequence[str], folder: Path = Path()) -> str:
    """Return a digest of the sizes and times of files, from which it is seen that one was mended in between."""
    digest = hashlib.blake2b(digest_size=8)
    for file in files:
        try:
            status = (folder / file).stat()
            digest.update(f"{status.st_size},{status.st_mtime_ns};".encode())
        except (OSError, ValueError):
            digest.update(b"-;")
    return digest.hexdigest()
