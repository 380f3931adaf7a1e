"""Accuracy of a trained classifier on test images that differ from its training images in one respect each."""

from typing import Any

import numpy as np
import torch

from darklens.bundle import Bundle
from darklens.errors import ConfigError
from darklens.evaluation.compare import format_metric
from darklens.evaluation.intervals import metrics_with_intervals
from darklens.fit.features import to_tensors
from darklens.fit.hypotheses import fit_hypotheses
from darklens.models.lens_residual import LensResidualConfig
from experiments import engine, images
from experiments.engine import Work
from experiments.images import Labelled

Config = images.Config
METRICS = ("n", "auc", "accuracy", "ece", "nll", "confusion")


def run(config: Config, work: Work) -> dict[str, Any]:
    """Evaluate the model on each set; it assumes its population in all of them."""
    bundle, rows = Bundle.load(config.model), []
    for name in config.names():
        labelled = config.make(name)
        metrics = metrics_with_intervals(labelled.labels, probabilities(bundle, labelled), bundle.contract.classes)
        rows.append({"name": name, **{key: metrics[key] for key in METRICS}})
        print(f"{name}: macro AUC {metrics['auc']['macro']['value']:.5f}", flush=True)
    model = {"recipe": bundle.contract.recipe, "data": bundle.contract.data}
    about = {"schema": 1, "population": config.population, "model": model, "n": config.n}
    return {**about, "rows": rows, "provenance": engine.made_by()}


def probabilities(bundle: Bundle, labelled: Labelled) -> np.ndarray:
    if labelled.exposure is None:
        return np.concatenate([part.probabilities for part in images.in_batches(bundle, labelled.images)])
    model = bundle.contract.model
    if not isinstance(model, LensResidualConfig):
        raise ConfigError(f"{bundle.contract.recipe} takes no exposure maps; leave that set out with `only`.")
    fluxes, exposure = (torch.from_numpy(values) for values in (labelled.images[:, 0], labelled.exposure))
    fits = fit_hypotheses(fluxes, model.population, exposure=exposure, centred=model.centred)
    with torch.inference_mode():
        return bundle.calibrated(bundle.output(to_tensors(fits)).logits)


def page(config: Config, result: dict[str, Any]) -> str:
    """Return the table of sets."""
    rows = [["test images", "macro AUC", "no", "sphere", "vort", "accuracy", "ECE", "log-loss"]]
    for r in result["rows"]:
        classes = [f"{r['auc'][c]['value']:.4f}" for c in ("no", "sphere", "vort")]
        macro, accuracy = (format_metric(v) for v in (r["auc"]["macro"], r["accuracy"]))
        rows.append([r["name"], macro, *classes, accuracy, f"{r['ece']['value']:.3f}", f"{r['nll']['value']:.3f}"])
    model = {"recipe": result["model"]["recipe"], "trained_on": result["model"]["data"]["population"]}
    return engine.page(config, {**result["provenance"], **model, "n": result["n"]}, rows)
