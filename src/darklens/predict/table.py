"""Prediction tables of large archives: in blocks, on any number of processes, resumable after an interruption.

TABLE.csv.unfinished/plan.json    inputs of the run: model, files, options
TABLE.csv.unfinished/rows         finished blocks in order of completion, each preceded by a header line (`Block`)
TABLE.csv.unfinished/model.onnx   for the ONNX backends
TABLE.csv                         written last, in the order of the files; then the folder is removed
"""

import csv
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from pydantic import ValidationError

from darklens import executors
from darklens.bundle import BATCH_SIZE, Bundle, sha256_of_bundle
from darklens.data.prepare import Prepared
from darklens.devices import require_device
from darklens.errors import ConfigError, DarklensError, InputError
from darklens.files import atomic_path, locked, read_json, write_json, writing
from darklens.locate import SHIPPED, locate
from darklens.predict.auxiliary import Auxiliary
from darklens.predict.backends import BackendChoice, choose, write_model
from darklens.predict.block_worker import Block, Task, loaded_bundle, make_block, quoted, stamp_of
from darklens.predict.rows import columns_of, header, read_one, require_usable

IN_FLIGHT = 512  # blocks submitted to an executor at a time; their paths and pending rows take a few MB
_FIT_BLOCK_SIZES = 16, 48  # images, smallest and largest; 48 take two seconds of fits, for which Ctrl-C has to wait
_EXAMPLES = 64  # images on which an ONNX file is checked
_PLAN, _ROWS, _MODEL = "plan.json", "rows", "model.onnx"


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
    blocks = Blocks(files, _fit_block_size(len(files)) if bundle.fits_lenses and on.type == "cpu" else BATCH_SIZE)
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


def _fit_block_size(n_files: int) -> int:
    """Return the images per block for a model that fits them: few files make four blocks, which processes can share."""
    smallest, largest = _FIT_BLOCK_SIZES
    return min(max(-(-n_files // 4), smallest), largest)


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
            return {
                n: finished_block for n, finished_block in whole if stamp_of(blocks[n]) == finished_block.about.stamp
            }
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
            block = Block.model_validate(about)
            stream.write(json.dumps(about).encode() + b"\n")
            start = stream.tell()
            stream.write(rows)
            stream.flush()
            finished[block.block] = _FinishedBlock(block, start)
            advance(len(blocks[block.block]))


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

    about: Block
    start: int


def _finished(path: Path) -> Iterator[tuple[int, _FinishedBlock]]:
    """Yield the complete blocks of an unfinished table, and truncate an incomplete one at the end."""
    if not path.exists():
        return
    with path.open("r+b") as stream:
        whole = 0
        while line := stream.readline():
            try:
                about = Block.model_validate_json(line)
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
