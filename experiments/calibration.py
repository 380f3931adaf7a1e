"""Calibration error and coverage of prediction sets on new images, before and after calibration."""

from pathlib import Path
from typing import Any

import numpy as np

from darklens.bundle import Bundle
from darklens.calibration import softmax
from darklens.data.store import Store
from darklens.evaluation import conformal, metrics
from darklens.evaluation.calibrate import calibrate_on
from darklens.executors import usable_cores
from experiments import engine
from experiments.engine import Backend, Experiment, Work

SEEDS = {"calibration": 301, "fresh": 302}
SETS = ("lac", "lac_by_class", "aps")


class Config(Experiment):
    """Models that are calibrated on one new simulation of their population and evaluated on another.

    The calibration error of binned confidences is not zero for a perfect classifier; labels drawn from the
    probabilities show what it would be.

    Attributes:
        models: Runs, bundles or shipped models; paths may hold `*`.
        draws: Of labels, for the error of a perfect classifier.
        isotonic: Whether to try `--method isotonic` too, which needs 600 images per class.
    """

    models: list[str]
    calibration_per_class: int
    fresh_per_class: int
    backend: Backend = "eager"
    draws: int = 200
    isotonic: bool = True


def run(config: Config, work: Work) -> dict[str, Any]:
    """Calibrate and evaluate each model."""
    rows = []
    for model in config.models:
        for path in sorted(engine.ROOT.glob(model)) if "*" in model else [Path(model)]:
            bundle = Bundle.load(path)
            population = bundle.contract.data["population"]
            sizes = {"calibration": config.calibration_per_class, "fresh": config.fresh_per_class}
            stores = [
                Store(engine.simulate(work, population, n, SEEDS[part], backend=config.backend))
                for part, n in sizes.items()
            ]
            rows.append(evaluated(config, bundle, *stores))
            print(rows[-1], flush=True)
    return {"schema": 1, "rows": rows, "provenance": engine.made_by()}


def evaluated(config: Config, bundle: Bundle, calibrating: Store, fresh: Store) -> dict[str, Any]:
    methods = ("temperature", "isotonic") if config.isotonic else ("temperature",)
    records = [
        calibrate_on(bundle, calibrating, method=m, workers=usable_cores()).contract.calibration for m in methods
    ]
    record = records[0]
    assert record is not None
    logits, labels = bundle.outputs_of(fresh, workers=usable_cores()).logits, fresh.labels
    raw, after, *isotonic = softmax(logits), *(each.probabilities(logits) for each in records if each)
    g = np.random.default_rng(0)
    drawn = [
        (g.random((len(after), 1)) > after.cumsum(1)).sum(1).clip(max=after.shape[1] - 1) for _ in range(config.draws)
    ]
    coverage = conformal.summarise_sets(after, labels, record.conformal)
    return {
        "recipe": bundle.contract.recipe,
        "population": fresh.population_name,
        "held_out": len(calibrating),
        "fresh": len(fresh),
        "macro_auc": metrics.macro_auc(labels, after),
        "temperature": record.temperature,
        "ece_without": metrics.calibration_error(labels, raw),
        "ece": metrics.calibration_error(labels, after),
        "ece_isotonic": metrics.calibration_error(labels, isotonic[0]) if isotonic else None,
        "ece_if_perfect": float(np.mean([metrics.calibration_error(y, after) for y in drawn])),
        "coverage": {kind: coverage[0][kind]["coverage"] for kind in SETS},
    }


def page(config: Config, result: dict[str, Any]) -> str:
    """Return a table of the models."""
    head = ["system", "population", "calibration, new images", "macro AUC", "temperature", "ECE without", "ECE"]
    rows = [[*head, "isotonic", "if perfect", "coverage: LAC", "by class", "APS"]]
    for r in result["rows"]:
        errors = [r[key] for key in ("ece_without", "ece", "ece_isotonic", "ece_if_perfect")]
        numbers = [f"{r['macro_auc']:.4f}", f"{r['temperature']:.3f}"]
        numbers += ["-" if error is None else f"{error:.4f}" for error in errors]
        coverages = [f"{value:.3f}" for value in r["coverage"].values()]
        rows.append([r["recipe"], r["population"], f"{r['held_out']:,}, {r['fresh']:,}", *numbers, *coverages])
    return engine.page(config, result["provenance"], rows)
