"""Which files the words of a command line mean."""

import glob
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from darklens.data.readers import MEASUREMENTS, SUFFIXES
from darklens.errors import InputError

_STANDARD_INPUT = ("-", "@-")
_MAX_LIST_BYTES = 100_000_000


def find_images(arguments: Sequence[Path | str]) -> list[Path]:
    """Return the files that the arguments name.

    A folder stands for the image files in it and below, told by their suffix; links to folders are not followed, and
    pictures (PNG, TIFF) that lie beside measurements are left out.
    `*`, `?`, `[...]` and `**` are patterns, `@list.txt` is a text file with one argument a line, and `-` or `@-` stands
    for such lines on standard input. A file that exists under such a name is that file.

    Raises:
        InputError: If a folder or list holds nothing, a pattern fits nothing, or no file exists at all.
    """
    found = [path for argument in arguments for path in _files(str(argument), in_list=False)]
    if not any(os.path.lexists(path) for path in found):
        raise InputError(f"{found[0] if found else 'The list of files'}: there is no such file or folder.")
    return found


def is_listing(argument: Path) -> bool:
    """Tell whether an argument names files in another way than by their path."""
    return not _exists(str(argument)) and (
        str(argument) == "-" or str(argument).startswith("@") or glob.has_magic(str(argument))
    )


def _files(argument: str, *, in_list: bool) -> Iterator[Path]:
    if os.path.isdir(argument):
        yield from _inside(argument)
    elif _exists(argument):
        yield Path(argument)
    elif argument in _STANDARD_INPUT and not in_list:
        yield from _lines(sys.stdin.read(_MAX_LIST_BYTES), "Standard input")
    elif argument.startswith("@") and not in_list:
        yield from _lines(_text(Path(argument[1:])), argument[1:])
    elif glob.has_magic(argument):
        fitting = _fitting(argument)
        if not fitting:
            raise InputError(f"{argument}: no file fits this pattern.")
        for path in fitting:
            if not os.path.isdir(path):
                yield Path(path)
            elif "**" not in argument:
                yield from _inside(path)
    else:
        yield Path(argument)


def images_in(folder: Path | str) -> list[Path]:
    """Return the image files in a folder and below, in the order of their names; pictures only without measurements."""
    found: list[Path] = []
    for where, _, names in os.walk(folder):
        measured = [name for name in names if name.lower().endswith(MEASUREMENTS)]
        chosen = measured or [name for name in names if name.lower().endswith(SUFFIXES)]
        found += [Path(where) / name for name in chosen]
    return sorted(found)


def _fitting(pattern: str) -> list[str]:
    """Return the paths that fit a pattern; `**` does not follow links to folders, or a loop would never end."""
    if "**" not in pattern:
        return sorted(glob.glob(pattern))
    parts = Path(pattern).parts
    first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    start, rest = Path(*parts[:first]), "/".join(parts[first:])
    rests = [rest, f"{rest}/*"] if parts[-1] == "**" else [rest]  # ** alone is of folders before Python 3.13
    try:
        found = {path for pattern in rests for path in start.glob(pattern)}
    except (OSError, ValueError):
        return []
    return sorted(
        str(path) for path in found if not any(p.startswith(".") and p != ".." for p in path.relative_to(start).parts)
    )


def _inside(folder: str) -> list[Path]:
    found = images_in(folder)
    if not found:
        raise InputError(f"{folder} holds no images ({', '.join(SUFFIXES)}).")
    return found


def _lines(text: str, name: str) -> Iterator[Path]:
    lines = [line.strip() for line in text.splitlines()]
    arguments = [line for line in lines if line and not line.startswith("#")]
    if not arguments:
        raise InputError(f"{name}: lists no files; write one path a line.")
    for argument in arguments:
        yield from _files(argument, in_list=True)


def _text(path: Path) -> str:
    try:
        if not path.is_file():
            raise InputError(f"{path}: there is no such list of files.")
        with path.open(encoding="utf-8") as stream:
            return stream.read(_MAX_LIST_BYTES)
    except (OSError, ValueError):
        raise InputError(f"{path}: is no text file with one path a line.") from None


def _exists(argument: str) -> bool:
    try:
        return os.path.lexists(argument)
    except ValueError:  # a zero byte
        return False
