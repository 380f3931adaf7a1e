"""Searches for perturbers in many observations: the columns of their table, and their arrays."""

import math
import time
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from darklens.fit import search_figure
from darklens.fit.false_alarms import false_alarm_threshold
from darklens.fit.perturber_profiles import PerturberKind, Redshifts
from darklens.fit.perturbers import SearchResult, find_perturbers, scenes_of_search
from darklens.fit.resumable_table import Computation, Entry
from darklens.fit.scene_fit import fit
from darklens.fit.scene_table import require_lens
from darklens.fit.source_reconstruction import reconstruct_source
from darklens.scene.compiled import compile_scenes
from darklens.scene.observation_files import Inputs, read_observation
from darklens.scene.specification import SceneSpecification

SEARCH_COLUMNS = (
    *("path", "status", "message", "detected", "delta_chi2", "threshold", "x", "y", "log10_mass", "log10_mass_error"),
    *("chi2_per_pixel", "chi2_per_pixel_smooth", "seconds"),
)
_PERTURBER_COLUMNS = ("delta_chi2", "x", "y", "log10_mass", "log10_mass_error")  # of each perturber
_FREE_COLUMNS = ("concentration", "concentration_error")


@dataclass(frozen=True)
class SearchOptions:
    """How to search.

    Attributes:
        perturber: As for `find_perturbers`.
        n_max: Maximum number of perturbers.
        redshifts: Redshifts, and the concentration of haloes.
        threshold: Threshold of delta chi2; None for the default.
        simulations: Number of simulated smooth lenses from which to compute the threshold of each lens, for a rate of
            false alarms of 10 %; None for none.
        seed: Seed of the random starts.
        compiled: Whether to compile the scenes first (`darklens.scene.compiled`); None: if that is possible.
        source_grid: Number of nodes along a side of a grid on which the source is reconstructed; None for no grid.
    """

    perturber: PerturberKind = "tnfw"
    n_max: int = 1
    redshifts: Redshifts = field(default_factory=Redshifts)
    threshold: float | None = None
    simulations: int | None = None
    seed: int = 0
    compiled: bool | None = False
    source_grid: int | None = None


def search_computation(specification: SceneSpecification, inputs: Inputs, options: SearchOptions) -> Computation:
    """Return how to compute a table of searches of observations for perturbers.

    Args:
        specification: The smooth scene.
        inputs: How the observations are read.
        options: How to search.
    """
    require_lens(scene := specification.scene())
    with_perturber = scenes_of_search(scene, options.perturber, options.redshifts)
    scenes = with_perturber if options.source_grid is None else [scene]  # scenes with a grid are not compiled
    options = replace(options, compiled=compile_scenes(scenes, options.compiled))
    columns = [*_PERTURBER_COLUMNS, *(_FREE_COLUMNS if options.perturber == "tnfw_free" else ())]
    names = [*SEARCH_COLUMNS, *columns[len(_PERTURBER_COLUMNS) :]]
    for number in range(1, options.n_max):
        names += [f"{name}_{number + 1}" for name in columns]
    return Computation(names, search_one, (specification.model_dump_json(), inputs, options))


def search_one(label: str, specification: str, inputs: Inputs, options: SearchOptions) -> Entry:
    """Search one observation; `specification` is that of the smooth scene, as JSON."""
    scene = SceneSpecification.model_validate_json(specification).scene()
    started = time.process_time()
    observation, threshold = read_observation(label, inputs), options.threshold
    result = fit(observation, scene, seed=options.seed, compiled=bool(options.compiled))
    if options.source_grid is not None:
        result = reconstruct_source(result, options.source_grid)
        scene = result.scene
    if options.simulations is not None:
        threshold = false_alarm_threshold(
            result,
            n=options.simulations,
            perturber=options.perturber,
            redshifts=options.redshifts,
            seed=options.seed,
            compiled=bool(options.compiled),
        ).value
    search = find_perturbers(
        observation,
        scene,
        perturber=options.perturber,
        n_max=options.n_max,
        result=result,
        threshold=threshold,
        redshifts=options.redshifts,
        compiled=bool(options.compiled),
    )
    seconds = time.process_time() - started
    return Entry(search_row(search, seconds), partial(arrays, search), partial(search_figure.draw, search))


def search_row(search: SearchResult, seconds: float) -> dict[str, str]:
    """Return the columns of a search, but `path` and `status`."""
    columns = {
        "message": search.message,
        "detected": "yes" if search.detected else "no",
        "threshold": f"{search.threshold:.4g}",
        "chi2_per_pixel": f"{search.best.chi2_per_pixel:.7g}",
        "chi2_per_pixel_smooth": f"{search.smooth.chi2_per_pixel:.7g}",
        "seconds": f"{seconds:.3g}",
        "delta_chi2": f"{search.delta_chi2:.5g}",
    }
    for number, perturber in enumerate(search.perturbers):
        suffix = f"_{number + 1}" if number else ""
        values = {name: getattr(perturber, name) for name in _PERTURBER_COLUMNS}
        if "concentration" in perturber.parameters:
            values["concentration"] = perturber.parameters["concentration"]
            values["concentration_error"] = perturber.errors["concentration"]
        for name, value in values.items():
            columns[name + suffix] = "" if math.isnan(value) else f"{value:.5g}"
    return columns


def arrays(search: SearchResult) -> dict[str, Any]:
    """Return image, residuals without and with perturbers, gains, and detectable masses, as in the npz file."""
    gains, observation = search.gains, search.smooth.observation
    return {
        "image": observation.image,
        "residual_smooth": search.smooth.residual,
        "residual": search.best.residual,
        "x": gains.x,
        "y": gains.y,
        "gain": gains.gain,
        "log10_mass": gains.log10_mass,
        "log10_mass_detectable": gains.detectable(search.threshold),
        "threshold": np.array(search.threshold),
        "perturbers": np.array([(p.x, p.y, p.log10_mass, p.delta_chi2) for p in search.perturbers]).reshape(-1, 4),
        "pixel_scale": np.array(observation.pixel_scale),
    }
