"""What each part of the physics-informed systems is worth: `python tools/ablation.py`.

Every variant has the same trunk, images, epochs and seeds. Trainings that are done are kept and an interrupted one goes
on, so the command can be given again. Writes ablation.json, ablation.md and ablation.png.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from commands import ROOT, darklens
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from darklens import __version__, provenance
from darklens.data.store import Store
from darklens.evaluation.bootstrap import difference_of_means
from darklens.evaluation.runs import read_run
from darklens.files import atomic_path, write_json, write_text
from darklens.report.figures import COLOURS, to_png

NO_LENS = "no lens step"
ARCSEC = "k in arcsec, learnt"
# Name: recipe and what differs from it.
VARIANTS: dict[str, tuple[str, list[str]]] = {
    NO_LENS: ("resnet_simple", []),
    "k in pixels, frozen (the study)": (
        "sis_autoencoder2",
        ["model.legacy_rounding=true", "model.legacy_pixel_k=true"],
    ),
    ARCSEC: ("sis_autoencoder2", []),
    "with |theta| grad k": ("sis_autoencoder2", ["model.grad_k=exact"]),
    "normalised splat": ("sis_autoencoder2", ["model.reduction=normalised"]),
    "last pixel wins": ("sis_autoencoder", []),
    "gather instead of splat (wrong)": ("sis_autoencoder2", ["model.reduction=gather"]),
    "transformer makes k": ("sis_autoencoder2", ["model.k_network.kind=transformer"]),
}
# Every variant against the first, and these besides.
PAIRS = [
    (ARCSEC, "k in pixels, frozen (the study)"),
    ("with |theta| grad k", ARCSEC),
    ("normalised splat", ARCSEC),
    ("last pixel wins", ARCSEC),
    ("gather instead of splat (wrong)", ARCSEC),
    ("transformer makes k", ARCSEC),
]


def main() -> None:
    given = arguments()
    stores = given.runs / "stores"
    simulate(given, stores / "train", given.n_per_class, 1)
    simulate(given, stores / "test", given.test_per_class, 2)
    for seed in range(given.seeds):
        for name in VARIANTS:
            train_and_judge(given, stores, name, seed)
    labels = Store(stores / "test").labels
    found = {name: [judged(given, name, seed) for seed in range(given.seeds)] for name in VARIANTS}
    result = summary(given, labels, found)
    write_json(given.out / "ablation.json", result)
    write_text(given.out / "ablation.md", table(result))
    with atomic_path(given.out / "ablation.png") as temporary:
        temporary.write_bytes(to_png(figure(result)))
    print(table(result))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--population", default="deeplense-model-i")
    parser.add_argument("--n-per-class", type=int, default=3000, help="training images of each class")
    parser.add_argument("--test-per-class", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10, help="of classification, for every variant")
    parser.add_argument("--reconstruction-epochs", type=int, default=2, help="of the network that makes k, before")
    parser.add_argument("--override", action="append", default=[], help="of the population, such as field.n_pixels=64")
    parser.add_argument("--crop", type=int, default=96, help="pixels of the centre that are kept")
    parser.add_argument("--bin", type=int, default=2, help="side of the blocks of pixels that are averaged")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "ablation", help="stores and trainings")
    parser.add_argument("--out", type=Path, help="by default results/POPULATION/ablation")
    given = parser.parse_args()
    given.out = given.out or ROOT / "results" / given.population / "ablation"
    return given


def simulate(given: argparse.Namespace, out: Path, n_per_class: int, seed: int) -> None:
    if not (out / "store.json").exists():
        size = ["--n-per-class", str(n_per_class), "--seed", str(seed)]
        darklens("simulate", given.population, *given.override, "--out", str(out), *size)


def settings(given: argparse.Namespace, name: str) -> list[str]:
    recipe, changes = VARIANTS[name]
    common = [f"data.preprocess.crop={given.crop}", f"data.preprocess.bin={given.bin}", "data.augment.kind=dihedral"]
    if recipe == "resnet_simple":
        return [*common, "model.dropout=0", f"stages.0.epochs={given.epochs}", *changes]
    stages = [f"stages.0.epochs={given.reconstruction_epochs}", f"stages.1.epochs={given.epochs}"]
    return [*common, "model.classifier.dropout=0", *stages, *changes]


def place(given: argparse.Namespace, name: str, seed: int) -> Path:
    words = "".join(letter if letter.isalnum() else " " for letter in name).split()
    return Path(given.runs / "-".join(words) / f"seed{seed}")


def train_and_judge(given: argparse.Namespace, stores: Path, name: str, seed: int) -> None:
    run = place(given, name, seed)
    if not (run / "bundle" / "bundle.json").exists():
        resume = ["--resume"] if (run / "config.yaml").exists() else []
        where = ["--data", str(stores / "train"), "--out", str(run), "--seed", str(seed)]
        darklens("train", VARIANTS[name][0], *settings(given, name), *where, *resume)
    if not (run / "test" / "eval.json").exists():
        darklens("evaluate", str(run), str(stores / "test"), "--out", str(run / "test"))


def judged(given: argparse.Namespace, name: str, seed: int) -> Any:
    return read_run(place(given, name, seed) / "test")


def summary(given: argparse.Namespace, labels: np.ndarray, found: dict[str, list[Any]]) -> dict[str, Any]:
    variants = []
    for name, trainings in found.items():
        aucs = [t.evaluation["auc"]["macro"]["value"] for t in trainings]
        variants.append(
            {
                "name": name,
                "recipe": VARIANTS[name][0],
                "changes": VARIANTS[name][1],
                "parameters": trainings[0].evaluation["model"]["parameters"],
                "macro_auc": aucs,
                "accuracy": [t.evaluation["accuracy"]["value"] for t in trainings],
                "train_seconds": [t.evaluation["provenance"]["train_seconds"] for t in trainings],
            }
        )
    pairs = [(name, NO_LENS) for name in found if name != NO_LENS]
    differences = []
    for first, second in [*pairs, *PAIRS]:
        probabilities = [[t.probabilities for t in found[name]] for name in (first, second)]
        by_metric = difference_of_means(labels, *probabilities)
        differences.append({"first": first, "second": second, **{k: by_metric[k] for k in ("auc", "accuracy")}})
    kept = ("population", "n_per_class", "test_per_class", "seeds", "epochs", "reconstruction_epochs", "crop", "bin")
    return {
        "schema": 1,
        "settings": {name: getattr(given, name) for name in kept},
        "variants": variants,
        "differences": differences,
        "provenance": {
            "version": __version__,
            "commit": provenance.commit(),
            "hardware": provenance.hardware(),
        },
    }


def table(result: dict[str, Any]) -> str:
    s, p = result["settings"], result["provenance"]
    lines = [
        "# What each part of the lens step is worth",
        "",
        f"`{s['population']}`, {s['n_per_class']:,} training and {s['test_per_class']:,} test images a class, the "
        f"central {s['crop']} pixels in blocks of {s['bin']}, {s['epochs']} epochs of classification "
        f"({s['reconstruction_epochs']} of reconstruction before, where there is a network that makes k), {s['seeds']} "
        f"seeds; commit {p['commit']}, {p['hardware']}. Brackets: 95 % paired bootstrap over test images and seeds.",
        "",
        "| variant | parameters | macro AUC, mean (each seed) | against no lens step | p |",
        "| --- | --- | --- | --- | --- |",
    ]
    against = {d["first"]: d["auc"] for d in result["differences"] if d["second"] == NO_LENS}
    for v in result["variants"]:
        each = ", ".join(f"{auc:.4f}" for auc in v["macro_auc"])
        difference, p_value = ("", "") if v["name"] == NO_LENS else _difference(against[v["name"]])
        mean = f"{np.mean(v['macro_auc']):.4f} ({each})"
        lines.append(f"| {v['name']} | {v['parameters'] / 1e6:.2f} M | {mean} | {difference} | {p_value} |")
    lines += ["", "| difference | macro AUC | p |", "| --- | --- | --- |"]
    for d in result["differences"]:
        if d["second"] != NO_LENS:
            difference, p_value = _difference(d["auc"])
            lines.append(f"| {d['first']} - {d['second']} | {difference} | {p_value} |")
    return "\n".join(lines).replace("|theta|", "\\|theta\\|") + "\n"


def _difference(found: dict[str, Any]) -> tuple[str, str]:
    low, high = found["ci95"]
    return f"{found['value']:+.4f} [{low:+.4f}, {high:+.4f}]", f"{found['p']:.3f}"


def figure(result: dict[str, Any]) -> Figure:
    """Return a dot for each training and, beside it, each variant's difference from no lens step."""
    variants = result["variants"]
    drawn = Figure(figsize=(9.5, 0.5 * len(variants) + 1.6), layout="constrained")
    left, right = drawn.subplots(1, 2, sharey=True)
    against = {d["first"]: d["auc"] for d in result["differences"] if d["second"] == NO_LENS}
    for y, v in enumerate(variants):
        left.plot(v["macro_auc"], [y] * len(v["macro_auc"]), "o", color=COLOURS[0], alpha=0.5, markersize=6)
        left.plot([np.mean(v["macro_auc"])], [y], "|", color="black", markersize=18)
        if v["name"] in against:
            found = against[v["name"]]
            low, high = found["ci95"]
            spread = [[max(0.0, found["value"] - low)], [max(0.0, high - found["value"])]]
            right.errorbar([found["value"]], [y], xerr=spread, fmt="o", color=COLOURS[1], capsize=3)
    right.axvline(0, color="0.6", linewidth=1, linestyle=":")
    left.set(yticks=range(len(variants)), yticklabels=[v["name"] for v in variants], xlabel="macro AUC (dot: one seed)")
    right.set(xlabel="difference from no lens step")
    right.xaxis.set_major_locator(MaxNLocator(5))
    left.invert_yaxis()
    for axes in (left, right):
        axes.grid(axis="x", alpha=0.3)
    return drawn


if __name__ == "__main__":
    main()
