"""The study's four systems trained its way and ours, on equal images: `python tools/study_table.py`.

Every training sees as many images of classification, of one population and one size, and is judged on one test store.
Trainings that are done are kept and an interrupted one goes on, so the command can be given again. Writes study.json
and study.md, and each eval.json beside them.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from commands import ROOT, darklens

from darklens import __version__, provenance
from darklens.data.store import Store
from darklens.evaluation.compare import format_metric
from darklens.files import write_json, write_text

VALIDATION = 0.1  # of a store, by the recipes
# Epochs of the mended trainings: three of stronger substructure, then the population itself.
CURRICULUM = (2, 2, 2, 6)

# System: the study's recipe with its stages of classification, and the mended recipe with what differs.
SYSTEMS: dict[str, tuple[str, int, str, list[str]]] = {
    "Resnet_simple": ("resnet_simple_legacy", 1, "resnet_simple_curriculum", []),
    "Resnet_18": ("resnet_18_legacy", 2, "resnet_18_curriculum", []),
    "SIS_autoencoder": ("sis_autoencoder_legacy", 1, "sis_autoencoder2_curriculum", ["model.kind=sis_autoencoder"]),
    "SIS_autoencoder2": ("sis_autoencoder2_legacy", 2, "sis_autoencoder2_curriculum", []),
}


def main() -> None:
    given = arguments()
    train, test = given.runs / "stores" / "train", given.test or given.runs / "stores" / "test"
    simulate(given, train, given.n_per_class, 1)
    if given.test is None:
        simulate(given, test, given.test_per_class, 2)
    rows = []
    for system in SYSTEMS:
        for way in ("study", "mended"):
            out = given.runs / system / way
            recipe, settings = choice(given, system, way)
            train_and_judge(given, recipe, settings, train, test, out)
            place = given.out / system / way / "seed0"
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(out / "test" / "eval.json", place / "eval.json")
            evaluation = json.loads((place / "eval.json").read_text())
            rows.append({"system": system, "way": way, "recipe": recipe, "changes": settings, "eval": evaluation})
    kept = ("population", "n_per_class", "epochs", "crop", "bin")
    result = {
        "schema": 1,
        "settings": {name: getattr(given, name) for name in kept} | {"test_images": len(Store(test))},
        "rows": rows,
        "provenance": {"version": __version__, "commit": provenance.commit(), "hardware": provenance.hardware()},
    }
    write_json(given.out / "study.json", result)
    write_text(given.out / "study.md", table(result))
    print(table(result))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--population", default="common-test-i")
    parser.add_argument("--n-per-class", type=int, default=10_000, help="training images of each class")
    parser.add_argument("--test-per-class", type=int, default=2500)
    parser.add_argument("--test", type=Path, help="a test store that is there already")
    parser.add_argument("--epochs", type=int, default=4, help="of classification over the training images")
    parser.add_argument("--override", action="append", default=[], help="of the population, such as field.n_pixels=64")
    parser.add_argument("--backend", default="compiled", choices=["eager", "compiled"], help="that simulates")
    parser.add_argument("--crop", type=int, default=96, help="pixels of the centre that are kept")
    parser.add_argument("--bin", type=int, default=2, help="side of the blocks of pixels that are averaged")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "study", help="stores and trainings")
    parser.add_argument("--out", type=Path, help="by default results/POPULATION/study")
    given = parser.parse_args()
    given.out = given.out or ROOT / "results" / given.population / "study"
    return given


def simulate(given: argparse.Namespace, out: Path, n_per_class: int, seed: int) -> None:
    if not (out / "store.json").exists():
        size = ["--n-per-class", str(n_per_class), "--seed", str(seed), "--backend", given.backend]
        darklens("simulate", given.population, *given.override, "--out", str(out), *size)


def choice(given: argparse.Namespace, system: str, way: str) -> tuple[str, list[str]]:
    """Return a recipe and its overrides, by which both ways see the same number of images."""
    legacy, classifying, mended, changes = SYSTEMS[system]
    common = [f"data.preprocess.crop={given.crop}", f"data.preprocess.bin={given.bin}"]
    reconstructing = system.startswith("SIS")
    if way == "study":
        first = [given.epochs - classifying + 1] + [1] * (classifying - 1)
        epochs = [1, *first] if reconstructing else first
        recipe = legacy
    else:
        of_store = round(3 * given.n_per_class * (1 - VALIDATION))
        per_epoch = of_store * given.epochs // sum(CURRICULUM)
        common += [
            f"data.population={given.population}",
            f"data.backend={given.backend}",
            f"data.images_per_epoch={per_epoch}",
            *changes,
        ]
        epochs = [round(of_store / per_epoch), *CURRICULUM] if reconstructing else list(CURRICULUM)
        recipe = mended
    return recipe, [*common, *(f"stages.{i}.epochs={n}" for i, n in enumerate(epochs))]


def train_and_judge(
    given: argparse.Namespace, recipe: str, settings: list[str], train: Path, test: Path, out: Path
) -> None:
    if not (out / "bundle" / "bundle.json").exists():
        data = ["--data", str(train)] if recipe.endswith("_legacy") else []
        resume = ["--resume"] if (out / "config.yaml").exists() else []
        darklens("train", recipe, *settings, *data, "--out", str(out), "--seed", "0", *resume)
    if not (out / "test" / "eval.json").exists():
        darklens("evaluate", str(out), str(test), "--out", str(out / "test"))


def table(result: dict[str, Any]) -> str:
    s, p = result["settings"], result["provenance"]
    seen = round(3 * s["n_per_class"] * (1 - VALIDATION)) * s["epochs"]
    lines = [
        "# The study's systems trained its way and ours, on equal images",
        "",
        f"`{s['population']}`, the central {s['crop']} pixels in blocks of {s['bin']}; every training saw {seen:,} "
        f"images of classification (the study's: {s['epochs']} epochs of a store of {s['n_per_class']:,} a class, a "
        "tenth kept for validation; mended: the stream, strong substructure first), the SIS systems a quarter as many "
        f"of reconstruction before; {s['test_images']:,} test images, one seed, commit {p['commit']}, {p['hardware']}. "
        "The study itself trained for 200 epochs, far longer than here.",
        "",
        "| system | trained | parameters | macro AUC | no | sphere | vort | accuracy | legacy AUC | training |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in result["rows"]:
        e = row["eval"]
        legacy = e["legacy_auc"]["macro"]
        cells = [
            row["system"],
            "its way, faults included" if row["way"] == "study" else "mended",
            f"{e['model']['parameters'] / 1e6:.2f} M",
            format_metric(e["auc"]["macro"]),
            *(f"{e['auc'][name]['value']:.3f}" for name in ("no", "sphere", "vort")),
            format_metric(e["accuracy"]),
            "-" if legacy is None else f"{legacy:.3f}",
            f"{e['provenance']['train_seconds'] / 60:.0f} min",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
