"""What a model with a fallback says of images unlike its training images, beside the model alone."""

from typing import Any

import numpy as np
import torch

from darklens.bundle import BATCH_SIZE, Bundle, classify
from darklens.evaluation.columns import prediction_columns
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


def row(bundle: Bundle, pixels: images.Images, labels: np.ndarray) -> dict[str, Any]:
    """Return the measures of one set; each class is wrong for an image without a label."""
    classes = bundle.contract.classes
    alone, both = np.zeros((len(pixels), len(classes))), np.zeros((len(pixels), len(classes)))
    second, unknown, covered = (np.zeros(len(pixels), dtype=bool) for _ in range(3))
    for start in range(0, len(pixels), BATCH_SIZE):
        block = pixels[start : start + BATCH_SIZE]
        alone[start : start + BATCH_SIZE] = bundle.classify(block).probabilities
        for part in classify(bundle, block):
            found = part.classification
            rows = np.array(part.indices) + start
            both[rows], second[rows] = found.probabilities, part.bundle is not bundle
            columns = prediction_columns(part.bundle, found.probabilities, found.ood_features, found.doubts)
            unknown[rows] = [bool(reasons) for reasons in found.doubts]
            names = [classes[i] if i >= 0 else "" for i in labels[rows]]
            covered[rows] = [name in text.split("|") for name, text in zip(names, columns["set"], strict=True)]
    wrong = both.argmax(1) != labels
    measures = {
        "n": len(labels),
        "by_fallback": float(second.mean()),
        "unknown": float(unknown.mean()),
        "wrong": confident_errors(both, wrong, unknown),
    }
    if (labels < 0).any():
        return measures
    for name, probabilities in {"alone": alone, "with_fallback": both}.items():
        metrics = metrics_with_intervals(labels, probabilities, classes)
        measures[name] = {key: metrics[key] for key in ("auc", "accuracy")}
    return measures | {"coverage": float(covered.mean())}


def page(config: Config, result: dict[str, Any]) -> str:
    """Return the table of sets."""
    header = ["images", "n", "macro AUC, alone", "with fallback", "accuracy, alone", "with fallback", "by fallback"]
    rows = [[*header, "unknown", "wrong", "90 % sets cover"]]
    for r in result["rows"]:
        cells = ["-"] * 4
        if "alone" in r:
            ways = (r["alone"], r["with_fallback"])
            cells = [format_metric(way["auc"]["macro"]) for way in ways]
            cells += [format_metric(way["accuracy"]) for way in ways]
        rates = [f"{r['by_fallback']:.0%}", f"{r['unknown']:.0%}", f"{r['wrong']:.1%}"]
        coverage = f"{r['coverage']:.2f}" if "coverage" in r else "-"
        rows.append([r["name"], str(r["n"]), *cells, *rates, coverage])
    model = {key: result["model"][key] for key in ("recipe", "fallback")}
    values = {**result["provenance"], **model, "confident": CONFIDENT, "n": result["n"]}
    return engine.page(config, values, rows)
