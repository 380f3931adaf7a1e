"""Classification of a block of files, in any process that can read the model and the files."""

import hashlib
import os
import re
import socket
import threading
import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote_from_bytes, unquote_to_bytes

import torch
from pydantic import Field

import darklens
from darklens.bundle import Bundle, InferenceBackend, sha256_of_bundle
from darklens.config import Frozen
from darklens.data.image_stacks import location
from darklens.errors import InputError
from darklens.files import change_stamp
from darklens.kernels.smooth_fit import load_for
from darklens.locate import locate
from darklens.memory import keep_freed_memory
from darklens.predict.auxiliary import Auxiliary
from darklens.predict.backends import BackendChoice, backend_of
from darklens.predict.rows import columns_of, lines, predict

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


class Block(Frozen):
    """Header line before the rows of a block."""

    block: int
    bad: int
    length: int = Field(description="bytes in the rows")
    crc: int = Field(description="CRC-32 of the rows")
    stamp: str = Field(description="digest of file sizes and modification times")


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
            stamp = stamp_of(files, unquoted(settings.folder))
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
    about = Block(block=number, bad=bad, length=len(text), crc=zlib.crc32(text), stamp=stamp)
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


def stamp_of(files: Sequence[str], folder: Path = Path()) -> str:
    """Return a digest of file sizes and modification times, which changes if a file is replaced."""
    digest = hashlib.blake2b(digest_size=8)
    for file in files:
        digest.update(change_stamp(location(folder / file)[0]))
    return digest.hexdigest()
