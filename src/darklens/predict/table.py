"""Prediction tables of large archives: in blocks, on any number of processes, resumable after an interruption.

TABLE.csv.unfinished/plan.json    inputs of the run: model, files, options
TABLE.csv.unfinished/rows         finished blocks in order of completion, each preceded by a header line (`_Block`)
TABLE.csv.unfinished/model.onnx   for the ONNX backends
TABLE.csv                         written last, in the order of the files; then the folder is removed
"""

import csv
import hashlib
import json
import os
import re
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
from urllib.parse import quote_from_bytes, unquote_to_bytes

import numpy as np
import torch
from pydantic import Field, ValidationError

import darklens
from darklens import executors
from darklens.bundle import BATCH_SIZE, Bundle, InferenceBackend, sha256_of_bundle
from darklens.config import Frozen
from darklens.data.prepare import Prepared
from darklens.devices import require_device
from darklens.errors import ConfigError, DarklensError, InputError
from darklens.files import atomic_path, change_stamp, locked, read_json, write_json, writing
from darklens.kernels.smooth_fit import load_for
from darklens.locate import SHIPPED, locate
from darklens.memory import keep_freed_memory
from darklens.predict.auxiliary import Auxiliary
from darklens.predict.backends import BackendChoice, backend_of, choose, write_model
from darklens.predict.rows import columns_of, header, lines, predict, read_one, require_usable

IN_FLIGHT = 512  # blocks submitted to an executor at a time; their paths and pending rows take a few MB
_FIT_BLOCK_SIZE = 16  # images; a few seconds of fits, for which Ctrl-C has to wait
_EXAMPLES = 64  # images on which an ONNX file is checked
_PLAN, _ROWS, _MODEL = "plan.json", "rows", "model.onnx"
# Blocks set the number of torch threads, a setting of the whole process, to one.
_THREADS_LOCK = threading.Lock()


class Task(Frozen):
    """Settings with which any process that can read the model and the files classifies a block."""

    model: str = Field(description="bundle folder, absolute, or the name of a shipped model, `quoted`")
    bundle_sha256: str
    backend: BackendChoice
    device: str = "cpu"
    fallback: bool = True
    checks: bool = True
    backend_file: str = Field(default="", description="ONNX file of the backend, empty for others")
    pixel_scale: float | None = None
    image: str | None = None
    auxiliary: Auxiliary | None = None
    folder: str = Field(description="folder of relative paths, `quoted`")
    files: int = Field(default=0, description="number of files in all blocks")
    version: str = darklens.__version__


def quoted(path: Path) -> str:
    """Return a path as text for JSON: a percent sign and bytes that are not UTF-8 are written as in a URL."""
    return re.sub("[%\udc80-\udcff]", lambda match: quote_from_bytes(os.fsencode(match[0])), str(path))


def unquoted(text: str) -> Path:
    """Return the path of which `quoted` made a text."""
    return Path(os.fsdecode(unquote_to_bytes(text)))


class Summary(NamedTuple):
    """Number of files, of bad files, and of files classified before an interruption."""

    files: int
    bad: int
    resumed: int


class Blocks:
    """Files in blocks of `size`; the last may be shorter. A block is classified as one batch."""

    def __init__(self, files: Sequence[str], size: int) -> None:
        self.files, self.size = files, size

    def __len__(self) -> int:
        return -(-len(self.files) // self.size)

    def __getitem__(self, number: int) -> Sequence[str]:
        return self.files[number * self.size : (number + 1) * self.size]


class _Block(Frozen):
    """Header line before the rows of a block."""

    block: int
    bad: int
    length: int = Field(description="bytes in the rows")
    crc: int = Field(description="CRC-32 of the rows")
    stamp: str = Field(description="digest of file sizes and modification times")


def predict_table(
    model: Path,
    files: Sequence[str],
    out: Path,
    *,
    pixel_scale: float | None = None,
    image: str | None = None,
    auxiliary: Auxiliary | None = None,
    backend: BackendChoice = "auto",
    device: torch.device | str = "cpu",
    fallback: bool = True,
    checks: bool = True,
    workers: int | None = None,
    executor: Executor | None = None,
    advance: Callable[[int], None] = lambda _: None,
    warn: Callable[[str], None] = lambda _: None,
) -> Summary:
    """Write a table with one row per file, in order, or resume an interrupted run.

    The bytes of the table do not depend on the number of workers or on interruptions.

    Args:
        model: A classifier: a run or bundle folder, or the name of a shipped model.
        files: Paths; relative ones start from the working folder.
        out: Table to write.
        pixel_scale: As for `predict`.
        image: Name of the image in files with several images.
        auxiliary: As for `predict`.
        backend: See `darklens.predict.backends`.
        device: Device of the network and of fits, such as "cuda"; of each worker of an executor.
        fallback: Whether the fallback of the model classifies images that the model doubts.
        checks: Whether a network that takes images has its classes checked by fits, see `Bundle.checker`.
        workers: Number of processes; by default one per usable core, fewer for few files, one on a GPU. Processes are
            spawned, so scripts need `if __name__ == "__main__"`.
        executor: Executor to use instead; its workers must see the model, the files and the folder of `out`.
        advance: Called with the number of files just finished.
        warn: Called with a warning: an interrupted run cannot be resumed, or nothing checks the classes.

    Raises:
        InputError: If the model does not classify, or the folder of `out` cannot be written to.
        ConfigError: If the backend cannot be used, or there is no such device.
        StoppedError: If workers were killed. Finished blocks are kept, and the same call resumes the run.
    """
    on = torch.device(device) if executor else require_device(device)
    bundle = loaded_bundle(model, fallback=fallback, checks=checks)
    require_usable(bundle, pixel_scale)
    where = locate(model)
    task = Task(
        model=model.name if where == Path(str(SHIPPED)) / model.name else quoted(where.resolve()),
        bundle_sha256=sha256_of_bundle(where),
        backend=choose(backend, bundle, len(files), on),
        device=str(on),
        fallback=fallback,
        checks=checks,
        pixel_scale=pixel_scale,
        image=image,
        auxiliary=auxiliary,
        folder=quoted(Path.cwd()),
        files=len(files),
    )
    blocks = Blocks(files, _FIT_BLOCK_SIZE if bundle.fits_lenses and on.type == "cpu" else BATCH_SIZE)
    if workers is None and on.type != "cpu":
        workers = 1
    if workers is None:
        # Starting a process takes as long as a few blocks without fits, or one with.
        workers = min(executors.usable_cores(), len(blocks) // (2 if bundle.fits_lenses else 8))
    work = out.with_name(out.name + ".unfinished")
    with writing(out):
        work.mkdir(parents=True, exist_ok=True)
    with locked(work / "lock", target=out), _removed_unless_started(work):
        finished = _resume_or_start(work, task, blocks, warn)
        resumed = sum(len(blocks[n]) for n in finished)
        advance(resumed)
        task = _with_backend_file(task, bundle, work / _MODEL, files, requested=backend)
        with writing(out):
            _make_blocks(work, task, blocks, finished, workers, executor, advance)
        bad = _assemble(work, out, bundle, finished)
        shutil.rmtree(work)
    warn_if_unchecked(bundle, warn)
    return Summary(len(files), bad, resumed)


def problems_in(table: Path) -> Iterator[str]:
    """Yield the error message of each bad file in a table."""
    with table.open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            if row["status"] == "error":
                yield row["message"]


@contextmanager
def _removed_unless_started(work: Path) -> Iterator[None]:
    """Remove the folder of a run that ends with an exception before its first block is finished."""
    try:
        yield
    except BaseException:
        if not (work / _ROWS).exists() or (work / _ROWS).stat().st_size == 0:
            shutil.rmtree(work, ignore_errors=True)
        raise


def _resume_or_start(
    work: Path, task: Task, blocks: "Blocks", warn: Callable[[str], None]
) -> "dict[int, _FinishedBlock]":
    """Return the finished blocks of an interrupted run with the same plan; otherwise write a new plan."""
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
            warn(f"{work} belongs to an unfinished run that differs in: {what}; starting again.")
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
    """Classify a block; return its header and its rows."""
    with _THREADS_LOCK:
        settings, threads = Task.model_validate_json(task), torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            bundle, backend = _loaded(task)
            keep_freed_memory()
            if bundle.fits_lenses:
                load_for(settings.files)
            stamp = _stamp(files, unquoted(settings.folder))
            rows = predict(
                bundle,
                [Path(file) for file in files],
                pixel_scale=settings.pixel_scale,
                name=settings.image,
                backend=backend,
                folder=unquoted(settings.folder),
                auxiliary=settings.auxiliary,
            )
        finally:
            torch.set_num_threads(threads)
    names = columns_of(bundle)
    values = [[row.findings.get(name, "") for name in names] for row in rows]
    text = lines(rows, bundle.contract.classes, values).encode()
    bad = sum(bool(row.message) for row in rows)
    about = _Block(block=number, bad=bad, length=len(text), crc=zlib.crc32(text), stamp=stamp)
    return about.model_dump(), text


@lru_cache(maxsize=1)
def _loaded(task: str) -> tuple[Bundle, InferenceBackend]:
    """Return the model and the backend of a task, cached in each process."""
    settings, host = Task.model_validate_json(task), socket.gethostname()
    if settings.version != darklens.__version__:
        raise InputError(
            f"The worker on {host} has darklens {darklens.__version__}, not {settings.version}; install "
            "that version there."
        )
    try:
        where = locate(unquoted(settings.model))
    except InputError:
        raise InputError(
            f"The worker on {host} cannot see {settings.model}: the model, the images and the folder of --out must be "
            "on a file system that all workers share."
        ) from None
    if sha256_of_bundle(where) != settings.bundle_sha256:
        raise InputError(
            f"The model {settings.model} on the worker {host} differs; pass a folder that all workers share."
        )
    bundle = loaded_bundle(where, fallback=settings.fallback, checks=settings.checks, device=settings.device)
    file = unquoted(settings.backend_file) if settings.backend_file else None
    if file is not None and not file.exists():
        raise InputError(f"The worker on {host} cannot see {file}: put --out on a file system they share.")
    return bundle, backend_of(settings.backend, bundle, file)


def loaded_bundle(model: Path, *, fallback: bool, checks: bool, device: str = "cpu") -> Bundle:
    """Return a model with its fallback and its checks, or without."""
    bundle = Bundle.load(model, device=device)
    return bundle.with_companions(fallback=None if fallback else "", checked_by=None if checks else "")


def warn_if_unchecked(bundle: Bundle, warn: Callable[[str], None]) -> None:
    """Call `warn` if no fit checks the classes of a bundle."""
    if not bundle.fits_lenses:
        warn(
            f"{bundle.contract.recipe} takes images and no fit checks its classes: on images unlike its training "
            "images it can be confident and wrong without a flag."
        )


def _with_backend_file(
    task: Task, bundle: Bundle, file: Path, files: Sequence[str], *, requested: BackendChoice
) -> Task:
    """Write the file of an ONNX backend; if that fails and the backend was chosen by `auto`, use eager."""
    if task.backend not in ("onnx", "int8"):
        return task
    try:
        if not file.exists():
            write_model(task.backend, bundle, file, _examples(bundle, task, files))
    except DarklensError:
        if requested != "auto":
            raise
        return task.model_copy(update={"backend": "eager"})
    return task.model_copy(update={"backend_file": quoted(file.resolve())})


def _examples(bundle: Bundle, task: Task, files: Sequence[str]) -> np.ndarray:
    """Return the first readable images."""
    examples: list[np.ndarray] = []
    for file in files:
        read = read_one(Path(file), bundle, pixel_scale=task.pixel_scale, name=task.image)
        if isinstance(read, Prepared):
            examples.append(read.pixels)
        if len(examples) == _EXAMPLES:
            break
    if len(examples) < 2:
        raise ConfigError(f"Backend {task.backend} needs two readable images; use backend eager.")
    return np.stack(examples)[:, None]


class _FinishedBlock(NamedTuple):
    """A finished block, and the offset of its rows in bytes."""

    about: _Block
    start: int


def _finished(path: Path) -> Iterator[tuple[int, _FinishedBlock]]:
    """Yield the complete blocks of an unfinished table, and truncate an incomplete one at the end."""
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
    """Return a digest of file sizes and modification times, which changes if a file is replaced."""
    digest = hashlib.blake2b(digest_size=8)
    for file in files:
        digest.update(change_stamp(folder / file))
    return digest.hexdigest()
