"""Fits of a scene to many observations: the columns of their table."""

import math
from functools import partial

from darklens.errors import ConfigError
from darklens.fit.fit_result import FitResult
from darklens.fit.lens_measures import MEASURES, measures
from darklens.fit.resumable_table import Computation, Entry
from darklens.fit.scene_figure import arrays, draw
from darklens.fit.scene_fit import fit
from darklens.fit.source_reconstruction import reconstruct_source
from darklens.scene.compiled import compile_scenes
from darklens.scene.mass_profiles import EPL, SIE, SIS
from darklens.scene.observation_files import Inputs, read_observation
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
    return columns | {name: _text(value) for name, value in result.listed_amplitudes.items()}


def _text(value: float) -> str:
    return f"{value:.7g}" if math.isfinite(value) else ""


def fit_computation(
    specification: SceneSpecification,
    inputs: Inputs,
    *,
    seed: int,
    compiled: bool | None,
    source_grid: int | None = None,
) -> Computation:
    """Return how to compute a table of fits of a scene to observations.

    Args:
        specification: The scene.
        inputs: How the observations are read.
        seed: Seed of the random starts.
        compiled: Whether to compile the scene first (`darklens.scene.compiled`); None: if that is possible.
        source_grid: Number of nodes along a side of a grid on which the source is reconstructed; None for no grid.
    """
    require_lens(scene := specification.scene())
    arguments = (specification.model_dump_json(), inputs, seed, compile_scenes([scene], compiled), source_grid)
    return Computation(columns_of(scene if source_grid is None else without_source(scene)), fit_one, arguments)


def without_source(scene: Scene) -> Scene:
    """Return the scene whose parameters remain if the source is a grid."""
    return Scene(scene.mass, [], scene.lens_light)


def fit_one(
    label: str, specification: str, inputs: Inputs, seed: int, compiled: bool, source_grid: int | None
) -> Entry:
    """Fit one observation; `specification` is that of the scene, as JSON."""
    scene = SceneSpecification.model_validate_json(specification).scene()
    result = fit(read_observation(label, inputs), scene, seed=seed, compiled=compiled)
    if source_grid is not None:
        result = reconstruct_source(result, source_grid)
    return Entry(row_of(result), partial(arrays, result), partial(draw, result))
