"""How often a trained classifier is confident, wrong and not flagged on images unlike its training images."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from darklens.bundle import UNFAMILIAR, Bundle
from darklens.evaluation import conformal
from darklens.fit.summary import FAILED
from experiments import engine, images
from experiments.engine import Work

Config = images.Config
CONFIDENT = 0.9


def run(config: Config, work: Work) -> dict[str, Any]:
    """Classify each set, and count confident errors without and with the checks of the fits."""
    torch.set_num_threads(1)
    bundle, rows = Bundle.load(config.model), []
    for name in config.names():
        labelled = config.make(name)
        rows.append({"name": name, **row(bundle, labelled.images, labelled.labels)})
        print(f"{name}: {rows[-1]['before']:.3f} -> {rows[-1]['now']:.3f}", flush=True)
    contract = bundle.contract
    model = {"recipe": contract.recipe, "data": contract.data, "fallback": contract.fallback}
    about = {"schema": 1, "population": config.population, "model": model, "n": config.n}
    return {**about, "rows": rows, "provenance": engine.made_by()}


def row(bundle: Bundle, pixels: images.Images, labels: Int[np.ndarray, " b"]) -> dict[str, Any]:
    """Return the rates of one set; each class is wrong for an image without a label."""
    parts = images.in_batches(bundle, pixels)
    now = np.concatenate([part.probabilities for part in parts])
    before = np.concatenate([bundle.calibrated(bundle.output(part.inputs).logits) for part in parts])
    doubts = [reasons for part in parts for reasons in part.doubts]
    known_flags = {UNFAMILIAR} if bundle.fit_settings is None else {UNFAMILIAR, FAILED}
    known = [not known_flags.isdisjoint(reasons) for reasons in doubts]
    flagged = np.array([bool(reasons) for reasons in doubts])
    wrong = before.argmax(1) != labels
    both = images.with_fallback(bundle, pixels)
    covered = sets_of(bundle, before, np.zeros(len(labels), dtype=bool)), sets_of(bundle, now, flagged), both.sets
    inside = labels >= 0
    rows = np.flatnonzero(inside)
    return {
        "n": len(labels),
        "accuracy": float((~wrong[inside]).mean()) if inside.any() else None,
        "before": confident_errors(before, wrong, np.array(known)),
        "now": confident_errors(now, wrong, flagged),
        "with_fallback": confident_errors(both.probabilities, both.probabilities.argmax(1) != labels, both.unknown),
        "accuracy_with_fallback": float((both.probabilities.argmax(1) == labels)[inside].mean())
        if inside.any()
        else None,
        "flagged": float(flagged.mean()),
        "unknown": float(both.unknown.mean()),
        "coverage": [float(sets[rows, labels[rows]].mean()) if inside.any() else None for sets in covered],
    }


def confident_errors(probabilities: Float[np.ndarray, "b c"], wrong: np.ndarray, flagged: np.ndarray) -> float:
    """Return the fraction of images that are wrong, confident, and not flagged."""
    return float((wrong & (probabilities.max(1) > CONFIDENT) & ~flagged).mean())


def sets_of(bundle: Bundle, probabilities: Float[np.ndarray, "b c"], flagged: np.ndarray) -> np.ndarray:
    """Return the prediction sets (b, c), all classes if flagged."""
    assert bundle.contract.calibration is not None
    sets = conformal.lac_sets(probabilities, bundle.contract.calibration.conformal[0])
    sets[np.arange(len(sets)), probabilities.argmax(1)] = True
    sets[flagged] = True
    return np.asarray(sets)


def page(config: Config, result: dict[str, Any]) -> str:
    """Return the table of sets; "alone" is the model without its fallback, if it has one."""
    ways = ["alone", "with fallback"] if result["model"].get("fallback", True) else ["with checks"]
    header = [
        "images",
        "n",
        *(f"accuracy, {way}" for way in ways),
        "wrong, before",
        *ways,
        *(f"unknown, {way}" for way in ways),
    ]
    rows = [[*header, "90 % sets cover, before", *ways]]
    for r in result["rows"]:
        of_way = slice(len(ways))
        accuracy = [_fraction(r[name]) for name in ("accuracy", "accuracy_with_fallback")][of_way]
        wrong = [f"{r[name]:.1%}" for name in ("now", "with_fallback")][of_way]
        unknown = [f"{r[name]:.0%}" for name in ("flagged", "unknown")][of_way]
        before, *coverage = map(_fraction, r["coverage"])
        rows.append(
            [r["name"], str(r["n"]), *accuracy, f"{r['before']:.1%}", *wrong, *unknown, before, *coverage[of_way]]
        )
    model = {"recipe": result["model"]["recipe"], "trained_on": result["model"]["data"]["population"]}
    return engine.page(config, {**result["provenance"], **model, "n": result["n"]}, rows)


def _fraction(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
