"""Accuracy of a trained classifier on test images that differ from its training images in one respect each."""

from typing import Any

import numpy as np
import torch

from darklens.bundle import BATCH_SIZE, Bundle
from darklens.errors import ConfigError
from darklens.evaluation.compare import format_metric
from darklens.evaluation.intervals import metrics_with_intervals
from darklens.fit.features import to_tensors
from darklens.fit.hypotheses import fit_hypotheses
from darklens.models.lens_residual import LensResidualConfig
from experiments import engine
from experiments.engine import Backend, Experiment, Work
from experiments.images import ImageSet, Labelled

METRICS = ("n", "auc", "accuracy", "ece", "nll", "confusion")


class Config(Experiment):
    """One model and the sets of images on which it is evaluated.

    Attributes:
        model: A run, a bundle, or the name of a shipped model.
        population: Whose lenses are changed.
        backend: That fits lenses to fluxes with an exposure map.
        n: Images of each set.
        seed: Of the images.
        sets: By name; the model assumes its population in all of them.
        only: Names of the sets; default: all.
    """

    model: str
    population: str
    backend: Backend = "eager"
    n: int
    seed: int
    sets: dict[str, ImageSet]
    only: list[str] = []


def run(config: Config, work: Work) -> dict[str, Any]:
    """Evaluate the model on each set."""
    bundle, rows = Bundle.load(config.model), []
    for name in config.only or config.sets:
        labelled = config.sets[name].make(config.population, config.seed, config.n)
        metrics = metrics_with_intervals(
            labelled.labels, probabilities(config, bundle, labelled), bundle.contract.classes
        )
        rows.append({"name": name, **{key: metrics[key] for key in METRICS}})
        print(f"{name}: macro AUC {rows[-1]['auc']['macro']['value']:.5f}", flush=True)
    return {
        "schema": 1,
        "population": config.population,
        "model": {"recipe": bundle.contract.recipe, "data": bundle.contract.data},
        "n": config.n,
        "rows": rows,
        "provenance": engine.made_by(),
    }


def probabilities(config: Config, bundle: Bundle, labelled: Labelled) -> np.ndarray:
    blocks = range(0, len(labelled.images), BATCH_SIZE)
    if labelled.exposure is None:
        return np.concatenate([bundle.probabilities(labelled.images[i : i + BATCH_SIZE]) for i in blocks])
    model = bundle.contract.model
    if not isinstance(model, LensResidualConfig):
        raise ConfigError(f"{bundle.contract.recipe} takes no exposure maps; leave that set out with `only`.")
    images, exposure = (torch.from_numpy(values) for values in (labelled.images[:, 0], labelled.exposure))
    fits = fit_hypotheses(images, model.population, exposure=exposure, engine=config.backend, centred=model.centred)
    with torch.inference_mode():
        return bundle.calibrated(bundle.output(to_tensors(fits)).logits)


def page(config: Config, result: dict[str, Any]) -> str:
    """Return the table of sets."""
    rows = [["test images", "macro AUC", "no", "sphere", "vort", "accuracy", "ECE", "log-loss"]]
    for r in result["rows"]:
        classes = [f"{r['auc'][c]['value']:.4f}" for c in ("no", "sphere", "vort")]
        macro, accuracy = (format_metric(v) for v in (r["auc"]["macro"], r["accuracy"]))
        rows.append([r["name"], macro, *classes, accuracy, f"{r['ece']['value']:.3f}", f"{r['nll']['value']:.3f}"])
    model = result["model"]
    values = {**result["provenance"], "n": result["n"], "recipe": model["recipe"]}
    return engine.page(config, values | {"trained_on": model["data"]["population"]}, rows)
