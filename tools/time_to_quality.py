"""AUC against processor minutes, simulation and fits included: `python tools/time_to_quality.py [RECIPE ...]`.

Each recipe is simulated for, trained and judged from nothing, in a folder of its own under --work; the processor's
time of every process of `simulate` and `train` is summed, and read each time an epoch is done. Judging is not counted.
Systems that were judged before are added from results/*/*/seed*/eval.json with the wall time of their training times
the cores, which is the most it can have taken and leaves their simulation and fits out. Writes time_to_quality.json, a
figure beside it, and prints a line for each recipe.

    python tools/time_to_quality.py fast_lens_residual                                  # minutes
    python tools/time_to_quality.py fast_lens_residual fast_resnet_18 --test stores/common-test-i/test
"""

import argparse
import csv
import json
import resource
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
from commands import DARKLENS, ROOT, run
from matplotlib.figure import Figure

from darklens import provenance
from darklens.errors import DarklensError
from darklens.executors import usable_cores
from darklens.files import atomic_path, write_json
from darklens.report.figures import COLOURS, to_png
from darklens.training.recipe import Recipe, get

STUDY = {
    "system": "the study's Resnet_18, as estimated",
    "gpu_minutes": 600.0,
    "auc": 0.965,
    "note": "ten hours of an RTX 3050 laptop GPU, on the study's own images; AUC estimated from its accuracy of 0.858",
}
TARGET = 0.990


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=["fast_lens_residual"])
    parser.add_argument("--population", default="common-test-i")
    parser.add_argument("--n-per-class", type=int, default=500, help="images simulated where the recipe does not say")
    parser.add_argument("--test", type=Path, help="store to judge on; default: 500 a class are simulated, not counted")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "time_to_quality")
    parser.add_argument("--out", type=Path, default=ROOT / "results")
    parser.add_argument("--figure-only", action="store_true", help="draw what --out/time_to_quality.json holds")
    given = parser.parse_args()
    given.work, given.out = given.work.resolve(), given.out.resolve()  # commands run at the root
    target = given.out / "time_to_quality.json"
    if not given.figure_only:
        measured = {name: measure(name, given) for name in given.recipes}
        before = json.loads(target.read_text(encoding="utf-8"))["measured"] if target.exists() else {}
        others = [e for e in map(judged_before, sorted(ROOT.glob("results/*/*/seed*/eval.json"))) if e]
        write_json(
            target,
            {
                "schema": 1,
                "population": given.population,
                "target": TARGET,
                "measured": before | measured,
                "judged_before": others,
                "study": STUDY,
            },
        )
    result = json.loads(target.read_text(encoding="utf-8"))
    with atomic_path(target.with_suffix(".png")) as temporary:
        temporary.write_bytes(to_png(figure(result)))
    for name, entry in result["measured"].items():
        print(f"{name}: macro AUC {entry['test_auc']:.4f} after {entry['cpu_minutes']['all']:.1f} processor minutes")


def measure(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """Simulate, train and judge one recipe from nothing."""
    try:
        recipe = get(name)
    except DarklensError as error:
        raise SystemExit(str(error)) from None
    folder = given.work / recipe.name / f"seed{given.seed}"
    shutil.rmtree(folder, ignore_errors=True)
    cpu, wall, data = {"simulate": 0.0}, time.perf_counter(), []
    if recipe.data.kind == "store":
        n = recipe.data.n_per_class or given.n_per_class
        size = ["--n-per-class", str(n), "--seed", str(100 + given.seed)]
        before = of_children()
        run(str(DARKLENS), "simulate", given.population, "--out", str(folder / "train"), *size)
        cpu["simulate"] = of_children() - before
        data = ["--data", str(folder / "train")]
    before = of_children()
    words = [str(DARKLENS), "train", name, *data, "--out", str(folder / "run"), "--seed", str(given.seed)]
    points = watched(words, folder / "run" / "metrics.csv", cpu["simulate"])
    cpu["train"] = of_children() - before
    took = time.perf_counter() - wall
    test = test_store(given)
    run(str(DARKLENS), "evaluate", str(folder / "run"), str(test), "--out", str(folder / "test"))
    judged = json.loads((folder / "test" / "eval.json").read_text(encoding="utf-8"))
    minutes = {key: round(seconds / 60, 3) for key, seconds in (cpu | {"all": sum(cpu.values())}).items()}
    return {
        "population": given.population,
        "images": images_of(recipe, given),
        "cpu_minutes": minutes,
        "wall_minutes": round(took / 60, 3),
        "points": points,
        "test_auc": judged["auc"]["macro"]["value"],
        "test_auc_ci95": judged["auc"]["macro"]["ci95"],
        "test_images": judged["n"],
        "seed": given.seed,
        "commit": provenance.commit(),
        "hardware": provenance.hardware(),
    }


def images_of(recipe: Recipe, given: argparse.Namespace) -> int:
    if recipe.data.kind == "store":
        return 3 * (recipe.data.n_per_class or given.n_per_class)
    return sum(stage.epochs * (stage.images_per_epoch or recipe.data.images_per_epoch) for stage in recipe.stages)


def watched(words: list[str], metrics: Path, spent: float) -> list[dict[str, float]]:
    """Run a training; return the validation AUC of its epochs and the processor's minutes until then."""
    print(f"\n$ {' '.join(words)}", flush=True)
    process, points = subprocess.Popen(words, cwd=ROOT), []
    tree: dict[int, float] = {}
    while process.poll() is None:
        time.sleep(0.5)
        for pid, seconds in of_tree(process.pid).items():
            tree[pid] = max(seconds, tree.get(pid, 0.0))
        rows = rows_of(metrics)
        for row in rows[len(points) :]:
            point = {"stage": int(row["stage"]), "epoch": int(row["epoch"]), "val_auc": float(row["val_auc"] or "nan")}
            points.append(point | {"cpu_minutes": round((spent + sum(tree.values())) / 60, 3)})
    if process.returncode:
        raise SystemExit(f"Stopped: the training ended with exit code {process.returncode}.")
    return [p for p in points if p["val_auc"] == p["val_auc"]]


def of_tree(pid: int) -> dict[int, float]:
    """Return the processor's seconds of each process of a tree that runs."""
    found = {}
    try:
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return found
    for each in processes:
        try:
            times = each.cpu_times()
        except psutil.NoSuchProcess:
            continue
        found[each.pid] = times.user + times.system
    return found


def of_children() -> float:
    """Return the processor's seconds of all processes that this one has waited for, their own included."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def rows_of(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_store(given: argparse.Namespace) -> Path:
    if given.test:
        return Path(given.test).resolve()
    path = given.work / f"{given.population}-test"
    if not (path / "store.json").exists():
        run(str(DARKLENS), "simulate", given.population, "--out", str(path), "--n-per-class", "500", "--seed", "2")
    return Path(path)


def judged_before(path: Path) -> dict[str, Any] | None:
    judged = json.loads(path.read_text(encoding="utf-8"))
    seconds = judged.get("provenance", {}).get("train_seconds")
    if not seconds or "auc" not in judged:
        return None
    population, recipe, seed = path.parts[-4:-1]
    return {
        "system": f"{recipe}, {population}, {seed}",
        "population": population,
        "cpu_minutes_at_most": round(seconds * usable_cores() / 60, 2),
        "auc": judged["auc"]["macro"]["value"],
    }


def figure(result: dict[str, Any]) -> Figure:
    drawn = Figure(figsize=(8, 4.5), layout="constrained")
    axes = drawn.subplots()
    error = lambda auc: max(1 - auc, 1e-5)  # noqa: E731
    for (name, entry), colour in zip(result["measured"].items(), COLOURS * 3, strict=False):
        minutes = [p["cpu_minutes"] for p in entry["points"]]
        axes.plot(minutes, [error(p["val_auc"]) for p in entry["points"]], color=colour, linewidth=1)
        label = f"{name} (test {entry['test_auc']:.4f})"
        axes.plot(entry["cpu_minutes"]["all"], error(entry["test_auc"]), "o", color=colour, label=label)
    for entry, marker in zip(result["judged_before"], "sv^<>Dphx+*" * 9, strict=False):
        label = f"{entry['system']}: at most"
        axes.plot(entry["cpu_minutes_at_most"], error(entry["auc"]), marker, color="0.55", label=label, markersize=4)
    study = result["study"]
    axes.plot(
        study["gpu_minutes"], error(study["auc"]), "*", color="black", markersize=11, label="the study: GPU minutes"
    )
    axes.axhline(error(result["target"]), color="0.8", linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="processor minutes, simulation and fits included")
    axes.set_ylabel("1 - macro AUC (lines: validation)")
    axes.invert_yaxis()
    axes.legend(fontsize=6, loc="upper left", bbox_to_anchor=(1, 1))
    return drawn


if __name__ == "__main__":
    main()
