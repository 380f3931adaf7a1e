"""A few processes that read the files of requests, ended and replaced when they are too slow."""

import json
import multiprocessing
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from darklens.data.prepare import Prepared
from darklens.serve.reading import serve_files

_START_SECONDS = 120.0  # imports, on a busy machine


@dataclass(frozen=True)
class Wanted:
    """How to read a file: for which model, and what the request says of it.

    Attributes:
        name: Of the file, for messages.
        n_pixels: Side of the model's images.
        pixel_scale: The model's, arcsec.
        own_scale: The image's in place of what its file says, arcsec.
        image: Which image of a file that holds several.
        max_pixels: The most that the image may have.
    """

    name: str
    n_pixels: int
    pixel_scale: float
    own_scale: float | None
    image: str | None
    max_pixels: int


class Readers:
    """Reads files in processes of their own.

    Args:
        n: How many.
        timeout: Seconds after which one that reads a file is ended.
        on_kill: Called when that happens.
    """

    def __init__(self, n: int, *, timeout: float, on_kill: Callable[[], None] = lambda: None) -> None:
        self._timeout, self._on_kill = timeout, on_kill
        self._folder = Path(tempfile.mkdtemp(prefix="darklens-serve-"))
        self._free: SimpleQueue[_Process] = SimpleQueue()
        self._processes = [_Process(self._folder / str(i)) for i in range(n)]
        for process in self._processes:
            self._free.put(process)
        self._threads = ThreadPoolExecutor(n, thread_name_prefix="read")

    def read(self, data: bytes, wanted: Wanted) -> "Future[Prepared | str]":
        """Return the image as the model takes it, or the sentence that says why there is none."""
        return self._threads.submit(self._read, data, wanted)

    def wait_until_ready(self) -> None:
        """Return when all processes have started."""
        for process in self._processes:
            process.wait_until_ready()

    def close(self) -> None:
        """End the processes and remove what they kept."""
        self._threads.shutdown(cancel_futures=True)
        for process in self._processes:
            process.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _read(self, data: bytes, wanted: Wanted) -> Prepared | str:
        process = self._free.get()
        try:
            return process.read(data, wanted, self._timeout)
        except _LostError as error:
            self._on_kill()
            process.restart()
            return f"{wanted.name}: {error}"
        finally:
            self._free.put(process)


class _LostError(Exception):
    """The process has ended or was too slow."""


class _Process:
    """One process; used by one thread at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve_files, args=(theirs, str(self._path)), daemon=True)
        self._process.start()
        theirs.close()
        self._ready = False

    def wait_until_ready(self) -> None:
        if not self._ready:
            _received(self._connection, _START_SECONDS)
            self._ready = True

    def read(self, data: bytes, wanted: Wanted, timeout: float) -> Prepared | str:
        try:
            self.wait_until_ready()
            self._connection.send_bytes(json.dumps(vars(wanted)).encode())
            self._connection.send_bytes(data)
            answer: dict[str, Any] = json.loads(_received(self._connection, timeout))
            if "message" in answer:
                return str(answer["message"])
            pixels = np.frombuffer(_received(self._connection, timeout), dtype="<f4").astype(np.float32)
        except TimeoutError:
            raise _LostError(f"takes more than {timeout:g} s to read; save the image again, without packing.") from None
        except (OSError, EOFError):
            raise _LostError("cannot be read: it ended the process that read it; save the image again.") from None
        return Prepared(pixels.reshape(wanted.n_pixels, wanted.n_pixels), tuple(answer["changes"]))

    def restart(self) -> None:
        self.close()
        self._start()

    def close(self) -> None:
        self._connection.close()
        self._process.kill()
        self._process.join()
        with suppress(OSError):
            self._path.unlink(missing_ok=True)


def _received(connection: Connection, timeout: float) -> bytes:
    if not connection.poll(timeout):
        raise TimeoutError
    return connection.recv_bytes()
