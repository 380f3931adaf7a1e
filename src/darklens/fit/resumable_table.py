"""Tables of results for many observations: one row each, bad ones included, maps and figures; resumable.

OUT.csv                one row for each observation, in their order
OUT.csv.unfinished     the finished rows of an interrupted run, lines of JSON
MAPS.npz, MAPS.png     arrays and figure of an observation
"""

import base64
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

import darklens
from darklens import executors
from darklens.data.store import prepare_folder
from darklens.errors import DarklensError, FullDiskError
from darklens.files import atomic_path, change_stamp, csv_line, locked, write_bytes, write_text, writing
from darklens.memory import keep_freed_memory
from darklens.scene.observation_paths import files_of


@dataclass(frozen=True)
class Row:
    """The row of an observation.

    Attributes:
        label: Path of the observation.
        columns: Text by column; empty for a bad one.
        message: Why there is no result; the warnings of a fit are in `columns`.
        is_unexpected: Whether the reason is an error in darklens.
        figure: PNG for a report, in base64; empty if there is no report, or no fit.
    """

    label: str
    columns: Mapping[str, str]
    message: str = ""
    is_unexpected: bool = False
    figure: str = ""


Report = Callable[[Sequence[Row]], None]
"""Writes a report from the rows of a table, in their order."""


class Drawing(Protocol):
    """Draws the figure of an observation."""

    def __call__(self, title: str, *, compact: bool = False) -> bytes:
        """Return a PNG; a small one for a report if `compact`."""


class Entry(NamedTuple):
    """The result for one observation.

    Attributes:
        columns: Text by column, without `path` and `status`.
        arrays: Computes the arrays of the npz file.
        draw: Draws the figure.
    """

    columns: dict[str, str]
    arrays: Callable[[], dict[str, Any]]
    draw: Drawing


class Computation(NamedTuple):
    """What a table contains.

    Attributes:
        names: Columns of the table.
        compute: Computes one observation, in a process of its own, from its label and `arguments`.
        arguments: Further arguments.
    """

    names: Sequence[str]
    compute: Callable[..., Entry]
    arguments: tuple[Any, ...]


def write_table(
    labels: Sequence[str],
    out: Path,
    computation: Computation,
    *,
    maps: Mapping[str, Path] | None = None,
    workers: int = 1,
    advance: Callable[[int], None] = lambda _: None,
    report: Report | None = None,
) -> list[Row]:
    """Compute the rows of a table in parallel, write it, and return them; the same call continues an interrupted run.

    Args:
        labels: Observations, from `find_observations`.
        out: CSV table to write.
        computation: Columns, and how to compute them; a bad observation gets an error row.
        maps: For each label, the path without suffix of its PNG and npz.
        workers: Number of processes.
        advance: Called with the number of rows just computed.
        report: Writes a report from the rows, which then have figures.

    Raises:
        InputError: If a file cannot be written, or the folder of the maps is not empty.
    """
    maps, (names, compute, arguments) = maps or {}, computation
    with _journal(out, _digest(labels, (report is not None, *arguments), maps), maps) as journal:
        rows = journal.rows()
        if rows is None:
            for folder in {path.parent for path in maps.values()}:
                prepare_folder(folder)
            rows = journal.start()
        rows = {n: row for n, row in rows.items() if row.message or _has_maps(maps.get(row.label))}
        advance(len(rows))
        missing = [number for number in range(len(labels)) if number not in rows]
        tasks = ((n, labels[n], maps.get(labels[n]), report is not None, compute, arguments) for n in missing)
        with executors.local(min(workers, len(missing))) as pool:
            for number, row in executors.as_finished(pool, _computed_row, tasks):
                rows[number] = row
                journal.add(number, row)
                advance(1)
        lines = [csv_line(names)]
        for number in range(len(labels)):
            row = rows[number]
            status = "error" if row.message else "ok"
            cells = {"path": row.label, "status": status, "message": row.message, **row.columns}
            lines.append(csv_line([cells.get(name, "") for name in names]))
        write_text(out, "".join(lines))
        in_order = [rows[number] for number in range(len(labels))]
        if report is not None:
            report(in_order)
        journal.remove()
    return in_order


def _map_files(path: Path) -> tuple[Path, Path]:
    """Return the npz and PNG of the maps of an observation from their path without suffix."""
    return path.with_name(f"{path.name}.npz"), path.with_name(f"{path.name}.png")


def _has_maps(path: Path | None) -> bool:
    """Return whether the maps at a path without suffix are complete, or there are to be none."""
    return path is None or all(file.is_file() for file in _map_files(path))


@contextmanager
def _journal(out: Path, digest: str, maps: Mapping[str, Path]) -> Iterator["_Journal"]:
    """Open the journal of a table, which no other process may write; it stays if rows or maps are finished."""
    path = unfinished(out)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path, target=out):
        journal = _Journal(path, digest)
        try:
            yield journal
        finally:
            if not any(file.exists() for path in maps.values() for file in _map_files(path)):
                journal.remove_if_empty()


class _Journal:
    """The finished rows of a table, from which an interrupted run continues: OUT.unfinished, lines of JSON.

    Args:
        path: The file.
        digest: Of all inputs of the run; rows of other runs are discarded.
    """

    def __init__(self, path: Path, digest: str) -> None:
        self._path, self._head = path, f"{digest}\n".encode()

    def rows(self) -> dict[int, Row] | None:
        """Return the rows of an interrupted run; None if there was none, or one with other inputs."""
        rows: dict[int, Row] = {}
        try:
            content = self._path.read_bytes()
            head, *lines = content.splitlines(keepends=True)
            if head != self._head:
                return None
            n_bytes = len(head)
            with suppress(ValueError, TypeError):  # the last line is incomplete
                for line in lines:
                    number, fields = json.loads(line)
                    rows[int(number)] = Row(**fields)
                    n_bytes += len(line)
            os.truncate(self._path, n_bytes)
        except (OSError, ValueError):  # missing or empty
            return None
        return rows

    def start(self) -> dict[int, Row]:
        """Discard the rows of another run, and return those of the new one: none."""
        with writing(self._path):
            self._path.write_bytes(self._head)
        return {}

    def add(self, number: int, row: Row) -> None:
        """Append a row."""
        with writing(self._path), self._path.open("a", encoding="utf-8") as stream:
            stream.write(_line((number, row)))

    def remove(self) -> None:
        """Remove the file."""
        self._path.unlink(missing_ok=True)

    def remove_if_empty(self) -> None:
        """Remove the file if it has no rows."""
        if self._path.exists() and self._path.stat().st_size <= len(self._head):
            self.remove()


def unfinished(out: Path) -> Path:
    """Return the file of the finished rows of a table."""
    return out.with_name(f"{out.name}.unfinished")


def _line(item: tuple[int, Row]) -> str:
    return json.dumps([item[0], asdict(item[1])]) + "\n"


def _digest(labels: Sequence[str], arguments: tuple[Any, ...], maps: Mapping[str, Path]) -> str:
    """Return a digest of all inputs of a run, with sizes and modification times of the files, and of its maps."""
    digest = hashlib.sha256(repr((darklens.__version__, arguments)).encode())
    for path in maps.values():
        digest.update(os.fsencode(path) + b"\0")
    for label in labels:
        digest.update(os.fsencode(label))
        for file in files_of(label):
            digest.update(change_stamp(file))
    return digest.hexdigest()


def _computed_row(
    number: int,
    label: str,
    maps: Path | None,
    with_figure: bool,
    compute: Callable[..., Entry],
    arguments: tuple[Any, ...],
) -> tuple[int, Row]:
    """Compute one observation, on one thread, write its maps, and return its number and row.

    Raises:
        FullDiskError: If the disk is full. Any other error becomes the message of the row.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    keep_freed_memory()
    try:
        entry, title = compute(label, *arguments), Path(label).name
        if maps is not None:
            _write_maps(entry, maps, title)
        figure = entry.draw(title, compact=True) if with_figure else b""
        return number, Row(label, entry.columns, figure=base64.b64encode(figure).decode())
    except FullDiskError:
        raise
    except DarklensError as error:
        return number, Row(label, {}, " ".join(str(error).split()))
    except Exception as error:  # one lens must not end a long batch
        text = " ".join(str(error).split())
        message = f"{label}: unexpected {type(error).__name__}: {text}; please report it."
        return number, Row(label, {}, message, is_unexpected=True)
    finally:
        torch.set_num_threads(threads)


def _write_maps(entry: Entry, path: Path, title: str) -> None:
    npz, png = _map_files(path)
    with atomic_path(npz) as temporary:
        np.savez(temporary, **entry.arrays())
    write_bytes(png, entry.draw(title))
