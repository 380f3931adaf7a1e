"""What a model with a fallback says of images unlike its training images, beside the model alone."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from darklens.bundle import Bundle
from darklens.evaluation.compare import format_metric
from darklens.evaluation.intervals import metrics_with_intervals
from experiments import engine, images
from experiments.confidence import CONFIDENT, confident_errors
from experiments.engine import Work

Config = images.Config


def run(config: Config, work: Work) -> dict[str, Any]:
    """Classify each set with the model alone and with its fallback."""
    torch.set_num_threads(1)
    bundle, rows = Bundle.load(config.model), []
    assert bundle.fallback is not None
    for name in config.names():
        labelled = config.make(name)
        rows.append({"name": name, **row(bundle, labelled.images, labelled.labels)})
        print(f"{name}: {rows[-1]}", flush=True)
    model = {"recipe": bundle.contract.recipe, "data": bundle.contract.data}
    model |= {"fallback": bundle.contract.fallback, "fallback_data": bundle.fallback.contract.data}
    about = {"schema": 1, "population": config.population, "model": model, "n": config.n}
    return {**about, "rows": rows, "provenance": engine.made_by()}


def row(bundle: Bundle, pixels: images.Images, labels: Int[np.ndarray, " b"]) -> dict[str, Any]:
    """Return the measures of one set, which has images of each class."""
    alone = np.concatenate([part.probabilities for part in images.in_batches(bundle, pixels)])
    both = images.with_fallback(bundle, pixels)
    measures: dict[str, Any] = {
        "n": len(labels),
        "by_fallback": float(both.by_fallback.mean()),
        "unknown": float(both.unknown.mean()),
        "wrong": confident_errors(both.probabilities, both.probabilities.argmax(1) != labels, both.unknown),
    }
    for name, probabilities in {"alone": alone, "with_fallback": both.probabilities}.items():
        metrics = metrics_with_intervals(labels, probabilities, bundle.contract.classes)
        measures[name] = {key: metrics[key] for key in ("auc", "accuracy")}
    return measures | {"coverage": float(both.sets[np.arange(len(labels)), labels].mean())}


def page(config: Config, result: dict[str, Any]) -> str:
    """Return the table of sets."""
    header = ["images", "n", "macro AUC, alone", "with fallback", "accuracy, alone", "with fallback", "by fallback"]
    rows = [[*header, "unknown", "wrong", "90 % sets cover"]]
    for r in result["rows"]:
        ways = (r["alone"], r["with_fallback"])
        cells = [format_metric(way["auc"]["macro"]) for way in ways]
        cells += [format_metric(way["accuracy"]) for way in ways]
        rates = [f"{r['by_fallback']:.0%}", f"{r['unknown']:.0%}", f"{r['wrong']:.1%}"]
        rows.append([r["name"], str(r["n"]), *cells, *rates, f"{r['coverage']:.2f}"])
    model = {key: result["model"][key] for key in ("recipe", "fallback")}
    values = {**result["provenance"], **model, "confident": CONFIDENT, "n": result["n"]}
    return engine.page(config, values, rows)
