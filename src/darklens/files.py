"""Writing so that a reader never sees half a file: to a temporary name beside it, then rename."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # a module elsewhere

from darklens.errors import InputError

# A short write by numpy.save carries no number: the disk is full then, too.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, None}
_FORBIDDEN = {errno.EROFS, errno.EACCES, errno.EPERM}
_RANDOM = "[a-z0-9_]" * 8  # what tempfile puts into a name


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success it replaces `path`, on failure it is removed.

    Raises:
        InputError: If the folder cannot be written to, or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    except OSError as error:
        raise _unwritable(path, error) from None
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files private to the user; give them the usual permissions.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except OSError as error:
        if error.errno in _FULL | _FORBIDDEN:
            raise _unwritable(path, error) from None
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a full disk, or a place where writing is forbidden, into one sentence.

    Raises:
        InputError: If that is what goes wrong inside.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL | _FORBIDDEN | {errno.ENOTDIR, errno.EEXIST}:
            raise _unwritable(path, error) from None
        raise


def _unwritable(path: Path, error: OSError) -> InputError:
    if error.errno in _FULL:
        what, remedy = "the disk or the quota is full", "free some space and give the same command again"
    else:
        what, remedy = (error.strerror or str(error)).lower(), "choose another place"
    return InputError(f"{path} cannot be written ({what}): {remedy}.")


def remove_temporaries(folder: Path) -> None:
    """Remove what killed writers left in `folder`; no writer may be at work there."""
    for path in folder.glob(f".*.{_RANDOM}*"):
        path.unlink(missing_ok=True)


def is_temporary(path: Path) -> bool:
    """Tell whether `path` is named like a file that a writer has not finished."""
    return path.match(f".*.{_RANDOM}*")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`, so that two processes do not write one folder; the system frees it with the process.

    Where the system or the file system has no locks, nothing is held.

    Raises:
        InputError: If another process holds it.
    """
    if fcntl is None:
        yield
        return
    try:
        stream = path.open("w")
    except OSError as error:
        raise _unwritable(path, error) from None
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"Another process is at work in {path.parent}; wait for it or end it.") from None
        except OSError:  # a network file system without locks
            pass
        yield


def require_space(path: Path, needed: int) -> None:
    """Check that `needed` bytes fit on the disk where `path` is or will be.

    Raises:
        InputError: If they do not.
    """
    existing = next(folder for folder in [path.absolute(), *path.absolute().parents] if folder.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise InputError(
            f"{path} needs {needed / 1e9:,.1f} GB and its disk has {free / 1e9:,.1f} GB free: ask for fewer or smaller "
            "images, or choose another disk."
        )


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as a whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable JSON, refusing NaN and infinity, which JSON does not have."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        InputError: If the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist.") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:  # the last: brackets without end
        raise InputError(f"{path} is not valid JSON ({error}); make it again with the command that wrote it.") from None


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as hexadecimal text."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
