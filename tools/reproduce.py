"""The study's systems and ours at full size, then the tables: `make reproduce`. It takes days and can be interrupted.

Simulates 10,000 training and 2,500 test images a class of common-test-i, trains and judges every recipe that is not
done yet, the shortest trainings first, adds each to results/, and runs the ablation at the same size.
"""

import subprocess
import sys
from pathlib import Path

from darklens.training import recipe as recipes

ROOT = Path(__file__).resolve().parent.parent
PYTHON, DARKLENS = Path(sys.executable), Path(sys.executable).with_name("darklens")
POPULATION = "common-test-i"
STORES, RUNS = ROOT / "stores" / POPULATION, ROOT / "runs" / POPULATION
SEED = 0


def main() -> None:
    for name, n_per_class, seed in (("train", 10_000, 1), ("test", 2_500, 2)):
        if not (STORES / name / "store.json").exists():
            size = ["--n-per-class", str(n_per_class), "--seed", str(seed), "--engine", "compiled"]
            run(DARKLENS, "simulate", POPULATION, "--out", STORES / name, *size)
    for name in sorted(recipes.names(), key=epochs_of):
        train_and_judge(name)
    sizes = ["--n-per-class", "10000", "--test-per-class", "2500", "--crop", "150", "--bin", "1", "--epochs", "60"]
    places = ["--runs", RUNS / "ablation", "--out", ROOT / "results" / POPULATION / "ablation"]
    run(PYTHON, ROOT / "tools" / "ablation.py", "--population", POPULATION, *sizes, *places)


def epochs_of(name: str) -> int:
    return sum(stage.epochs for stage in recipes.get(name).stages)


def train_and_judge(name: str) -> None:
    out = RUNS / name
    if not (out / "bundle" / "bundle.json").exists():
        data = ["--data", STORES / "train"] if recipes.get(name).data.kind == "store" else []
        resume = ["--resume"] if (out / "config.yaml").exists() else []
        run(DARKLENS, "train", name, *data, "--out", out, "--seed", str(SEED), *resume)
    if not (out / "test" / "eval.json").exists():
        run(DARKLENS, "evaluate", out, STORES / "test", "--out", out / "test")
    run(PYTHON, ROOT / "tools" / "results.py", "--add", out / "test", str(SEED))


def run(*words: str | Path) -> None:
    print(f"$ {' '.join(str(word) for word in words)}", flush=True)
    finished = subprocess.run(words, cwd=ROOT, check=False)
    if finished.returncode:
        sys.exit(
            f"Stopped: that command ended with exit code {finished.returncode}. Give `make reproduce` again to go on."
        )


if __name__ == "__main__":
    main()
