"""AUC against processor time, simulation and fits included."""

import csv
import resource
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from matplotlib.figure import Figure

from darklens.executors import usable_cores
from darklens.files import read_json
from darklens.report.figures import COLOURS
from darklens.training import recipe as recipes
from darklens.training.recipe import Recipe
from experiments import engine, results
from experiments.engine import SEEDS, Experiment, Overrides, Work


class Config(Experiment):
    """Recipes that are simulated for, trained and evaluated from nothing; earlier results of others stay.

    The processor time of all processes of `simulate` and `train` is summed and read when an epoch ends; that of the
    evaluation does not count.

    Attributes:
        n_per_class: Training images of each class, where the recipe does not say.
        target: Macro AUC that the figure marks.
        study: The 2024 study's system, its `gpu_minutes`, `auc` and a note.
    """

    population: str
    recipes: list[str]
    overrides: Overrides = []
    n_per_class: int
    test_per_class: int
    seed: int = 0
    target: float
    study: dict[str, str | float]


def run(config: Config, work: Work) -> dict[str, Any]:
    """Measure each recipe."""
    test = engine.simulate(work, config.population, config.test_per_class, SEEDS["test"], backend="eager")
    kept = sorted(results.RESULTS.glob("*/*/seed*/eval.json"))
    measured = {name: measure(config, work, recipes.get(name, config.overrides), test) for name in config.recipes}
    return {
        "schema": 1,
        "population": config.population,
        "target": config.target,
        "measured": work.result().get("measured", {}) | measured,
        "earlier": [entry for path in kept if (entry := earlier(path))],
        "study": config.study,
    }


def measure(config: Config, work: Work, recipe: Recipe, test: Path) -> dict[str, Any]:
    """Simulate for one recipe, train and evaluate it, all from nothing."""
    folder = work.runs / recipe.name / f"seed{config.seed}"
    shutil.rmtree(folder, ignore_errors=True)
    started, begin, data = time.perf_counter(), of_children(), []
    stream = recipe.data.kind == "stream"
    if stream:
        images = sum(s.epochs * (s.images_per_epoch or recipe.data.images_per_epoch) for s in recipe.stages)
    else:
        images = 3 * (recipe.data.n_per_class or config.n_per_class)
        size = ["--n-per-class", str(images // 3), "--seed", str(100 + config.seed)]
        engine.darklens("simulate", config.population, "--out", str(folder / "train"), *size)
        data = ["--data", str(folder / "train")]
    cpu = {"simulate": of_children() - begin}
    words = ["train", recipe.name, *config.overrides, *data, "--out", str(folder / "run"), "--seed", str(config.seed)]
    points = watched([sys.executable, "-m", "darklens.cli", *words], folder / "run" / "metrics.csv", cpu["simulate"])
    cpu["train"] = of_children() - begin - cpu["simulate"]
    minutes = {key: round(seconds / 60, 3) for key, seconds in (cpu | {"all": sum(cpu.values())}).items()}
    wall = round((time.perf_counter() - started) / 60, 3)
    evaluation = read_json(engine.evaluate(folder / "run", test) / "eval.json")
    auc, made_by = evaluation["auc"]["macro"], engine.made_by()
    return {
        "population": config.population,
        "images": images,
        "cpu_minutes": minutes,
        "wall_minutes": wall,
        "points": points,
        "test_auc": auc["value"],
        "test_auc_ci95": auc["ci95"],
        "test_images": evaluation["n"],
        "seed": config.seed,
        "commit": made_by["commit"],
        "hardware": made_by["hardware"],
    }


def watched(command: list[str], metrics: Path, before: float) -> list[dict[str, float]]:
    """Run a training; return the validation AUC of its epochs and the processor minutes until then.

    Args:
        command: The training.
        metrics: The table to which it adds a line after each epoch.
        before: Processor seconds that were spent before it.
    """
    print(f"\n$ {' '.join(command)}", flush=True)
    process, points, seconds = psutil.Popen(command, cwd=engine.ROOT), [], 0.0
    while process.poll() is None:
        time.sleep(0.5)
        with suppress(psutil.NoSuchProcess):  # processes with their finished children
            tree = [process, *process.children(recursive=True)]
            seconds = max(seconds, sum(sum(each.cpu_times()[:4]) for each in tree))
        rows = csv.DictReader(metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else [])
        for row in list(rows)[len(points) :]:
            point = {"stage": int(row["stage"]), "epoch": int(row["epoch"]), "val_auc": float(row["val_auc"] or "nan")}
            points.append(point | {"cpu_minutes": round((before + seconds) / 60, 3)})
    if process.returncode:
        raise SystemExit(f"Stopped: the training ended with exit code {process.returncode}.")
    return [point for point in points if point["val_auc"] == point["val_auc"]]


def of_children() -> float:
    """Return the processor seconds of all finished children of this process, and of their children."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def earlier(path: Path) -> dict[str, Any] | None:
    """Return the AUC of a kept evaluation and the most processor time its training can have taken: wall times cores."""
    evaluation = read_json(path)
    seconds = evaluation.get("provenance", {}).get("train_seconds")
    if not seconds or "auc" not in evaluation:
        return None
    population, recipe, seed = path.parts[-4:-1]
    minutes = round(seconds * usable_cores() / 60, 2)
    about = {"system": f"{recipe}, {population}, {seed}", "population": population}
    return {**about, "cpu_minutes_at_most": minutes, "auc": evaluation["auc"]["macro"]["value"]}


def figure(config: Config, result: dict[str, Any]) -> Figure:
    """Draw 1 - AUC against processor minutes: lines of validation, dots of the test images."""
    drawing = Figure(figsize=(8, 4.5), layout="constrained")
    axes = drawing.subplots()

    def plot(minutes: Any, aucs: Any, style: str, **options: Any) -> None:
        axes.plot(minutes, np.maximum(1 - np.asarray(aucs), 1e-5), style, **options)

    for (name, entry), colour in zip(result["measured"].items(), COLOURS * 3, strict=False):
        points = entry["points"]
        plot([p["cpu_minutes"] for p in points], [p["val_auc"] for p in points], "-", color=colour, linewidth=1)
        label = f"{name} (test {entry['test_auc']:.4f})"
        plot(entry["cpu_minutes"]["all"], entry["test_auc"], "o", color=colour, label=label)
    for entry, marker in zip(result["earlier"], "sv^<>Dphx+*" * 9, strict=False):
        label = f"{entry['system']}: at most"
        plot(entry["cpu_minutes_at_most"], entry["auc"], marker, color="0.55", label=label, markersize=4)
    study = result["study"]
    plot(study["gpu_minutes"], study["auc"], "*", color="black", markersize=11, label="the study: GPU minutes")
    axes.axhline(1 - result["target"], color="0.8", linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="processor minutes, simulation and fits included")
    axes.set_ylabel("1 - macro AUC (lines: validation)")
    axes.invert_yaxis()
    axes.legend(fontsize=6, loc="upper left", bbox_to_anchor=(1, 1))
    return drawing
