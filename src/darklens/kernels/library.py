"""The compiled kernels: built at first use by the system's compiler, cached on disk, loaded by ctypes."""

import ctypes
import hashlib
import os
import stat
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from darklens.compilation import compiler
from darklens.errors import InputError
from darklens.files import atomic_path

_SOURCE = Path(__file__).parent
_FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-mprefer-vector-width=512",
    "-fno-trapping-math",
    "-fopenmp",
    "-fPIC",
    "-w",
)
_TIMEOUT = 300  # s; a compilation takes less than ten
_DIGEST = hashlib.sha256().digest_size


@cache
def library() -> ctypes.CDLL | None:
    """Return the kernels; None where they cannot be built or DARKLENS_KERNELS=0 is set. PyTorch computes the same then.

    They need Linux, g++ and a processor with AVX2, and use the threads of PyTorch's own OpenMP library.
    """
    path = _compiler_path()
    if path is None:
        return None
    try:
        return _loaded(path, cache_folder())
    except (OSError, InputError, subprocess.SubprocessError) as error:
        warnings.warn(
            f"Fits are slower than they could be: {path} could not build the kernels ({error}), so PyTorch "
            "computes instead. Fix or change the compiler (CXX), or set DARKLENS_KERNELS=0.",
            stacklevel=2,
        )
        return None


def is_loaded() -> bool:
    """Return whether `library` has run in this process."""
    return library.cache_info().currsize > 0


def _compiler_path() -> str | None:
    if os.environ.get("DARKLENS_KERNELS") == "0" or not sys.platform.startswith("linux"):
        return None
    return compiler(["g++"]) if shares_openmp() else None


def shares_openmp() -> bool:
    """Return whether PyTorch has loaded GNU's OpenMP library, which compiled code can then use.

    A second library would have its own threads, and together they would outnumber the cores.
    """
    return sys.platform.startswith("linux") and hasattr(ctypes.CDLL(None), "GOMP_parallel")


def cache_folder() -> Path:
    """Return the cache folder of the compiled kernels."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "darklens"


def _loaded(compiler_path: str, folder: Path) -> ctypes.CDLL:
    return load_cached(_path(compiler_path, folder), lambda target: _build(compiler_path, target))


def load_cached(path: Path, build: Callable[[Path], None]) -> ctypes.CDLL:
    """Load a library from the cache, built where it is missing or damaged, or where no folder is safe to use.

    Args:
        path: Its file in the cache.
        build: Builds it at a path, with its digest at the end (`compile_library`).
    """
    folder = path.parent
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not is_private(folder):
            raise InputError(f"{folder} belongs to another user or can be written by others")
        if not (is_private(path) and _is_intact(path)):
            if path.is_symlink():  # `atomic_path` would replace the file that it leads to
                path.unlink()
            with atomic_path(path) as temporary:
                build(temporary)
            path.chmod(0o644)
        return ctypes.CDLL(str(path))
    except (OSError, InputError):  # no folder that is safe to use, or a read-only or full disk
        with tempfile.TemporaryDirectory() as temporary_folder:
            path = Path(temporary_folder) / path.name
            build(path)
            return ctypes.CDLL(str(path))


def is_private(path: Path) -> bool:
    """Return whether only this user and root can have written a file or folder, which is no link.

    Loading a library executes its code. A folder of this user is closed to other writers, since some systems let the
    user's group write to new folders.
    """
    try:
        status = path.lstat()
    except OSError:
        return False
    if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and status.st_mode & 0o022:
        path.chmod(status.st_mode & 0o755)
        status = path.lstat()
        for library_file in (*path.glob("kernels-*.so"), *path.glob("scene-*.so")):  # others may have placed them
            library_file.unlink()
    is_plain = stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)
    return is_plain and status.st_uid in (os.geteuid(), 0) and not status.st_mode & 0o022


def _path(compiler_path: str, folder: Path) -> Path:
    return folder / f"kernels-{_name(compiler_path)}.so"


def _name(compiler_path: str) -> str:
    """Return a digest of sources and target."""
    parts = [target_of(compiler_path), *(path.read_bytes() for path in _sources())]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def target_of(compiler_path: str) -> bytes:
    """Return the version of a compiler and the processor that it detects.

    They belong to the name of a cached library, since the computers of a cluster may share the folder.
    """
    version, processor = ["--version"], [*_FLAGS, "-Q", "--help=target"]
    return b"\0".join(output_of(compiler_path, *options) for options in (version, processor))


def _sources() -> list[Path]:
    return sorted(path for path in _SOURCE.iterdir() if path.suffix in {".cpp", ".h"})


def output_of(*command: str) -> bytes:
    """Return the output of a command; raise SubprocessError if it fails."""
    return subprocess.run(command, check=True, capture_output=True, timeout=_TIMEOUT).stdout


def _build(compiler_path: str, target: Path) -> None:
    # Linked without -fopenmp, so that its functions resolve to the library that PyTorch has loaded.
    compile_library(compiler_path, [*_FLAGS, f"-I{_SOURCE}"], (_SOURCE / "kernels.cpp").read_text(), target)


def compile_library(compiler_path: str, flags: Sequence[str], code: str, target: Path) -> None:
    """Compile C++ code to a shared library, followed by its digest."""
    with tempfile.TemporaryDirectory() as folder:
        source, objects = Path(folder) / "code.cpp", Path(folder) / "code.o"
        source.write_text(code)
        output_of(compiler_path, *flags, "-c", str(source), "-o", str(objects))
        output_of(compiler_path, "-shared", str(objects), "-o", str(target))
    content = target.read_bytes()
    target.write_bytes(content + hashlib.sha256(content).digest())  # the loader ignores bytes after the code


def _is_intact(path: Path) -> bool:
    """Return whether a file matches its digest: loading a truncated library would end the process."""
    try:
        content = path.read_bytes()
    except OSError:
        return False
    return hashlib.sha256(content[:-_DIGEST]).digest() == content[-_DIGEST:]
