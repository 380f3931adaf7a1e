"""The study's systems and ours, then the tables: `make reproduce` at full size, which takes days and can be stopped.

Simulates training and test images, trains and judges every recipe that is not done yet, the shortest trainings first,
and adds each to results/. At full size it runs the ablation too. A smaller size gives every recipe a row in an hour:

    python tools/reproduce.py --population deeplense-model-i --n-per-class 1000 --test-per-class 500 \
        --epochs-fraction 0.2 --set data.preprocess.crop=96 --set data.preprocess.bin=2 --no-legacy \
        --set data.augment.kind=dihedral

Without the last, images are moved by the study's affine maps, from which resnet_simple learns less in so few epochs:
its validation AUC ended at 0.79 in place of 0.92.
"""

import argparse
import json
import sys
from pathlib import Path

from commands import ROOT, darklens, run

from darklens.recipes import names
from darklens.training import recipe as recipes
from darklens.training.recipe import Recipe

SEED = 0


def main() -> None:
    given = arguments()
    for name, n_per_class, seed in (("train", given.n_per_class, 1), ("test", given.test_per_class, 2)):
        if not (given.stores / name / "store.json").exists():
            size = ["--n-per-class", str(n_per_class), "--seed", str(seed), "--backend", "compiled"]
            darklens("simulate", given.population, "--out", str(given.stores / name), *size)
    for name in sorted(chosen(given), key=lambda name: sum(epochs(recipes.get(name), given.epochs_fraction))):
        train_and_judge(given, name)
    if given.ablation:
        sizes = ["--n-per-class", str(given.n_per_class), "--test-per-class", str(given.test_per_class)]
        places = [
            "--runs",
            str(given.runs / "ablation"),
            "--out",
            str(ROOT / "results" / given.population / "ablation"),
        ]
        detail = ["--crop", "150", "--bin", "1", "--epochs", "60"]
        tool("ablation", "--population", given.population, *sizes, *detail, *places)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--population", default="common-test-i")
    parser.add_argument("--n-per-class", type=int, default=10_000, help="training images of each class")
    parser.add_argument("--test-per-class", type=int, default=2500)
    parser.add_argument("--epochs-fraction", type=float, default=1.0, help="of each stage of each recipe")
    parser.add_argument(
        "--set", action="append", default=[], help="a change to every recipe, such as data.preprocess.bin=2"
    )
    parser.add_argument("--recipe", action="append", default=[], help="only these; may be given again")
    parser.add_argument("--no-legacy", action="store_true", help="leave the study's own trainings out")
    parser.add_argument("--ablation", action="store_true", help="run the ablation at this size too")
    given = parser.parse_args()
    size = f"{given.n_per_class}-{given.test_per_class}"
    given.stores = ROOT / "stores" / given.population / size
    given.runs = ROOT / "runs" / given.population / size
    return given


def chosen(given: argparse.Namespace) -> list[str]:
    """Return the recipes that train on these images: all that take a store, and those that simulate this population."""
    found = []
    for name in given.recipe or names():
        data = recipes.get(name).data
        if (data.kind == "store" or data.population == given.population) and not (
            given.no_legacy and name.endswith("_legacy")
        ):
            found.append(name)
    return found


def epochs(recipe: Recipe, fraction: float) -> list[int]:
    return [max(1, round(stage.epochs * fraction)) for stage in recipe.stages]


def train_and_judge(given: argparse.Namespace, name: str) -> None:
    recipe, out = recipes.get(name), given.runs / name
    if not (out / "bundle" / "bundle.json").exists():
        changes = [*given.set, *(f"stages.{i}.epochs={n}" for i, n in enumerate(epochs(recipe, given.epochs_fraction)))]
        data = ["--data", str(given.stores / "train")] if recipe.data.kind == "store" else []
        resume = ["--resume"] if (out / "config.yaml").exists() else []
        darklens("train", name, *changes, *data, "--out", str(out), "--seed", str(SEED), *resume)
    if not (out / "test" / "eval.json").exists():
        darklens("evaluate", str(out), str(given.stores / "test"), "--out", str(out / "test"))
    if not is_kept(out / "test", name):
        tool("results", "--add", str(out / "test"), str(SEED))


def is_kept(judged: Path, name: str) -> bool:
    """Tell whether results/ has this very evaluation."""
    evaluation = json.loads((judged / "eval.json").read_text())
    kept = ROOT / "results" / evaluation["data"]["population"] / name / f"seed{SEED}" / "eval.json"
    return kept.exists() and json.loads(kept.read_text()) == evaluation


def tool(name: str, *words: str) -> None:
    run(sys.executable, str(ROOT / "tools" / f"{name}.py"), *words)


if __name__ == "__main__":
    main()
