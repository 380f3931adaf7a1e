"""Fits of a scene to many observations: a table with one row each, bad ones included, maps and figures."""

import base64
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

import darklens
from darklens import executors
from darklens.data.store import prepare_folder
from darklens.errors import ConfigError, DarklensError, FullDiskError
from darklens.files import atomic_path, csv_line, locked, write_text, writing
from darklens.fit.scene_figure import arrays, draw
from darklens.fit.scene_fit import FitResult, fit
from darklens.fit.scene_starts import main_lens
from darklens.memory import keep_freed_memory
from darklens.scene.compiled import compile_scenes
from darklens.scene.observation_files import Inputs, read_observation
from darklens.scene.observation_paths import files_of
from darklens.scene.profiles import EPL, SIE, SIS, Multipole, Shear
from darklens.scene.scene import Scene
from darklens.scene.specification import SceneSpecification

_MEASURES = ("slope", "q", "phi", "gamma1", "gamma2", "centre_x", "centre_y", "a3", "a4")
COLUMNS = (
    *("path", "status", "message", "converged", "chi2_per_pixel", "theta_E", "theta_E_error"),
    *_MEASURES,
    "seconds",
)
_ISOTHERMAL = 2.0

Estimate = tuple[float, float]
"""Value and standard deviation."""
Covariance = Float[np.ndarray, "2 2"]


@dataclass(frozen=True)
class FitRow:
    """The row of an observation.

    Attributes:
        label: Path of the observation.
        columns: Text by column; empty for a bad one.
        message: Why it could not be fitted; the warnings of a fit are in `columns`.
        is_unexpected: Whether the reason is an error in darklens.
        figure: PNG for a report, in base64; empty if there is no report, or no fit.
    """

    label: str
    columns: Mapping[str, str]
    message: str = ""
    is_unexpected: bool = False
    figure: str = ""


Report = Callable[[Sequence[FitRow]], None]
"""Writes a report from the rows of a table, in their order."""


def require_lens(scene: Scene) -> None:
    """Raise ConfigError unless the scene has a main lens, a source and a free parameter."""
    if not any(isinstance(profile, EPL | SIE | SIS) for profile in scene.profiles.values()):
        raise ConfigError("The scene has no main lens; mass needs a component of kind epl, sie or sis.")
    if not scene.source.profiles:
        raise ConfigError("The scene has no source; add a component to source.")
    if not scene.names:
        raise ConfigError("The scene has no free parameter; set one to `free`.")


def measures(result: FitResult) -> dict[str, Estimate]:
    """Return the properties of the main lens with standard deviations; NaN for those that the scene does not have.

    `theta_E` (arcsec) is the effective Einstein radius: that of the circle with the mass of the ellipse inside which
    the mean convergence of the main lens is one. `q` is the axis ratio, `phi` the position angle of the major axis in
    degrees from x towards y, from -90 to 90. `a3` and `a4` are the amplitudes of the multipoles divided by theta_E.
    """
    scene = result.scene
    lens = main_lens(scene)
    missing = (math.nan, math.nan)

    def parameter(component: str, symbol: str) -> Estimate:
        error = float(np.sqrt(max(covariance(component, symbol)[0, 0], 0.0)))
        return scene.values_of(component, result.parameters)[symbol], error

    def covariance(component: str, *symbols: str) -> Float[np.ndarray, "k k"]:
        """Return the covariance of parameters of a component; zero for fixed ones."""
        free = [scene.free_parameter(f"{component}.{symbol}") for symbol in symbols]
        rows = [scene.names.index(name) if name else None for name in free]
        entries = [[0.0 if None in (i, j) else result.covariance[i, j] for j in rows] for i in rows]
        return np.array(entries)

    def vector(component: str, *symbols: str) -> tuple[tuple[float, float], Covariance]:
        values = scene.values_of(component, result.parameters)
        return (values[symbols[0]], values[symbols[1]]), covariance(component, *symbols)

    symbols = scene.profiles[lens].parameters
    estimates = {symbol: parameter(lens, symbol) for symbol in ("theta_E", "centre_x", "centre_y")}
    estimates["slope"] = parameter(lens, "slope") if "slope" in symbols else (_ISOTHERMAL, 0.0)
    if "e1" in symbols:
        estimates["q"], estimates["phi"] = axis_ratio(*vector(lens, "e1", "e2"))
    else:
        estimates["q"], estimates["phi"] = (1.0, 0.0), missing
    shear = next((name for name, profile in scene.profiles.items() if isinstance(profile, Shear)), None)
    for symbol in ("gamma1", "gamma2"):
        estimates[symbol] = missing if shear is None else parameter(shear, symbol)
    theta_E = estimates["theta_E"]
    for m in (3, 4):
        name = next((n for n, p in scene.profiles.items() if isinstance(p, Multipole) and p.m == m), None)
        estimates[f"a{m}"] = missing if name is None else _ratio(*vector(name, "a", "b"), theta_E)
    return {"theta_E": theta_E, **{name: estimates[name] for name in _MEASURES}}


def axis_ratio(ellipticity: tuple[float, float], covariance: Covariance) -> tuple[Estimate, Estimate]:
    """Return axis ratio, and position angle of the major axis (degrees from x to y), of an ellipticity (e1, e2)."""
    e, error, across = _length(ellipticity, covariance)
    if e == 0:
        return (1.0, 2 * error), (0.0, 90.0)
    q, phi = (1 - e) / (1 + e), math.degrees(math.atan2(ellipticity[1], ellipticity[0])) / 2
    return (q, 2 * error / (1 + e) ** 2), (phi, min(90.0, math.degrees(across / e) / 2))


def _ratio(amplitudes: tuple[float, float], covariance: Covariance, theta_E: Estimate) -> Estimate:
    amplitude, error, _ = _length(amplitudes, covariance)
    value = amplitude / theta_E[0]
    return value, math.hypot(error, value * theta_E[1]) / theta_E[0]


def _length(vector: tuple[float, float], covariance: Covariance) -> tuple[float, float, float]:
    """Return the length of a vector, and the standard deviations along and across it."""
    length = math.hypot(*vector)
    if length == 0:
        error = math.sqrt(max(float(covariance.diagonal().max()), 0.0))
        return 0.0, error, error
    along = np.array(vector) / length
    across = np.array([-along[1], along[0]])
    first, second = (math.sqrt(max(float(d @ covariance @ d), 0.0)) for d in (along, across))
    return length, first, second


def columns_of(scene: Scene) -> list[str]:
    """Return the names of the columns of a table of fits."""
    parameters = [column for name in scene.names for column in (name, f"{name}_error")]
    errors = [f"{name}_error" for name in _MEASURES]
    return [*COLUMNS, *errors, *parameters, *scene.amplitude_names, "chi2_excess", "at_bounds", "changes"]


def row_of(result: FitResult) -> dict[str, str]:
    """Return the columns of a fit, but `path` and `status`."""
    columns = {
        "message": "; ".join(result.warnings),
        "converged": "yes" if result.converged else "no",
        "chi2_per_pixel": _text(result.chi2_per_pixel),
        "seconds": f"{result.seconds:.3g}",
        "chi2_excess": _text(result.chi2_excess),
        "at_bounds": "; ".join(result.at_bounds),
        "changes": "; ".join(result.observation.changes),
    }
    estimates = measures(result) | {name: (v, result.errors[name]) for name, v in result.parameters.items()}
    for name, (value, error) in estimates.items():
        columns[name], columns[f"{name}_error"] = _text(value), _text(error)
    return columns | {name: _text(value) for name, value in result.amplitudes.items()}


def _text(value: float) -> str:
    return f"{value:.7g}" if math.isfinite(value) else ""


def fit_table(
    labels: Sequence[str],
    specification: SceneSpecification,
    inputs: Inputs,
    out: Path,
    *,
    maps: Mapping[str, Path] | None = None,
    seed: int = 0,
    compiled: bool | None = False,
    workers: int = 1,
    advance: Callable[[int], None] = lambda _: None,
    report: Report | None = None,
) -> list[FitRow]:
    """Fit a scene to observations, write the table, and return its rows; a bad observation becomes an error row.

    The same call continues an interrupted run.

    Args:
        labels: Observations, from `find_observations`.
        specification: The scene.
        inputs: How the observations are read.
        out: CSV table to write.
        maps: For each label, the path without suffix of its PNG and npz.
        seed: Seed of the random starts.
        compiled: Whether to compile the scene first (`darklens.scene.compiled`); None: if that is possible.
        workers: Number of processes.
        advance: Called with the number of observations just fitted.
        report: Writes a report from the rows, which then have figures.

    Raises:
        InputError: If a file cannot be written, or the folder of the maps is not empty.
    """
    scene = specification.scene()
    require_lens(scene)
    compiled = compile_scenes([scene], compiled)
    return write_table(
        labels,
        columns_of(scene),
        out,
        fit_one,
        (specification.model_dump_json(), inputs, seed, compiled),
        maps=maps,
        workers=workers,
        advance=advance,
        report=report,
    )


def write_table(
    labels: Sequence[str],
    names: Sequence[str],
    out: Path,
    task: Callable[..., tuple[int, FitRow]],
    arguments: tuple[Any, ...],
    *,
    maps: Mapping[str, Path] | None = None,
    workers: int = 1,
    advance: Callable[[int], None] = lambda _: None,
    report: Report | None = None,
) -> list[FitRow]:
    """Compute the rows of a table in parallel, write it, and return the rows; see `fit_table`.

    Args:
        labels: Observations.
        names: Columns of the table.
        out: CSV table to write.
        task: Called in the processes with number, label, path of the maps or None, whether to draw the figure of the
            report, and `arguments`.
        arguments: Further arguments of the task.
        maps: For each label, the path without suffix of its maps.
        workers: Number of processes.
        advance: Called with the number of rows just computed.
        report: Writes a report from the rows, which then have figures.

    Raises:
        InputError: If a file cannot be written, or the folder of the maps is not empty.
    """
    arguments, maps = (report is not None, *arguments), maps or {}
    with _journal(out, _digest(labels, arguments, maps), maps) as journal:
        rows = journal.rows()
        if rows is None:
            for folder in {path.parent for path in maps.values()}:
                prepare_folder(folder)
            rows = journal.start()
        rows = {n: row for n, row in rows.items() if row.message or _has_maps(maps.get(row.label))}
        advance(len(rows))
        missing = [number for number in range(len(labels)) if number not in rows]
        tasks = ((n, labels[n], maps.get(labels[n]), *arguments) for n in missing)
        with executors.local(min(workers, len(missing))) as pool:
            for number, row in executors.as_finished(pool, task, tasks):
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


def map_files(path: Path) -> tuple[Path, Path]:
    """Return the npz and PNG of the maps of an observation from their path without suffix."""
    return path.with_name(f"{path.name}.npz"), path.with_name(f"{path.name}.png")


def _has_maps(path: Path | None) -> bool:
    """Return whether the maps at a path without suffix are complete, or there are to be none."""
    return path is None or all(file.is_file() for file in map_files(path))


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
            if not any(file.exists() for path in maps.values() for file in map_files(path)):
                journal.remove_if_empty()


class _Journal:
    """The finished rows of a table, from which an interrupted run continues: OUT.unfinished, lines of JSON.

    Args:
        path: The file.
        digest: Of all inputs of the run; rows of other runs are discarded.
    """

    def __init__(self, path: Path, digest: str) -> None:
        self._path, self._head = path, f"{digest}\n".encode()

    def rows(self) -> dict[int, FitRow] | None:
        """Return the rows of an interrupted run; None if there was none, or one with other inputs."""
        rows: dict[int, FitRow] = {}
        try:
            content = self._path.read_bytes()
            head, *lines = content.splitlines(keepends=True)
            if head != self._head:
                return None
            n_bytes = len(head)
            with suppress(ValueError, TypeError):  # the last line is incomplete
                for line in lines:
                    number, fields = json.loads(line)
                    rows[int(number)] = FitRow(**fields)
                    n_bytes += len(line)
            os.truncate(self._path, n_bytes)
        except (OSError, ValueError):  # missing or empty
            return None
        return rows

    def start(self) -> dict[int, FitRow]:
        """Discard the rows of another run, and return those of the new one: none."""
        with writing(self._path):
            self._path.write_bytes(self._head)
        return {}

    def add(self, number: int, row: FitRow) -> None:
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


def _line(item: tuple[int, FitRow]) -> str:
    return json.dumps([item[0], asdict(item[1])]) + "\n"


def _digest(labels: Sequence[str], arguments: tuple[Any, ...], maps: Mapping[str, Path]) -> str:
    """Return a digest of all inputs of a run, with sizes and modification times of the files, and of its maps."""
    digest = hashlib.sha256(repr((darklens.__version__, arguments)).encode())
    for path in maps.values():
        digest.update(os.fsencode(path) + b"\0")
    for label in labels:
        digest.update(os.fsencode(label))
        for file in files_of(label):
            try:
                status = file.stat()
                digest.update(f"{status.st_size},{status.st_mtime_ns};".encode())
            except (OSError, ValueError):
                digest.update(b"-;")
    return digest.hexdigest()


def fit_one(
    number: int,
    label: str,
    maps: Path | None,
    with_figure: bool,
    specification: str,
    inputs: Inputs,
    seed: int,
    compiled: bool,
) -> tuple[int, FitRow]:
    """Fit one observation, on one thread, write its maps, and return its number and row."""
    scene = SceneSpecification.model_validate_json(specification).scene()

    def row() -> FitRow:
        result = fit(read_observation(label, inputs), scene, seed=seed, compiled=compiled)
        title = Path(label).name
        if maps is not None:
            _write_maps(result, maps, title)
        figure = draw(result, title, compact=True) if with_figure else b""
        return FitRow(label, row_of(result), figure=base64.b64encode(figure).decode())

    return number, computed_row(label, row)


def computed_row(label: str, row: Callable[[], FitRow]) -> FitRow:
    """Return the row of an observation, computed on one thread; an error becomes its message.

    Raises:
        FullDiskError: If the disk is full.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    keep_freed_memory()
    try:
        return row()
    except FullDiskError:
        raise
    except DarklensError as error:
        return FitRow(label, {}, " ".join(str(error).split()))
    except Exception as error:  # one lens must not end a long batch
        text = " ".join(str(error).split())
        message = f"{label}: unexpected {type(error).__name__}: {text}; please report it."
        return FitRow(label, {}, message, is_unexpected=True)
    finally:
        torch.set_num_threads(threads)


def _write_maps(result: FitResult, path: Path, title: str) -> None:
    planes: dict[str, Any] = arrays(result)
    npz, png = map_files(path)
    with atomic_path(npz) as temporary:
        np.savez(temporary, **planes)
    with atomic_path(png) as temporary:
        temporary.write_bytes(draw(result, title))
