"""Processes that read the files of requests.

Uploaded files are not trusted: they may be made to exhaust the memory or to take forever to read. A process therefore
reads them with bounded memory, and is killed and replaced if it is too slow. The files lie in private folders under
names that the server chooses, one folder for each process. Parent and child exchange bytes and JSON; nothing is
pickled.
"""

import json
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from darklens.data.prepare import Prepared, prepare
from darklens.data.readers import read_image
from darklens.errors import DarklensError

MEMORY = 1_000_000_000  # bytes that a process may allocate beyond those it has at its start
_START_TIMEOUT = 120.0  # s, for the imports on a busy machine
_END_TIMEOUT = 5.0  # s, until a process whose connection is closed has ended
# Messages name options of the command line; the web interface has parameters.
_PARAMETER_NAMES = {"--pixel-scale": "pixel_scale", "--image NAME": "the parameter image"}
_LOST = {
    "slow": "takes more than {timeout:g} s to read; save the image again without compression.",
    "killed": "cannot be read: the process that read it was killed; send it again.",
    "crashed": "cannot be read: it crashed the process that read it; save the image again.",
}


@dataclass(frozen=True)
class ReadRequest:
    """How to read a file.

    Attributes:
        name: Name of the file in messages.
        n_pixels: Side of the model's images, pixels.
        pixel_scale: Pixel scale of the model's images, arcsec.
        image_pixel_scale: Pixel scale of the image, arcsec; overrides that of the file.
        image: Name of the image in a file that holds several.
        max_pixels: Largest number of pixels of the image.
    """

    name: str
    n_pixels: int
    pixel_scale: float
    image_pixel_scale: float | None
    image: str | None
    max_pixels: int


class ReaderPool:
    """Reads files in separate processes.

    Args:
        n: Number of processes.
        timeout: Time in s after which a process that is still reading a file is killed.
        on_kill: Called when that happens.
    """

    def __init__(self, n: int, *, timeout: float, on_kill: Callable[[], None] = lambda: None) -> None:
        self._timeout, self._on_kill = timeout, on_kill
        self._idle: SimpleQueue[_Reader] = SimpleQueue()
        self._readers = [_Reader() for _ in range(n)]
        for reader in self._readers:
            self._idle.put(reader)
        self._threads = ThreadPoolExecutor(n, thread_name_prefix="read")

    def read(self, data: bytes, request: ReadRequest) -> "Future[Prepared | str]":
        """Return the image on the model's pixel grid, or one sentence that says why it cannot be used.

        The future raises OSError if the file cannot be stored, as on a full disk.
        """
        return self._threads.submit(self._read, data, request)

    def wait_until_ready(self) -> None:
        """Return once all processes have started."""
        for reader in self._readers:
            reader.wait_until_ready()

    def close(self) -> None:
        """End the processes and remove their files."""
        self._threads.shutdown(cancel_futures=True)
        for reader in self._readers:
            reader.close()

    def _read(self, data: bytes, request: ReadRequest) -> Prepared | str:
        reader = self._idle.get()
        try:
            return reader.read(data, request, self._timeout)
        except ProcessLostError as error:
            self._on_kill()
            with suppress(OSError):  # the next file starts it
                reader.restart()
            return f"{request.name}: {_LOST[str(error)].format(timeout=self._timeout)}"
        finally:
            self._idle.put(reader)


class ProcessLostError(Exception):
    """The process was too slow ("slow"), was killed ("killed"), or crashed ("crashed")."""


def process_context() -> BaseContext:
    """Return how processes start; torch's threads do not survive a fork."""
    return multiprocessing.get_context("spawn")


class FileProcess:
    """The parent's side of one process that is given files; only one thread at a time may use it.

    Args:
        target: The child's side, called with a connection and the folder of the process; see `handle_files`.
        context: How the process starts.
    """

    def __init__(self, target: Callable[[Connection, str], None], context: BaseContext) -> None:
        self._target, self._context = target, context
        self._start()

    def _start(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="darklens-serve-"))
        self._connection, child_connection = self._context.Pipe()
        arguments = (child_connection, str(self.folder))
        self._process = self._context.Process(target=self._target, args=arguments, daemon=True)  # type: ignore[attr-defined]  # every context has it
        self._process.start()
        child_connection.close()
        self._ready = False

    def wait_until_ready(self) -> None:
        """Return once the process has started."""
        if not self._ready:
            _receive(self._connection, _START_TIMEOUT)
            self._ready = True

    def exchange(self, request: dict[str, Any], data: Sequence[bytes], timeout: float) -> list[bytes]:
        """Send a request with the contents of files, and return the messages of the reply.

        Raises:
            ProcessLostError: If the process ends, or does not reply within `timeout` s.
        """
        # It may have been killed while it was idle, or a cleaner of old files may have removed its folder.
        if not self._process.is_alive() or not self.folder.exists():
            self.restart()
        try:
            self.wait_until_ready()
            self._connection.send_bytes(json.dumps([request, len(data)]).encode())
            for content in data:
                self._connection.send_bytes(content)
            n_messages = json.loads(_receive(self._connection, timeout))
            return [_receive(self._connection, timeout) for _ in range(n_messages)]
        except TimeoutError:
            raise ProcessLostError("slow") from None
        except (OSError, EOFError):
            self._process.join(_END_TIMEOUT)
            raise ProcessLostError("killed" if self._process.exitcode == -signal.SIGKILL else "crashed") from None

    def kill(self) -> None:
        """End the process, also while another thread waits for its reply; the next request starts it again."""
        self._process.kill()

    def restart(self) -> None:
        """End the process and start another one."""
        self.close()
        self._start()

    def close(self) -> None:
        """End the process and remove its files."""
        self._connection.close()
        self._process.kill()
        self._process.join()
        shutil.rmtree(self.folder, ignore_errors=True)


class _Reader(FileProcess):
    """The parent's side of a process that reads images."""

    def __init__(self) -> None:
        super().__init__(read_files, process_context())

    def read(self, data: bytes, request: ReadRequest, timeout: float) -> Prepared | str:
        head, *rest = self.exchange(vars(request), [data], timeout)
        reply: dict[str, Any] = json.loads(head)
        if "errno" in reply:
            raise OSError(reply["errno"], os.strerror(reply["errno"]))
        if "message" in reply:
            return str(reply["message"])
        (encoded,) = rest
        pixels = np.frombuffer(encoded, dtype="<f4").astype(np.float32)
        shape = (request.n_pixels, request.n_pixels)
        mask = None
        if reply["masked"]:
            mask = np.zeros(shape, dtype=bool)
            mask.flat[reply["masked"]] = True
        return Prepared(pixels.reshape(shape), tuple(reply["changes"]), tuple(reply["offset"]), mask)


def _receive(connection: Connection, timeout: float) -> bytes:
    if not connection.poll(timeout):
        raise TimeoutError
    return connection.recv_bytes()


def read_files(connection: Connection, folder: str) -> None:
    """Read files until the connection is closed: the child's side of one process.

    Args:
        connection: As for `handle_files`. A request is a `ReadRequest` with one file. The reply is JSON with `message`,
            with `errno` if the file cannot be stored, or with `changes`, `offset` and indices of `masked` pixels,
            followed by the pixels.
        folder: Holds the file while it is read; removed if the parent is killed.
    """
    file = Path(folder, "file")

    def handle(request: dict[str, Any], data: list[bytes]) -> list[bytes]:
        reply, pixels = _read_file(file, ReadRequest(**request), data.pop())
        return [json.dumps(reply).encode(), *([] if pixels is None else [pixels.tobytes()])]

    handle_files(connection, folder, handle, memory=MEMORY)


def handle_files(
    connection: Connection,
    folder: str,
    handle: Callable[[dict[str, Any], list[bytes]], list[bytes]],
    *,
    memory: int,
) -> None:
    """Reply to requests until the connection is closed: the child's side of a `FileProcess`.

    Args:
        connection: Receives a request and the number of files as JSON, then the contents of the files. Sends the number
            of messages of the reply, then the messages.
        folder: Of this process; removed if the parent is killed.
        handle: Returns the messages of the reply to a request with the contents of its files.
        memory: Bytes that the process may allocate beyond those it has at its start.
    """
    # The parent ends this process; a signal that stops the server reaches the whole process group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    _limit_memory(memory)
    _end_with_parent(folder)
    with suppress(EOFError, OSError):  # the parent has ended
        connection.send_bytes(b"ready")
        while True:
            request, n_files = json.loads(connection.recv_bytes())
            reply = handle(request, [connection.recv_bytes() for _ in range(n_files)])
            connection.send_bytes(json.dumps(len(reply)).encode())
            for message in reply:
                connection.send_bytes(message)
    shutil.rmtree(folder, ignore_errors=True)


def store(file: Path, data: bytes) -> None:
    """Write a file that only this user can read."""
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
        stream.write(data)


def _read_file(file: Path, request: ReadRequest, data: bytes) -> tuple[dict[str, Any], np.ndarray | None]:
    name = request.name
    try:
        try:
            store(file, data)
        except OSError as error:
            return {"errno": error.errno}, None
        image = read_image(file, name=request.image, pixel_scale=request.image_pixel_scale)
        n = image.pixels.size
        if n > request.max_pixels:
            message = f"{name}: has {n} pixels, and this server takes at most {request.max_pixels}; cut out the lens."
            return {"message": message}, None
        prepared = prepare(
            image,
            n_pixels=request.n_pixels,
            pixel_scale=request.pixel_scale,
            image_pixel_scale=request.image_pixel_scale,
            name=name,
            path=Path(name),
        )
    except DarklensError as error:
        return {"message": reworded(str(error), {str(file): name, **_PARAMETER_NAMES})}, None
    except MemoryError:
        return {"message": f"{name}: needs too much memory to read; cut out the lens first."}, None
    except Exception as error:
        return {"message": f"{name}: cannot be read ({type(error).__name__}); save the image again."}, None
    finally:
        file.unlink(missing_ok=True)
    masked = [] if prepared.mask is None else np.flatnonzero(prepared.mask).tolist()
    reply = {"changes": list(prepared.changes), "offset": prepared.offset, "masked": masked}
    return reply, prepared.pixels.astype("<f4")


def reworded(message: str, replacements: Mapping[str, str]) -> str:
    """Replace temporary paths by names of files, and options of the command line by parameters of the request."""
    for old, new in replacements.items():
        message = message.replace(old, new)
    return message


def _limit_memory(extra: int) -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:  # not Linux
        return
    limit = pages * os.sysconf("SC_PAGE_SIZE") + extra
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _end_with_parent(folder: str) -> None:
    """End this process and remove its folder when the parent ends: a killed parent cannot, and a child may be busy."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def end() -> None:
        parent.join()
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()
