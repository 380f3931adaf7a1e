"""The main job from start to report, as a user would type it: simulate, train, evaluate, predict, compare."""

import json
import os
import shutil
import sys
import time
import webbrowser

from commands import ROOT, darklens

DEMO = ROOT / "demo"

POPULATION = "common-test-i"
# The fits of lens_residual, and beside it a network on the raw images; flips and quarter turns are exact.
SYSTEMS = {
    "lens_residual": ["stages.0.batch_size=32", "model.centred=true"],  # as its lenses are: faster
    "resnet_simple": [
        *("data.preprocess.crop=96", "data.augment.kind=dihedral"),
        *("model.dropout=0", "stages.0.batch_size=32", "stages.0.epochs=12"),
    ],
}


def main() -> None:
    started = time.perf_counter()
    shutil.rmtree(DEMO, ignore_errors=True)
    step("Simulate 500 training and 250 test lenses of each class")
    darklens("simulate", POPULATION, "--out", "demo/train", "--n-per-class", "500", "--seed", "1")
    darklens("simulate", POPULATION, "--out", "demo/test", "--n-per-class", "250", "--seed", "2")
    for recipe, overrides in SYSTEMS.items():
        step(f"Train {recipe} and judge it on the test lenses")
        run, judged = f"demo/runs/{recipe}", f"demo/results/{recipe}"
        darklens("train", recipe, *overrides, "--data", "demo/train", "--out", run)
        darklens("evaluate", run, "demo/test", "--out", judged)
    best = max(SYSTEMS, key=macro_auc)
    step("Classify single image files")
    maps = ["--maps", "demo/maps"] if best == "lens_residual" else []
    darklens("predict", f"demo/runs/{best}", f"examples/{POPULATION}", "--out", "demo/predictions.csv", *maps)
    step("Compare")
    judged_all = [f"demo/results/{recipe}" for recipe in SYSTEMS]
    darklens("compare", *judged_all, "--out", "demo/comparison", "--predictions", "demo/predictions.csv")
    report = DEMO / "comparison" / "report.html"
    print(f"\nDone in {(time.perf_counter() - started) / 60:.1f} minutes. The report: {report}")
    print(f"Classify your own images: .venv/bin/darklens predict demo/runs/{best} YOUR_IMAGES --out predictions.csv")
    if os.environ.get("DISPLAY") or sys.platform in ("darwin", "win32"):
        webbrowser.open(report.as_uri())


def macro_auc(recipe: str) -> float:
    evaluation = json.loads((DEMO / "results" / recipe / "eval.json").read_text())
    return float(evaluation["auc"]["macro"]["value"])


def step(title: str) -> None:
    print(f"\n== {title}", flush=True)


if __name__ == "__main__":
    main()
