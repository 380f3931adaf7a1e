"""How well the out-of-distribution score of a bundle separates other images from those of its population."""

from typing import Any

import numpy as np
import torch

from darklens.bundle import Bundle
from darklens.errors import ConfigError
from darklens.evaluation.metrics import binary_auc
from experiments import engine, images
from experiments.engine import Work
from experiments.images import ImageSet

Config = images.Config


def run(config: Config, work: Work) -> dict[str, Any]:
    """Score each set beside fresh images of the population; results of other models stay."""
    torch.set_num_threads(1)
    bundle = Bundle.load(config.model)
    calibration = bundle.contract.calibration
    if bundle.ood_reference is None or calibration is None or calibration.ood is None:
        raise ConfigError(f"{config.model} has no out-of-distribution score; give it one with `darklens calibrate`.")
    limit, rows = calibration.ood.p99, []
    inside = scored(bundle, ImageSet().make(config.population, config.seed, config.n).images)
    for name in config.names():
        outside = scored(bundle, config.make(name).images)
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


def scored(bundle: Bundle, pixels: images.Images) -> dict[str, np.ndarray]:
    """Return the score of each image and, where lenses are fitted, chi2 per pixel of the best hypothesis."""
    assert bundle.ood_reference is not None
    parts = images.in_batches(bundle, pixels)
    values = {"score": np.concatenate([bundle.ood_reference.scores(part.ood_features) for part in parts])}
    if "chi2_per_pixel" in parts[0].findings:
        columns = {name: np.concatenate([part.findings[name] for part in parts]) for name in parts[0].findings}
        chi2 = [columns[f"chi2_per_pixel_{name}"].astype(float) for name in ("line", "points")]
        values |= {"chi2": np.minimum(*chi2), "failed": columns["fit"] != "ok"}
    return values


def row(outside: dict[str, np.ndarray], inside: dict[str, np.ndarray], limit: float) -> dict[str, float]:
    is_outside = np.repeat([True, False], [len(outside["score"]), len(inside["score"])])
    auroc = {k: binary_auc(is_outside, np.concatenate([outside[k], inside[k]])) for k in outside if k != "failed"}
    values = {"auroc": auroc["score"], "beyond_p99": float((outside["score"] > limit).mean())}
    if "chi2" in outside:
        values |= {"auroc_chi2": auroc["chi2"], "fit_failed": float(outside["failed"].mean())}
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
        about = (
            f"{entry['n']} images of the population, {entry['beyond_p99']:.1%} of them flagged; thresholds from "
            f"{entry['threshold_images']} others ({entry['threshold_source']}); trained on "
            f"`{entry['data']['population']}`; commit {entry['provenance']['commit']}."
        )
        text += "\n".join(["", f"## {recipe}", "", about, "", *engine.markdown(table)]) + "\n"
    return text
