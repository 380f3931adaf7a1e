"""What a process does that reads files of requests: bytes in, a prepared image or a sentence out. Nothing is pickled.

A file of a request is not trusted: it may be built to take all memory or for ever. So it is read in a process that may
take only so much memory and is ended when it is too slow, under a name that we choose in a private folder.
"""

import json
import os
import signal
import threading
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from darklens.data.prepare import prepare
from darklens.data.readers import read_image
from darklens.errors import DarklensError

MEMORY = 1_000_000_000  # bytes that reading and preparing an image may take beyond what the process has at its start
# What messages of the command line name, as requests name it.
_WORDS = {"--pixel-scale": "pixel_scale", "--image NAME": "the parameter image"}


def serve_files(connection: Connection, path: str) -> None:
    """Read files until the connection is closed.

    Args:
        connection: Gives pairs of messages, JSON with `n_pixels`, `pixel_scale`, `own_scale`, `image`, `max_pixels` and
            `name`, then the file; takes JSON with `message` or `changes`, and in the second case the pixels.
        path: The file is kept here while it is read.
    """
    # The parent decides when to end: whoever stops the server signals the whole group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    _bound_memory()
    _end_with_parent()
    file = Path(path)
    connection.send_bytes(b"ready")
    while True:
        try:
            task, data = json.loads(connection.recv_bytes()), connection.recv_bytes()
        except EOFError:
            return
        answer, pixels = _read(file, task, data)
        del data
        connection.send_bytes(json.dumps(answer).encode())
        if pixels is not None:
            connection.send_bytes(pixels.tobytes())


def _read(file: Path, task: dict[str, Any], data: bytes) -> tuple[dict[str, Any], np.ndarray | None]:
    name = str(task["name"])
    try:
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
            stream.write(data)
        image = read_image(file, name=task["image"])
        n = image.pixels.size
        if n > task["max_pixels"]:
            return {"message": f"{name}: has {n} pixels and the server takes {task['max_pixels']}; cut it out."}, None
        ready = prepare(
            image,
            n_pixels=task["n_pixels"],
            pixel_scale=task["pixel_scale"],
            own_scale=task["own_scale"],
            name=name,
        )
    except DarklensError as error:
        return {"message": _in_words(str(error), str(file), name)}, None
    except MemoryError:
        return {"message": f"{name}: takes more memory than a file may; cut out the lens first."}, None
    except Exception as error:
        return {"message": f"{name}: cannot be read ({type(error).__name__}); save the image again."}, None
    finally:
        file.unlink(missing_ok=True)
    return {"changes": list(ready.changes)}, ready.pixels.astype("<f4")


def _in_words(message: str, path: str, name: str) -> str:
    for old, new in {path: name, **_WORDS}.items():
        message = message.replace(old, new)
    return message


def _bound_memory() -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:  # not Linux
        return
    limit = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _end_with_parent() -> None:
    """A process that is killed cannot tell its children, and one of these may be busy with a file for long."""
    import multiprocessing

    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def end() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()
