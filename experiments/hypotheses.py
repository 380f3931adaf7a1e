"""What the fits say of each class, and how far chance takes them on lenses without substructure."""

from pathlib import Path
from typing import Any

import numpy as np

from darklens import populations
from darklens.data.store import Store
from darklens.executors import usable_cores
from darklens.files import write_json
from darklens.fit.cache import cached_fits
from darklens.fit.features import SUMMARY_NAMES
from experiments import engine
from experiments.engine import SEEDS, Backend, Experiment, Work


class Config(Experiment):
    """Fits of simulated test images; chance.json, beside the results, has what chance reaches in training images.

    Attributes:
        chance_per_class: Training images of each class, of which those without substructure count.
        percentiles: Of the delta chi2 of one point mass in addition to the line, by class.
        chance_percentiles: Of the delta chi2 of three point masses and of a line, of smooth lenses.
    """

    population: str
    backend: Backend = "compiled"
    n_per_class: int
    chance_per_class: int
    percentiles: list[float]
    chance_percentiles: list[float]


def run(config: Config, work: Work) -> dict[str, Any]:
    """Fit the stores and count."""
    test, columns = fitted(config, work, config.n_per_class, SEEDS["test"])
    labels, provenance = test.labels, engine.made_by()
    line, points, further = (
        columns[name] for name in ("delta_chi2_line", "delta_chi2_points_3", "delta_chi2_point_given_line")
    )
    best = (columns["deviance"] - np.maximum(line, points)) / columns["n_pixels_fitted"]
    # Not the largest of all, which one smooth fit in a local minimum decides.
    limits = [np.percentile(values[labels == 0], 99.9) for values in (line, points)]
    insignificant = (line <= limits[0]) & (points <= limits[1])
    train, chance = fitted(config, work, config.chance_per_class, SEEDS["train"])
    smooth = train.labels == train.classes.index("no")
    gains = {"sphere": chance["delta_chi2_points_3"][smooth], "vort": chance["delta_chi2_line"][smooth]}
    result = {
        "schema": 1,
        "images": int(smooth.sum()),
        "percentiles": config.chance_percentiles,
        "gains": {name: percentiles(values, config.chance_percentiles) for name, values in gains.items()},
        "data": {"population": config.population, "seed": train.index.seed},
        "provenance": provenance,
    }
    write_json(work.out.with_name("chance.json"), result)
    return {
        "schema": 2,
        "images": len(test),
        "percentiles": config.percentiles,
        "delta_chi2_point_given_line": {
            name: percentiles(further[labels == i], config.percentiles) for i, name in enumerate(test.classes)
        },
        "largest_chi2_per_pixel_of_the_best_hypothesis": float(best.max()),
        "sphere_not_above_999_of_1000_no": int((insignificant & (labels == 1)).sum()),
        "vort_with_more_than_100_in_addition_to_the_line": int((further[labels == 2] > 100).sum()),
        "provenance": provenance,
    }


def fitted(config: Config, work: Work, n_per_class: int, seed: int) -> tuple[Store, dict[str, np.ndarray]]:
    """Return a store and the columns of its fits by name."""
    path: Path = engine.simulate(work, config.population, n_per_class, seed, backend=config.backend)
    store, population = Store(path), populations.get(config.population)
    fits = cached_fits(store, population, centred=False, workers=usable_cores())
    return store, {name: fits.column(name) for name in SUMMARY_NAMES}


def percentiles(values: np.ndarray, at: list[float]) -> list[float]:
    return [float(value) for value in np.percentile(values, at)]
