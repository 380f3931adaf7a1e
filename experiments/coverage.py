"""How often the 95 % intervals of `darklens evaluate` contain the truth, in simulated experiments."""

from typing import Any

import numpy as np

from darklens import rng
from darklens.evaluation.bootstrap import bootstrap, percentile_interval, scalar_metrics
from darklens.evaluation.intervals import metric_with_interval
from experiments import engine
from experiments.engine import Experiment, Work


class Config(Experiment):
    """Repeated evaluations of classifiers whose truth is known.

    An evaluation draws test images of three classes, whose logits are normal with unit scatter about `skill` for the
    true class and zero for the others, times `sharpness`: at sharpness = skill the probabilities are the true ones,
    beyond it they are overconfident. The truth is the metric of `truth_images` such images.
    """

    experiments: int
    images: int
    resamples: int
    truth_images: int
    systems: dict[str, dict[str, float]]


def run(config: Config, work: Work) -> dict[str, Any]:
    """Count for each system and metric."""
    systems = {name: {**system, "metrics": covered(config, system)} for name, system in config.systems.items()}
    for name, entry in systems.items():
        for metric, m in entry["metrics"].items():
            counts = f"intervals {m['covered']:.3f}, percentiles {m['covered_by_percentiles']:.3f}"
            print(f"{name}, {metric}: truth {m['truth']:.4f}, {counts}")
    sizes = {name: getattr(config, name) for name in ("experiments", "images", "resamples", "truth_images")}
    made_by = engine.made_by()
    about = {"schema": 1, "commit": made_by["commit"], "hardware": made_by["hardware"]}
    return {**about, **sizes, "systems": systems}


def covered(config: Config, system: dict[str, float]) -> dict[str, dict[str, float]]:
    """Return for each metric its truth and how often intervals and plain bootstrap percentiles contain it."""
    truth = scalar_metrics(*sample(config.truth_images, "truth", **system))
    ours, percentiles, total = (dict.fromkeys(truth, 0.0) for _ in range(3))
    for k in range(config.experiments):
        labels, p = sample(config.images, "experiment", k, **system)
        values, drawn = scalar_metrics(labels, p), bootstrap(labels, p, seed=k, resamples=config.resamples)
        for name, true in truth.items():
            low, high = metric_with_interval(name, values[name], drawn[name], labels, p)["ci95"]
            ours[name] += low <= true <= high
            low, high = percentile_interval(drawn[name])
            percentiles[name] += low <= true <= high
            total[name] += values[name]
    return {
        name: {
            "truth": true,
            "mean_estimate": total[name] / config.experiments,
            "covered": ours[name] / config.experiments,
            "covered_by_percentiles": percentiles[name] / config.experiments,
        }
        for name, true in truth.items()
    }


def sample(n: int, *address: str | int, skill: float, sharpness: float) -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(n) % 3
    logits = sharpness * (rng.generator(0, *address).normal(size=(n, 3)) + skill * np.eye(3)[labels])
    p = np.exp(logits - logits.max(1, keepdims=True))
    return labels, p / p.sum(1, keepdims=True)
