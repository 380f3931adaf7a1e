"""Fits of a scene to many observations: the columns of their table."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from darklens.errors import ConfigError
from darklens.fit.lens_measures import MEASURES, measures
from darklens.fit.resumable_table import Entry, Report, Row, write_table
from darklens.fit.scene_figure import arrays, draw
from darklens.fit.scene_fit import FitResult, fit
from darklens.scene.compiled import compile_scenes
from darklens.scene.observation_files import Inputs, read_observation
from darklens.scene.profiles import EPL, SIE, SIS
from darklens.scene.scene import Scene
from darklens.scene.specification import SceneSpecification

COLUMNS = (
    *("path", "status", "message", "converged", "chi2_per_pixel", "theta_E", "theta_E_error"),
    *MEASURES,
    "seconds",
)


def require_lens(scene: Scene) -> None:
    """Raise ConfigError unless the scene has a main lens, a source and a free parameter."""
    if not any(isinstance(profile, EPL | SIE | SIS) for profile in scene.profiles.values()):
        raise ConfigError("The scene has no main lens; mass needs a component of kind epl, sie or sis.")
    if not scene.source.profiles:
        raise ConfigError("The scene has no source; add a component to source.")
    if not scene.names:
        raise ConfigError("The scene has no free parameter; set one to `free`.")


def columns_of(scene: Scene) -> list[str]:
    """Return the names of the columns of a table of fits."""
    parameters = [column for name in scene.names for column in (name, f"{name}_error")]
    errors = [f"{name}_error" for name in MEASURES]
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
) -> list[Row]:
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


def fit_one(label: str, specification: str, inputs: Inputs, seed: int, compiled: bool) -> Entry:
    """Fit one observation; `specification` is that of the scene, as JSON."""
    scene = SceneSpecification.model_validate_json(specification).scene()
    result = fit(read_observation(label, inputs), scene, seed=seed, compiled=compiled)
    return Entry(row_of(result), partial(arrays, result), partial(draw, result))
