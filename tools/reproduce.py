"""The study's systems and ours at full size, then the tables: `make reproduce`. It takes days and can be interrupted.

Simulates 10,000 training and 2,500 test images a class of common-test-i, trains and judges every recipe that is not
done yet, the shortest trainings first, adds each to results/, and runs the ablation at the same size.
"""

import sys

from commands import ROOT, darklens, run

from darklens.training import recipe as recipes

POPULATION = "common-test-i"
STORES, RUNS = ROOT / "stores" / POPULATION, ROOT / "runs" / POPULATION
SEED = 0


def main() -> None:
    for name, n_per_class, seed in (("train", 10_000, 1), ("test", 2_500, 2)):
        if not (STORES / name / "store.json").exists():
            size = ["--n-per-class", str(n_per_class), "--seed", str(seed), "--engine", "compiled"]
            darklens("simulate", POPULATION, "--out", str(STORES / name), *size)
    for name in sorted(recipes.names(), key=epochs_of):
        train_and_judge(name)
    sizes = ["--n-per-class", "10000", "--test-per-class", "2500", "--crop", "150", "--bin", "1", "--epochs", "60"]
    places = ["--runs", str(RUNS / "ablation"), "--out", str(ROOT / "results" / POPULATION / "ablation")]
    tool("ablation", "--population", POPULATION, *sizes, *places)


def epochs_of(name: str) -> int:
    return sum(stage.epochs for stage in recipes.get(name).stages)


def train_and_judge(name: str) -> None:
    out = RUNS / name
    if not (out / "bundle" / "bundle.json").exists():
        data = ["--data", str(STORES / "train")] if recipes.get(name).data.kind == "store" else []
        resume = ["--resume"] if (out / "config.yaml").exists() else []
        darklens("train", name, *data, "--out", str(out), "--seed", str(SEED), *resume)
    if not (out / "test" / "eval.json").exists():
        darklens("evaluate", str(out), str(STORES / "test"), "--out", str(out / "test"))
    tool("results", "--add", str(out / "test"), str(SEED))


def tool(name: str, *words: str) -> None:
    run(sys.executable, str(ROOT / "tools" / f"{name}.py"), *words)


if __name__ == "__main__":
    main()
