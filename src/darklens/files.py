"""Atomic writes, locks and checksums of files. A file is written under a temporary name, then renamed."""

import codecs
import csv
import errno
import hashlib
import io
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # a module on other systems

from darklens.errors import FullDiskError, InputError
from darklens.targets import regular_file

# None: numpy.save raises an OSError without a number if the disk is full.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, None}
_FORBIDDEN = {errno.EROFS, errno.EACCES, errno.EPERM, errno.EBUSY, errno.EISDIR, errno.ENAMETOOLONG}
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # also in full width
_RANDOM = "[a-z0-9_]" * 8  # the random part of a temporary name
_LARGEST_FILE = 1_000_000_000  # bytes
_MAX_PREFIX = 30  # characters of a name that its temporary file repeats


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder that replaces `path` on success and is removed on failure.

    A link is followed: the file that it leads to is replaced.

    Raises:
        InputError: If `path` is a device, FIFO, folder or the like, its folder is not writable, or the disk is full.
    """
    path = regular_file(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{path.name[:_MAX_PREFIX]}."  # a longer name would not leave room for the random part
        handle, name = tempfile.mkstemp(prefix=prefix, suffix=path.suffix[:_MAX_PREFIX], dir=path.parent)
    except OSError as error:
        raise _unwritable(path, error) from None
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp creates files that only the user can read; set the default permissions.
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
    """Raise one sentence if the body fails to write because the disk is full or writing is forbidden.

    Raises:
        InputError: In these cases.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL | _FORBIDDEN | {errno.ENOTDIR, errno.EEXIST}:
            raise _unwritable(path, error) from None
        raise


def _unwritable(path: Path, error: OSError) -> InputError:
    if error.errno in _FULL:
        return FullDiskError(
            f"{path} cannot be written (the disk or the quota is full): free some space and repeat the command."
        )
    problem = (error.strerror or str(error)).lower()
    return InputError(f"{path} cannot be written ({problem}): choose another folder.")


def remove_temporaries(folder: Path) -> None:
    """Remove the temporary files of killed processes from `folder`; no process may be writing there."""
    for path in folder.glob(f".*.{_RANDOM}*"):
        path.unlink(missing_ok=True)


def is_temporary(path: Path) -> bool:
    """Return whether `path` has the name of a temporary file."""
    return path.match(f".*.{_RANDOM}*")


@contextmanager
def locked(path: Path, *, target: Path | None = None) -> Iterator[None]:
    """Lock a folder, or a file in it, so that only one process writes to the folder. The lock ends with the process.

    Without effect where the operating system or the file system has no locks.

    Args:
        path: The folder, or the file, which is created.
        target: What the lock protects, in messages; by default the folder.

    Raises:
        InputError: If another process holds the lock.
    """
    if fcntl is None:
        yield
        return
    try:
        handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_WRONLY | os.O_CREAT, 0o666)
    except OSError as error:
        raise _unwritable(path, error) from None
    _locks.add(handle)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Another process may have finished and removed the file since it was opened.
            is_alone = path.exists() and os.path.samestat(os.fstat(handle), path.stat())
        except BlockingIOError:
            is_alone = False
        except OSError:  # a network file system without locks
            is_alone = True
        if not is_alone:
            target = target or (path if path.is_dir() else path.parent)
            raise InputError(f"Another process is writing to {target}; wait for it to finish, or end it.")
        yield
    finally:
        _locks.discard(handle)
        os.close(handle)


def _release_in_child() -> None:
    """Close the locks that a forked process, such as one that loads images, has inherited: it may outlive this one."""
    while _locks:
        os.close(_locks.pop())


_locks: set[int] = set()
if fcntl is not None:
    os.register_at_fork(after_in_child=_release_in_child)


def require_space(path: Path, needed: int) -> None:
    """Check that the disk of `path` has `needed` bytes free.

    Raises:
        InputError: If it has not.
    """
    existing = next(folder for folder in [path.absolute(), *path.absolute().parents] if folder.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise InputError(
            f"{path} needs {size_in_words(needed)}, but its disk has only {size_in_words(free)} free; reduce the "
            "number or size of the images, or choose another disk."
        )


def size_in_words(n_bytes: int) -> str:
    """Return a number of bytes in kB, MB or GB, rounded to one decimal."""
    unit, size = next(((unit, size) for unit, size in (("GB", 1e9), ("MB", 1e6)) if n_bytes >= size), ("kB", 1e3))
    return f"{n_bytes / size:,.1f} {unit}"


def printable(text: object) -> str:
    """Return a text, such as a file name, with bytes that are not UTF-8 escaped as Python does."""
    escaped = re.sub("[\udc80-\udcff]", lambda match: f"\\x{ord(match[0]) - 0xDC00:02x}", str(text))
    return escaped.encode("utf-8", "backslashreplace").decode("utf-8")


def csv_line(values: Iterable[object]) -> str:
    """Return a line of a CSV table in UTF-8, with its line break.

    A text that a spreadsheet would evaluate as a formula gets an apostrophe in front; numbers stay as they are.
    """
    stream = io.StringIO()
    # Python quotes a carriage return in a cell only if the line ends in one.
    csv.writer(stream, lineterminator="\r\n").writerow([_csv_cell(value) for value in values])
    return stream.getvalue().removesuffix("\r\n") + "\n"


def _csv_cell(value: object) -> str:
    text = printable(value)
    if not text.startswith(_FORMULA):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text if text[0] in "+-" else f"'{text}"


def decode_text(content: bytes) -> str:
    """Return the text of a file: UTF-8 with or without a byte-order mark, or UTF-16 with one.

    Bytes that are not UTF-8, as in names of files, are kept as `os.fsdecode` keeps them.

    Raises:
        ValueError: If it is not a text.
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = content.decode("utf-16")
    else:
        text = content.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")
    if "\0" in text:
        raise ValueError("not a text")
    return text


def write_text(path: Path, text: str) -> None:
    """Write text to a file in UTF-8, atomically; bytes of file names that are not UTF-8 are escaped as Python does."""
    with atomic_path(path) as temporary:
        temporary.write_text(printable(text), encoding="utf-8")


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically. NaN and infinity, which JSON lacks, raise ValueError."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def require_regular(path: Path, *, max_bytes: int = _LARGEST_FILE) -> None:
    """Check that a file is regular, as reading a FIFO or device may not end, and has at most `max_bytes`.

    Raises:
        InputError: If it is missing, not a regular file, or larger.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error}).") from None
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path} is not a regular file.")
    if status.st_size > max_bytes:
        raise InputError(f"{path} has {size_in_words(status.st_size)}, which is too large for such a file.")


def read_json(path: Path, *, max_bytes: int = _LARGEST_FILE) -> Any:
    """Read a JSON file.

    Raises:
        InputError: If the file is missing, not a regular file, larger than `max_bytes`, or not valid JSON.
    """
    require_regular(path, max_bytes=max_bytes)
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    # ValueError: also not UTF-8, or an integer of thousands of digits; RecursionError: too many nested brackets
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is not valid JSON ({error}); create it again with the command that wrote it."
        ) from None


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal.

    Raises:
        FileNotFoundError: If there is no such regular file; reading a FIFO or device may not end.
    """
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def change_stamp(path: Path) -> bytes:
    """Return size and modification time of a file, which change if it is replaced; the same for all missing files."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return b"-;"
    return f"{status.st_size},{status.st_mtime_ns};".encode()
