"""The real images of Common Test I through `darklens predict`."""

import csv
from pathlib import Path
from typing import Any

import numpy as np

from darklens.errors import ConfigError
from darklens.evaluation.metrics import accuracy, class_auc
from experiments import engine
from experiments.engine import ROOT, Experiment, Work

CLASSES = ["no", "sphere", "vort"]
EXACT = 3  # images 1 to 3 of a class are exact originals, the others were recovered from figures to 1/256
CHI2 = {"chi2_per_pixel": ".3f", "chi2_per_pixel_line": ".3f", "chi2_per_pixel_points": ".3f"}
CHI2 |= {"delta_chi2_point_given_line": ".0f"}  # columns of models that fit, and their formats
Row = dict[str, Any]


class Config(Experiment):
    """A model (run, bundle or name) and a folder CLASS/NUMBER.npy, from the root of the repository."""

    model: str
    images: str


def run(config: Config, work: Work) -> dict[str, Any]:
    """Predict the images and compare with their classes."""
    folder = (ROOT / config.images).resolve()
    if not folder.is_dir():
        raise ConfigError(f"{folder} does not exist; give the folder of real images as images=FOLDER.")
    table = work.runs / f"{Path(config.model).name}.csv"
    engine.darklens("predict", config.model, str(folder), "--out", str(table))
    rows: list[Row] = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
    for row in rows:
        path = Path(row["path"])
        row["class"], row["number"] = path.parent.name, int(path.stem)
        row["path"] = path.relative_to(folder).as_posix()
    rows.sort(key=lambda row: (CLASSES.index(row["class"]), row["number"]))
    groups = {"exact": [r for r in rows if r["number"] <= EXACT], "recovered": [r for r in rows if r["number"] > EXACT]}
    metrics = {name: summary(members) for name, members in groups.items() if members}
    return {"schema": 1, "model": config.model, **metrics, "rows": rows, "provenance": engine.made_by()}


def summary(rows: list[Row]) -> dict[str, Any]:
    labels = np.array([CLASSES.index(row["class"]) for row in rows])
    probabilities = np.array([[float(row[f"p_{name}"]) for name in CLASSES] for row in rows])
    probabilities /= probabilities.sum(1, keepdims=True)
    auc = dict(zip(CLASSES, class_auc(labels, probabilities), strict=True))
    chi2 = [float(row["chi2_per_pixel"]) for row in rows if row["class"] == "no" and "chi2_per_pixel" in row]
    return {
        "n": len(rows),
        "accuracy": float(accuracy(labels, probabilities)),
        "macro_auc": float(np.mean(list(auc.values()))),
        "auc": {name: float(value) for name, value in auc.items()},
        "chi2_of_no": [min(chi2), float(np.median(chi2)), max(chi2)] if chi2 else [],  # of a model that fits
    }


def page(config: Config, result: dict[str, Any]) -> str:
    """Return a table of both groups and one of all images."""
    groups = [["images", "n", "accuracy", "macro AUC", "chi2 of `no`: smallest, median, largest"]]
    for name in ("exact", "recovered"):
        if name in result:
            s = result[name]
            chi2 = ", ".join(f"{value:.3f}" for value in s["chi2_of_no"])
            groups.append([name, str(s["n"]), f"{s['accuracy']:.4f}", f"{s['macro_auc']:.4f}", chi2])
    images = [["image", "p no", "p sphere", "p vort", "chi2", "with line", "with points", "point given line"]]
    for row in result["rows"]:
        cells = [f"{float(row[f'p_{name}']):.4f}" for name in CLASSES]
        for name, form in CHI2.items():
            cells.append(f"{float(row[name]):{form}}" if name in row else "-")
        right = "" if row["predicted"] == row["class"] else " (wrong)"
        images.append([f"{row['class']}/{row['number']}{right}", *cells])
    return engine.page(config, {**result["provenance"], "model": result["model"]}, groups, images)
