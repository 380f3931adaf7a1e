"""Expands arguments of the command line to image files: folders, patterns, lists and standard input."""

import glob
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from darklens.data.image_stacks import images_of, location
from darklens.data.readers import MEASUREMENTS, SUFFIXES
from darklens.data.readers.roles import role_in_folder
from darklens.errors import InputError
from darklens.files import decode_text

_STANDARD_INPUT = ("-", "@-")
_MAX_LIST_BYTES = 100_000_000


def find_images(arguments: Sequence[Path | str]) -> list[Path]:
    """Return the files that the arguments name.

    A folder means all files in it and its subfolders with the suffix of an image. Links to folders are not
    followed. PNG and TIFF files next to other image files are skipped as previews, and so are the noise map, PSF, mask
    and exposure map of an observation (`OBSERVATION_FILES`) next to an image.
    `*`, `?`, `[...]` and `**` are patterns. `@list.txt` is a text file with one argument per line, and `-` or `@-`
    means such lines on standard input; a line that starts with `#` is a comment. An existing file with such a name
    takes precedence. A stack of several images (`darklens.data.image_stacks`) means all its images, `FILE#i`.

    Raises:
        InputError: If a folder or list is empty, no file matches a pattern, or none of the files exists.
    """
    paths = list(expand(arguments, _inside))
    if not any(os.path.lexists(location(path)[0]) for path in paths):
        raise InputError(f"{paths[0] if paths else 'The list of files'}: no such file or folder.")
    return [label for path in paths for label in images_of(path)]


def expand(arguments: Sequence[Path | str], in_folder: Callable[[str], Iterable[Path]]) -> Iterator[Path]:
    """Yield the paths that arguments name, as `find_images`, with those of a folder from `in_folder`.

    Raises:
        InputError: If a list is empty, or no file matches a pattern.
    """
    for argument in arguments:
        yield from _files(str(argument), in_folder, in_list=False)


def is_listing(argument: Path) -> bool:
    """Return whether an argument is a pattern, a list or standard input instead of a path."""
    return not _exists(str(argument)) and (
        str(argument) == "-" or str(argument).startswith("@") or glob.has_magic(str(argument))
    )


def _files(argument: str, in_folder: Callable[[str], Iterable[Path]], *, in_list: bool) -> Iterator[Path]:
    if os.path.isdir(argument):
        yield from in_folder(argument)
    elif _exists(argument):
        yield Path(argument)
    elif argument in _STANDARD_INPUT and not in_list:
        yield from _lines(_standard_input(), "Standard input", in_folder)
    elif argument.startswith("@") and not in_list:
        yield from _lines(_text(Path(argument[1:])), argument[1:], in_folder)
    elif glob.has_magic(argument):
        matches = _matches(argument)
        if not matches:
            raise InputError(f"{argument}: no file matches this pattern.")
        for path in matches:
            if not os.path.isdir(path):
                yield Path(path)
            elif "**" not in argument:
                yield from in_folder(path)
    else:
        yield Path(argument)


def images_in(folder: Path | str) -> list[Path]:
    """Return the image files in a folder and its subfolders, sorted; PNG and TIFF only where there are no others."""
    paths: list[Path] = []
    for parent, _, names in os.walk(folder):
        measurements = [name for name in names if name.lower().endswith(MEASUREMENTS)]
        images = measurements or [name for name in names if name.lower().endswith(SUFFIXES)]
        paths += [Path(parent) / name for name in images]
    return sorted(paths)


def _matches(pattern: str) -> list[str]:
    """Return the paths that match a pattern; `**` does not follow links to folders, which may form loops."""
    if "**" not in pattern:
        return sorted(glob.glob(pattern))
    parts = Path(pattern).parts
    first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    start, rest = Path(*parts[:first]), "/".join(parts[first:])
    rests = [rest, f"{rest}/*"] if parts[-1] == "**" else [rest]  # before Python 3.13, ** alone matches only folders
    try:
        paths = {path for pattern in rests for path in start.glob(pattern)}
    except (OSError, ValueError):
        return []
    return sorted(
        str(path) for path in paths if not any(p.startswith(".") and p != ".." for p in path.relative_to(start).parts)
    )


def _inside(folder: str) -> list[Path]:
    paths = images_in(folder)
    with_image = {path.parent for path in paths if role_in_folder(path.name) in (None, "science")}
    paths = [p for p in paths if p.parent not in with_image or role_in_folder(p.name) in (None, "science")]
    if not paths:
        raise InputError(f"{folder} contains no images ({', '.join(SUFFIXES)}).")
    return paths


def _lines(text: str, name: str, in_folder: Callable[[str], Iterable[Path]]) -> Iterator[Path]:
    lines = [line if _exists(line) else line.strip() for line in re.split(r"\r\n|\r|\n", text)]
    arguments = [line for line in lines if line and (not line.startswith("#") or _exists(line))]
    if not arguments:
        raise InputError(f"{name}: lists no files; write one path per line.")
    for argument in arguments:
        yield from _files(argument, in_folder, in_list=True)


def _text(path: Path) -> str:
    try:
        if not path.is_file():
            raise InputError(f"{path}: no such list of files.")
        with path.open("rb") as stream:
            return decode_text(stream.read(_MAX_LIST_BYTES))
    except (OSError, ValueError):
        raise InputError(f"{path}: is not a text file with one path per line.") from None


def _standard_input() -> str:
    binary = getattr(sys.stdin, "buffer", None)
    if binary is None:
        return sys.stdin.read(_MAX_LIST_BYTES)
    try:
        return decode_text(binary.read(_MAX_LIST_BYTES))
    except ValueError:
        raise InputError("Standard input: is not a text with one path per line.") from None


def _exists(argument: str) -> bool:
    try:
        return os.path.lexists(argument)
    except ValueError:  # the path contains a null byte
        return False
