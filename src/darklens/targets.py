"""Checks of the files and folders that a command is to write, before it does any work."""

import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NoReturn

from darklens.errors import InputError

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
    (stat.S_ISREG, "a file"),
)
_KERNEL_FOLDERS = ("/proc", "/sys")
_MAX_LINKS = 40


def check_targets(
    *,
    files: Iterable[Path] = (),
    folders: Iterable[Path] = (),
    inputs: Iterable[Path | str] = (),
    input_folders: Iterable[Path] = (),
) -> None:
    """Check that files and folders can be written, and that no input is lost by it. Nothing is created or changed.

    Args:
        files: Files to write; existing regular files will be replaced.
        folders: Folders to write, new or existing. Missing folders above a target will be created.
        inputs: Files that are read; no target may be one of them, also by another name or as a hard link.
        input_folders: Folders that are read, such as stores and bundles; no target may be one of them, lie in one, or
            be a hard link to a file in one.

    Raises:
        InputError: If a target is a device, FIFO or socket, a folder instead of a file or the reverse, a dangling or
            circular link, an open standard stream, or an input, or if its folder cannot be written.
    """
    files, folders = list(files), list(folders)
    for path in files:
        _check_parent(regular_file(path))
    for path in folders:
        _check_folder(path)
    for path in [*files, *folders]:
        for other in files:
            if other is not path and _real(path).is_relative_to(_real(other)):
                _refuse(path, f"lies in or is {other}, which the same command writes")
    _check_inputs(files, folders, inputs, list(input_folders))


def regular_file(path: Path) -> Path:
    """Return the file to write for `path`, with links followed; it need not exist.

    Raises:
        InputError: If `path` exists and is no regular file, or is an open standard stream or a dangling link.
    """
    status = _status(path)
    if status is None:
        return path
    if _is_in_kernel_folder(path):
        _refuse(path, "is an open stream or a file of the operating system")
    if not stat.S_ISREG(status.st_mode):
        _refuse(path, f"is {_kind(status)}, not a regular file")
    for descriptor in range(3):
        try:
            stream = os.fstat(descriptor)
        except OSError:  # closed
            continue
        if stat.S_ISREG(stream.st_mode) and os.path.samestat(status, stream):
            _refuse(path, "is a standard stream of this command")
    return _real(path) if path.is_symlink() else path


def _check_folder(path: Path) -> None:
    status = _status(path)
    if status is not None and not stat.S_ISDIR(status.st_mode):
        _refuse(path, f"is {_kind(status)}, not a folder")
    _check_parent(path / "file", path)


def _check_parent(path: Path, target: Path | None = None) -> None:
    """Check that a file can be created in the nearest existing folder above `path`; `target` is named in messages."""
    target = target or path
    for folder in path.absolute().parents:
        status = _status(folder)
        if status is None:
            continue
        if not stat.S_ISDIR(status.st_mode):
            _refuse(target, f"cannot be written: {folder} is {_kind(status)}, not a folder")
        try:
            with tempfile.TemporaryFile(dir=folder):
                return
        except OSError as error:
            _refuse(target, f"cannot be written: {folder}: {_reason(error)}")


def _check_inputs(
    files: list[Path], folders: list[Path], inputs: Iterable[Path | str], input_folders: list[Path]
) -> None:
    for path in [*files, *folders]:
        for folder in input_folders:
            if folder.is_dir() and _real(path).is_relative_to(_real(folder)):
                _refuse(path, f"is in {folder}, which the command reads" if path != folder else "is an input")
    existing = {_identity(status): path for path in files if (status := _status(path)) is not None}
    if not existing:
        return
    for name in [*inputs, *_files_in(input_folders)]:
        try:
            identity = _identity(os.stat(name))
        except (OSError, ValueError):  # the reader reports it
            continue
        if identity in existing:
            _refuse(existing[identity], f"is the input {name}")


def _files_in(folders: Iterable[Path]) -> Iterator[str]:
    for folder in folders:
        for parent, _, names in os.walk(folder):
            yield from (os.path.join(parent, name) for name in names)


def _status(path: Path) -> os.stat_result | None:
    """Return the status of the file or folder that a path leads to; None if there is none."""
    try:
        path.lstat()
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        return None  # reported for the folder above
    except (OSError, ValueError) as error:
        _refuse(path, f"cannot be written ({_reason(error)})")
    try:
        return path.stat()
    except FileNotFoundError:
        _refuse(path, "is a link to a file that does not exist")
    except OSError as error:
        _refuse(path, f"cannot be written ({_reason(error)})")


def _is_in_kernel_folder(path: Path) -> bool:
    """Return whether a path, or a link that it passes through, is in a folder that the kernel provides."""
    for _ in range(_MAX_LINKS):
        folder = os.path.realpath(path.absolute().parent)
        if folder.startswith(tuple(f"{name}/" for name in _KERNEL_FOLDERS)) or folder in _KERNEL_FOLDERS:
            return True
        if not path.is_symlink():
            return False
        path = path.parent / os.readlink(path)
    return False


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _kind(status: os.stat_result) -> str:
    return next((name for is_kind, name in _KINDS if is_kind(status.st_mode)), "a special file")


def _reason(error: OSError | ValueError) -> str:
    return (getattr(error, "strerror", None) or str(error)).lower()


def _refuse(path: Path, problem: str) -> NoReturn:
    raise InputError(f"{path} {problem}; choose another output.")
