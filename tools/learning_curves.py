"""lens_residual and what it is compared with against the number of training images: `python tools/learning_curves.py`.

Networks of one size see equal images for equal epochs, and the test store is judged once for each training. Trainings
that are done are kept, so the command can be given again. Writes curves.json, curves.md and curves.png, with paired
differences at the largest size.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from commands import ROOT, darklens
from matplotlib.figure import Figure
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from darklens import __version__, populations, provenance
from darklens.data.store import Store
from darklens.evaluation.bootstrap import difference_of_means
from darklens.evaluation.intervals import metrics_with_intervals
from darklens.evaluation.runs import read_run
from darklens.executors import usable_cores
from darklens.files import atomic_path, write_json, write_text
from darklens.fit.cache import cached_fits
from darklens.report.figures import COLOURS, to_png

RAW = ["data.preprocess.crop=96", "data.preprocess.bin=2", "data.augment.kind=dihedral"]
# System: recipe, what differs, whether it is trained at all sizes.
SYSTEMS: dict[str, tuple[str, list[str], bool]] = {
    "lens_residual": ("lens_residual", [], True),
    "its numbers alone": ("lens_residual", ["model.inputs=summary"], True),
    "its image and smooth residual alone": ("lens_residual", ["model.inputs=image_and_residual"], True),
    "the same network on the image": ("lens_residual", ["model.inputs=image"], True),
    "resnet_18 on the image": ("resnet_18", RAW, False),
}
LOGISTIC = "logistic regression on five gains"
GAINS = (
    *("delta_chi2_line", "delta_chi2_point_given_line", "evidence_peak"),
    *("delta_chi2_points_1", "delta_chi2_points_3"),
)
EPOCHS = {100: 40, 300: 24, 500: 16, 1000: 12, 3000: 8, 4000: 6, 10_000: 4}


def main() -> None:
    given = arguments()
    train, test = given.stores / "train", given.stores / "test"
    for store, n, seed in ((train, max(given.sizes), 1), (test, given.test_per_class, 2)):
        if not (store / "store.json").exists():
            size = ["--n-per-class", str(n), "--seed", str(seed), "--backend", given.backend]
            darklens("simulate", given.population, "--out", str(store), *size)
    rows = []
    for name, (recipe, changes, everywhere) in SYSTEMS.items():
        if (given.system and name not in given.system) or (recipe == "resnet_18" and not given.resnet_sizes):
            continue
        for n in given.sizes if everywhere else given.resnet_sizes:
            for seed in range(given.seeds if name == "lens_residual" else 1):
                run = given.runs / recipe_folder(name) / str(n) / f"seed{seed}"
                train_and_judge(given, recipe, [*changes, f"data.n_per_class={n}"], n, seed, train, test, run)
                rows.append(row(name, n, seed, json.loads((run / "test" / "eval.json").read_text())))
    rows += [row(LOGISTIC, n, 0, logistic(given, Store(train), Store(test), n)) for n in given.sizes]
    result = {
        "schema": 1,
        "population": given.population,
        "test": {"n": len(Store(test)), "sha256": Store(test).sha256},
        "rows": rows,
        "differences": differences(given, max(given.sizes)),
        "provenance": {"version": __version__, "commit": provenance.commit(), "hardware": provenance.hardware()},
    }
    write_json(given.out / "curves.json", result)
    write_text(given.out / "curves.md", table(result))
    with atomic_path(given.out / "curves.png") as temporary:
        temporary.write_bytes(to_png(figure(result)))
    print(table(result))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--population", default="common-test-i")
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 300, 1000, 3000, 10_000], help="a class")
    parser.add_argument("--resnet-sizes", type=int, nargs="*", default=[10_000], help="at which resnet_18 is trained")
    parser.add_argument("--test-per-class", type=int, default=2500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--stores", type=Path, help="by default stores/POPULATION")
    parser.add_argument("--runs", type=Path, help="by default runs/POPULATION/curves")
    parser.add_argument("--out", type=Path, help="by default results/POPULATION/learning_curves")
    parser.add_argument("--system", action="append", choices=list(SYSTEMS), help="only this; may be given again")
    parser.add_argument("--backend", default="compiled", choices=["eager", "compiled"], help="that simulates and fits")
    parser.add_argument("--epochs", type=int, help="of every training, in place of those for its size")
    given = parser.parse_args()
    given.stores = given.stores or ROOT / "stores" / given.population
    given.runs = given.runs or ROOT / "runs" / given.population / "curves"
    given.out = given.out or ROOT / "results" / given.population / "learning_curves"
    return given


def recipe_folder(name: str) -> str:
    return "-".join(name.split())


def train_and_judge(
    given: argparse.Namespace, recipe: str, changes: list[str], n: int, seed: int, train: Path, test: Path, run: Path
) -> None:
    nearest = min(EPOCHS, key=lambda size: abs(size - n))
    settings = [*changes, f"stages.0.epochs={given.epochs or EPOCHS[nearest]}", f"data.backend={given.backend}"]
    if recipe == "lens_residual":
        settings += [f"model.population={given.population}", "model.centred=true"]  # as its lenses are
    if n < 1000:
        settings.append("stages.0.batch_size=32")
    if not (run / "bundle" / "bundle.json").exists():
        resume = ["--resume"] if (run / "config.yaml").exists() else []
        darklens("train", recipe, *settings, "--data", str(train), "--out", str(run), "--seed", str(seed), *resume)
    if not (run / "test" / "eval.json").exists():
        darklens("evaluate", str(run), str(test), "--out", str(run / "test"))


def logistic(given: argparse.Namespace, train: Store, test: Store, n: int) -> dict[str, Any]:
    """Judge a logistic regression on logarithms of gains in chi2; no network has a part in it."""
    population = populations.get(given.population)
    rows = np.concatenate([np.flatnonzero(train.labels == label)[:n] for label in range(len(train.classes))])
    found = []
    for store, limit in ((train, int(rows.max()) + 1), (test, None)):
        fits = cached_fits(store, population, backend=given.backend, workers=usable_cores(), limit=limit)
        found.append(np.log1p(np.maximum(np.stack([fits.column(name) for name in GAINS], 1), 0)))
    model = make_pipeline(StandardScaler(), LogisticRegression(C=10, max_iter=5000))
    model.fit(found[0][rows], train.labels[rows])
    metrics = metrics_with_intervals(test.labels, model.predict_proba(found[1]), test.classes)
    return {**metrics, "model": {"parameters": 3 * (len(GAINS) + 1)}, "provenance": {"train_seconds": 0}}


def row(name: str, n: int, seed: int, evaluation: dict[str, Any]) -> dict[str, Any]:
    kept = {key: evaluation[key] for key in ("auc", "accuracy", "ece", "nll", "confusion")}
    return {
        "system": name,
        "n_per_class": n,
        "seed": seed,
        "parameters": evaluation["model"]["parameters"],
        "train_seconds": evaluation["provenance"]["train_seconds"],
        **kept,
    }


def differences(given: argparse.Namespace, largest: int) -> list[dict[str, Any]]:
    """Return paired differences of lens_residual at the largest size, and of its 500 images, from resnet_18."""
    found = []
    own = judged_at(given, "lens_residual", largest, given.seeds)
    for name, (_, _, everywhere) in SYSTEMS.items():
        n = largest if everywhere else max(given.resnet_sizes, default=0)
        other = judged_at(given, name, n, 1) if name != "lens_residual" else []
        if not other:
            continue
        k = min(len(own), len(other))
        labels = own[0].labels
        pairs = [[t.probabilities for t in some[:k]] for some in (own, other)]
        by_metric = difference_of_means(labels, *pairs)
        found.append(
            {"first": f"lens_residual, {largest} a class", "second": f"{name}, {n} a class", "seeds": k, **by_metric}
        )
    few = judged_at(given, "lens_residual", 500, 1)
    other = judged_at(given, "resnet_18 on the image", max(given.resnet_sizes, default=0), 1)
    if few and other:
        by_metric = difference_of_means(few[0].labels, [few[0].probabilities], [other[0].probabilities])
        second = f"resnet_18 on the image, {max(given.resnet_sizes)} a class"
        found.append({"first": "lens_residual, 500 a class", "second": second, "seeds": 1, **by_metric})
    return found


def judged_at(given: argparse.Namespace, name: str, n: int, seeds: int) -> list[Any]:
    folders = [given.runs / recipe_folder(name) / str(n) / f"seed{seed}" / "test" for seed in range(seeds)]
    return [read_run(folder) for folder in folders if (folder / "eval.json").exists()]


def table(result: dict[str, Any]) -> str:
    p = result["provenance"]
    lines = [
        "# lens_residual against the number of training images",
        "",
        f"`{result['population']}`, {result['test']['n']:,} test images, commit {p['commit']}, {p['hardware']}. "
        "Mean over seeds (each seed). Networks of one size saw equal images for equal epochs; resnet_18 sees the "
        "central 96 pixels in blocks of 2, so that it can be trained here at all.",
        "",
        "| system | parameters | images a class | macro AUC | no | sphere | vort | accuracy | ECE |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for r in result["rows"]:
        groups.setdefault((r["system"], r["n_per_class"]), []).append(r)
    for (name, n), some in groups.items():
        aucs = [r["auc"]["macro"]["value"] for r in some]
        each = f" ({', '.join(f'{v:.5f}' for v in aucs)})" if len(aucs) > 1 else ""
        classes = [f"{np.mean([r['auc'][c]['value'] for r in some]):.5f}" for c in ("no", "sphere", "vort")]
        accuracy, ece = (np.mean([r[key]["value"] for r in some]) for key in ("accuracy", "ece"))
        size = f"{some[0]['parameters'] / 1e6:.2f} M" if some[0]["parameters"] > 1000 else str(some[0]["parameters"])
        cells = [name, size, f"{n:,}", f"{np.mean(aucs):.5f}{each}", *classes, f"{accuracy:.4f}", f"{ece:.4f}"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| paired difference | seeds | macro AUC | accuracy |", "| --- | --- | --- | --- |"]
    for d in result["differences"]:
        cells = [f"{d['first']} - {d['second']}", str(d["seeds"])]
        for key in ("auc", "accuracy"):
            low, high = d[key]["ci95"]
            cells.append(f"{d[key]['value']:+.5f} [{low:+.5f}, {high:+.5f}]")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def figure(result: dict[str, Any]) -> Figure:
    """Return 1 - AUC of each system against the number of training images, logarithmic on both axes."""
    drawn = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = drawn.subplots()
    names = list(dict.fromkeys(r["system"] for r in result["rows"]))
    for colour, name in enumerate(names):
        sizes = sorted({r["n_per_class"] for r in result["rows"] if r["system"] == name})
        own = [[r for r in result["rows"] if r["system"] == name and r["n_per_class"] == n] for n in sizes]
        miss = [max(1e-6, 1 - float(np.mean([r["auc"]["macro"]["value"] for r in some]))) for some in own]
        axes.plot(
            sizes,
            miss,
            marker="o",
            label=name,
            color=COLOURS[colour % len(COLOURS)],
            linestyle="-" if colour < 5 else "--",
        )
    axes.axhline(1 - 0.9973, color="0.6", linestyle=":", label="best published network (10,000 a class)")
    axes.set(xscale="log", yscale="log", xlabel="training images of each class", ylabel="1 - macro AUC")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    return drawn


if __name__ == "__main__":
    main()
