"""The main job from start to report, as a user would type it: simulate, train, evaluate, predict, compare."""

import json
import os
import shutil
import subprocess
import sys
import time
import webbrowser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DARKLENS = Path(sys.executable).with_name("darklens")
DEMO = ROOT / "demo"

POPULATION = "common-test-i"
# A classifier of lens fits and a network on raw images. Flips and quarter turns of images are exact.
SYSTEMS = {
    "lens_residual": ["stages.0.batch_size=32", "model.centred=true"],  # true of this population, and faster
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
        step(f"Train {recipe} and evaluate it on the test lenses")
        run, results = f"demo/runs/{recipe}", f"demo/results/{recipe}"
        darklens("train", recipe, *overrides, "--data", "demo/train", "--out", run)
        darklens("evaluate", run, "demo/test", "--out", results)
    best = max(SYSTEMS, key=macro_auc)
    step("Classify single image files")
    maps = ["--maps", "demo/maps"] if best == "lens_residual" else []
    darklens("predict", f"demo/runs/{best}", f"examples/{POPULATION}", "--out", "demo/predictions.csv", *maps)
    step("Compare")
    all_results = [f"demo/results/{recipe}" for recipe in SYSTEMS]
    darklens("compare", *all_results, "--out", "demo/comparison", "--predictions", "demo/predictions.csv")
    report = DEMO / "comparison" / "report.html"
    print(f"\nDone in {(time.perf_counter() - started) / 60:.1f} minutes. The report: {report}")
    print(f"Classify your own images: .venv/bin/darklens predict demo/runs/{best} YOUR_IMAGES --out predictions.csv")
    if os.environ.get("DISPLAY") or sys.platform in ("darwin", "win32"):
        webbrowser.open(report.as_uri())


def darklens(*words: str) -> None:
    """Run a command at the root of the repository; stop with one sentence if it fails."""
    print(f"\n$ {' '.join(['darklens', *words])}", flush=True)
    code = subprocess.run([DARKLENS, *words], cwd=ROOT, check=False).returncode
    if code:
        sys.exit(f"Stopped: that command ended with exit code {code}.")


def macro_auc(recipe: str) -> float:
    evaluation = json.loads((DEMO / "results" / recipe / "eval.json").read_text())
    return float(evaluation["auc"]["macro"]["value"])


def step(title: str) -> None:
    print(f"\n== {title}", flush=True)


if __name__ == "__main__":
    main()
