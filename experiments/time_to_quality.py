"""AUC against processor time, simulation and fits included."""

import csv
import resource
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from matplotlib.figure import Figure

from darklens.config import Frozen
from darklens.executors import usable_cores
from darklens.files import read_json
from darklens.report.figures import COLOURS
from darklens.training import recipe as recipes
from darklens.training.recipe import Recipe
from experiments import engine, results
from experiments.engine import SEEDS, Experiment, Overrides, Work


class Study(Frozen):
    """What the 2024 study reached, and in which time."""

    system: str
    gpu_minutes: float
    auc: float
    note: str


class Config(Experiment):
    """Recipes that are simulated for, trained and evaluated from nothing.

    The processor time of all processes of `simulate` and `train` is summed and read when an epoch ends; that of the
    evaluation does not count. Earlier results of other recipes stay.

    Attributes:
        population: Of training and test images.
        recipes: Names.
        overrides: Of all recipes.
        n_per_class: Training images of each class, where the recipe does not say.
        test_per_class: Test images of each class.
        seed: Of the trainings.
        target: Macro AUC that the figure marks.
        study: What it is compared with.
    """

    population: str
    recipes: list[str]
    overrides: Overrides = []
    n_per_class: int
    test_per_class: int
    seed: int = 0
    target: float
    study: Study


def run(config: Config, work: Work) -> dict[str, Any]:
    """Measure each recipe."""
    kept = sorted(results.RESULTS.glob("*/*/seed*/eval.json"))
    test = engine.simulate(work, config.population, config.test_per_class, SEEDS["test"], backend="eager")
    measured = {name: measure(config, work, recipes.get(name, config.overrides), test) for name in config.recipes}
    return {
        "schema": 1,
        "population": config.population,
        "target": config.target,
        "measured": work.result().get("measured", {}) | measured,
        "earlier": [entry for path in kept if (entry := earlier(path))],
        "study": config.study.model_dump(),
    }


def measure(config: Config, work: Work, recipe: Recipe, test: Path) -> dict[str, Any]:
    """Simulate for one recipe, train and evaluate it, all from nothing."""
    folder = work.runs / recipe.name / f"seed{config.seed}"
    shutil.rmtree(folder, ignore_errors=True)
    started, begin = time.perf_counter(), of_children()
    n_per_class, data = getattr(recipe.data, "n_per_class", None) or config.n_per_class, []
    if recipe.data.kind == "store":
        size = ["--n-per-class", str(n_per_class), "--seed", str(100 + config.seed)]
        engine.darklens("simulate", config.population, "--out", str(folder / "train"), *size)
        data = ["--data", str(folder / "train")]
    cpu = {"simulate": of_children() - begin}
    words = ["train", recipe.name, *config.overrides, *data, "--out", str(folder / "run"), "--seed", str(config.seed)]
    points = watched([sys.executable, "-m", "darklens.cli", *words], folder / "run" / "metrics.csv", cpu["simulate"])
    cpu["train"] = of_children() - begin - cpu["simulate"]
    minutes = {key: round(seconds / 60, 3) for key, seconds in (cpu | {"all": sum(cpu.values())}).items()}
    wall = time.perf_counter() - started
    evaluation = read_json(engine.evaluate(folder / "run", test) / "eval.json")
    stages = recipe.stages if recipe.data.kind == "stream" else []
    images = sum(stage.epochs * (stage.images_per_epoch or recipe.data.images_per_epoch) for stage in stages)
    return {
        "population": config.population,
        "images": images or 3 * n_per_class,
        "cpu_minutes": minutes,
        "wall_minutes": round(wall / 60, 3),
        "points": points,
        "test_auc": evaluation["auc"]["macro"]["value"],
        "test_auc_ci95": evaluation["auc"]["macro"]["ci95"],
        "test_images": evaluation["n"],
        "seed": config.seed,
        **{key: value for key, value in engine.made_by().items() if key != "version"},
    }


def watched(command: list[str], metrics: Path, before: float) -> list[dict[str, float]]:
    """Run a training; return the validation AUC of its epochs and the processor minutes until then.

    Args:
        command: The training.
        metrics: The table to which it adds a line after each epoch.
        before: Processor seconds that were spent before it.
    """
    print(f"\n$ {' '.join(command)}", flush=True)
    process, points = psutil.Popen(command, cwd=engine.ROOT), []
    seconds: dict[int, float] = {}
    while process.poll() is None:
        time.sleep(0.5)
        for each in tree(process):
            try:
                times = each.cpu_times()
            except psutil.NoSuchProcess:
                continue
            seconds[each.pid] = max(times.user + times.system, seconds.get(each.pid, 0.0))
        for row in lines(metrics)[len(points) :]:
            point = {"stage": int(row["stage"]), "epoch": int(row["epoch"]), "val_auc": float(row["val_auc"] or "nan")}
            points.append(point | {"cpu_minutes": round((before + sum(seconds.values())) / 60, 3)})
    if process.returncode:
        raise SystemExit(f"Stopped: the training ended with exit code {process.returncode}.")
    return [point for point in points if point["val_auc"] == point["val_auc"]]


def tree(process: psutil.Popen) -> list[psutil.Process]:
    """Return a process and its descendants, none if it has ended."""
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def of_children() -> float:
    """Return the processor seconds of all finished children of this process, and of their children."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def lines(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines())) if path.exists() else []


def earlier(path: Path) -> dict[str, Any] | None:
    """Return the AUC of a kept evaluation and the most processor time its training can have taken: wall times cores."""
    evaluation = read_json(path)
    seconds = evaluation.get("provenance", {}).get("train_seconds")
    if not seconds or "auc" not in evaluation:
        return None
    population, recipe, seed = path.parts[-4:-1]
    return {
        "system": f"{recipe}, {population}, {seed}",
        "population": population,
        "cpu_minutes_at_most": round(seconds * usable_cores() / 60, 2),
        "auc": evaluation["auc"]["macro"]["value"],
    }


def figure(config: Config, result: dict[str, Any]) -> Figure:
    """Draw 1 - AUC against processor minutes: lines of validation, dots of the test images."""

    def error(auc: float) -> float:
        return max(1 - auc, 1e-5)

    drawing = Figure(figsize=(8, 4.5), layout="constrained")
    axes = drawing.subplots()
    for (name, entry), colour in zip(result["measured"].items(), COLOURS * 3, strict=False):
        minutes = [point["cpu_minutes"] for point in entry["points"]]
        axes.plot(minutes, [error(point["val_auc"]) for point in entry["points"]], color=colour, linewidth=1)
        label = f"{name} (test {entry['test_auc']:.4f})"
        axes.plot(entry["cpu_minutes"]["all"], error(entry["test_auc"]), "o", color=colour, label=label)
    for entry, marker in zip(result["earlier"], "sv^<>Dphx+*" * 9, strict=False):
        label = f"{entry['system']}: at most"
        axes.plot(entry["cpu_minutes_at_most"], error(entry["auc"]), marker, color="0.55", label=label, markersize=4)
    study = result["study"]
    style = {"color": "black", "markersize": 11, "label": "the study: GPU minutes"}
    axes.plot(study["gpu_minutes"], error(study["auc"]), "*", **style)
    axes.axhline(error(result["target"]), color="0.8", linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="processor minutes, simulation and fits included")
    axes.set_ylabel("1 - macro AUC (lines: validation)")
    axes.invert_yaxis()
    axes.legend(fontsize=6, loc="upper left", bbox_to_anchor=(1, 1))
    return drawing
