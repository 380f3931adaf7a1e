"""How well the out-of-distribution score of a bundle separates other images from those of its population."""

from typing import Any

import numpy as np
import torch

from darklens.bundle import BATCH_SIZE, Bundle
from darklens.errors import ConfigError
from darklens.evaluation import ood
from darklens.evaluation.metrics import binary_auc
from experiments import engine
from experiments.engine import Experiment, Work
from experiments.images import ImageSet


class Config(Experiment):
    """One model and the sets of images that it should flag; results of other models stay.

    Attributes:
        model: A run, a bundle, or the name of a shipped model.
        population: Whose images are in distribution.
        n: Images of each set.
        seed: Of the images.
        sets: By name.
        only: Names of the sets; default: all that are available.
    """

    model: str
    population: str
    n: int
    seed: int
    sets: dict[str, ImageSet]
    only: list[str] = []


def run(config: Config, work: Work) -> dict[str, Any]:
    """Score each set beside fresh images of the population."""
    torch.set_num_threads(1)
    bundle = Bundle.load(config.model)
    calibration = bundle.contract.calibration
    if bundle.ood_reference is None or calibration is None or calibration.ood is None:
        raise ConfigError(f"{config.model} has no out-of-distribution score; give it one with `darklens calibrate`.")
    limit = calibration.ood.p99
    inside, rows = scored(bundle, ImageSet().make(config.population, config.seed, config.n).images), []
    for name in config.only or [name for name, images in config.sets.items() if images.is_available]:
        outside = scored(bundle, config.sets[name].make(config.population, config.seed, config.n).images)
        rows.append({"name": name, "n": len(outside["score"]), **row(outside, inside, limit)})
        print(f"{name}: {rows[-1]['auroc']:.4f}", flush=True)
    entry = {
        "n": config.n,
        "beyond_p99": float((inside["score"] > limit).mean()),
        "rows": rows,
        "data": bundle.contract.data,
        "threshold_images": calibration.threshold_images,
        "threshold_source": calibration.images,
        "provenance": engine.made_by(),
    }
    models = {**work.result().get("models", {}), bundle.contract.recipe: entry}
    return {"schema": 1, "population": config.population, "models": models}


def scored(bundle: Bundle, images: np.ndarray) -> dict[str, np.ndarray]:
    """Return the score of each image and, where lenses are fitted, chi2 per pixel of the best hypothesis."""
    assert bundle.ood_reference is not None
    parts: list[dict[str, np.ndarray]] = []
    for start in range(0, len(images), BATCH_SIZE):
        classified = bundle.classify(images[start : start + BATCH_SIZE])
        part = {"score": ood.scores(bundle.ood_reference, classified.ood_features)}
        if "chi2_per_pixel" in classified.findings:
            chi2 = [
                np.array(classified.findings[name], dtype=float)
                for name in ("chi2_per_pixel_line", "chi2_per_pixel_points")
            ]
            part |= {"chi2": np.minimum(*chi2), "failed": np.array(classified.findings["fit"]) != "ok"}
        parts.append(part)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def row(outside: dict[str, np.ndarray], inside: dict[str, np.ndarray], limit: float) -> dict[str, float]:
    is_outside = np.repeat([True, False], [len(outside["score"]), len(inside["score"])])

    def auroc(name: str) -> float:
        return binary_auc(is_outside, np.concatenate([outside[name], inside[name]]))

    values = {"auroc": auroc("score"), "beyond_p99": float((outside["score"] > limit).mean())}
    if "chi2" in outside:
        values |= {"auroc_chi2": auroc("chi2"), "fit_failed": float(outside["failed"].mean())}
    return values


def page(config: Config, result: dict[str, Any]) -> str:
    """Return a table for each model."""
    text = engine.page(config, {"population": result["population"]})
    for recipe, entry in result["models"].items():
        with_fit = "auroc_chi2" in entry["rows"][0]
        table = [["images", "n", "AUROC", "flagged", *(["AUROC of chi2 alone", "fit failed"] if with_fit else [])]]
        for r in entry["rows"]:
            fits = [f"{r['auroc_chi2']:.3f}", f"{r['fit_failed']:.0%}"] if with_fit else []
            table.append([r["name"], str(r["n"]), f"{r['auroc']:.3f}", f"{r['beyond_p99']:.0%}", *fits])
        lines = [
            f"\n## {recipe}\n",
            f"{entry['n']} images of the population, {entry['beyond_p99']:.1%} of them flagged; thresholds from "
            f"{entry['threshold_images']} others ({entry['threshold_source']}); trained on "
            f"`{entry['data']['population']}`; commit {entry['provenance']['commit']}.\n",
            *engine.markdown(table),
        ]
        text += "\n".join(lines) + "\n"
    return text
