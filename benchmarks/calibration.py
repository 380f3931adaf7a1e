"""ECE and coverage before and after calibration on fresh images: `python benchmarks/calibration.py RUN ...`.

Each classifier is calibrated on one new simulation of its population and judged on another. The calibration error of
binned confidences is not zero for a perfect classifier; what it would be is estimated by drawing labels from the
probabilities. Writes results/calibration/calibration.{json,md}. The trainings of the table there:

    python tools/reproduce.py --population deeplense-model-i --n-per-class 4000 --test-per-class 2500 \
        --epochs-fraction 0.2 --set data.preprocess.crop=96 --set data.preprocess.bin=2 \
        --set data.augment.kind=dihedral --no-legacy --recipe resnet_simple --recipe sis_autoencoder \
        --recipe sis_autoencoder2 --recipe two_stage --recipe resnet_18
    python benchmarks/calibration.py runs/deeplense-model-i/4000-2500/*
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from darklens import __version__, populations, provenance
from darklens.bundle import Bundle
from darklens.calibration import softmax
from darklens.data.store import Store
from darklens.evaluation import conformal, metrics
from darklens.evaluation.calibrate import calibrate_on
from darklens.executors import usable_cores
from darklens.files import write_json, write_text
from darklens.simulate.generate import generate

ROOT = Path(__file__).resolve().parent.parent
SEEDS = {"held-out": 301, "fresh": 302}
DRAWS = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", help="runs, bundles or shipped models")
    parser.add_argument("--held-out", type=int, default=2000, help="images a class to calibrate on")
    parser.add_argument("--fresh", type=int, default=4000, help="images a class to judge on")
    parser.add_argument("--stores", type=Path, default=ROOT / "stores" / "calibration")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "calibration")
    given = parser.parse_args()
    rows = []
    for name in given.models:
        bundle = Bundle.load(name)
        population = bundle.contract.data["population"]
        sizes = {"held-out": given.held_out, "fresh": given.fresh}
        held_out, fresh = (store(given.stores, population, part, n) for part, n in sizes.items())
        rows.append(judged(bundle, held_out, fresh))
        print(rows[-1], flush=True)
    result = {
        "schema": 1,
        "rows": rows,
        "provenance": {"version": __version__, "commit": provenance.commit(), "hardware": provenance.hardware()},
    }
    write_json(given.out / "calibration.json", result)
    write_text(given.out / "calibration.md", table(result))
    print(table(result))


def store(folder: Path, population: str, part: str, n: int) -> Store:
    path = folder / population / f"{part}-{n}"
    if not (path / "store.json").exists():
        generate(populations.get(population), path, n_per_class=n, seed=SEEDS[part], workers=usable_cores())
    return Store(path)


def judged(bundle: Bundle, held_out: Store, fresh: Store) -> dict[str, Any]:
    calibrated = calibrate_on(bundle, held_out, workers=usable_cores())
    record = calibrated.contract.calibration
    assert record is not None
    curved = calibrate_on(bundle, held_out, method="isotonic", workers=usable_cores()).contract.calibration
    assert curved is not None
    logits, labels = bundle.outputs_of(fresh, workers=usable_cores()).logits, fresh.labels
    raw, after = softmax(logits), record.probabilities(logits)
    g = np.random.default_rng(0)
    drawn = [(g.random((len(after), 1)) > after.cumsum(1)).sum(1).clip(max=after.shape[1] - 1) for _ in range(DRAWS)]
    coverage = conformal.summarise_sets(after, labels, record.conformal)
    return {
        "recipe": bundle.contract.recipe,
        "population": fresh.population_name,
        "held_out": len(held_out),
        "fresh": len(fresh),
        "macro_auc": metrics.macro_auc(labels, after),
        "temperature": record.temperature,
        "ece_without": metrics.calibration_error(labels, raw),
        "ece": metrics.calibration_error(labels, after),
        "ece_isotonic": metrics.calibration_error(labels, curved.probabilities(logits)),
        "ece_if_perfect": float(np.mean([metrics.calibration_error(y, after) for y in drawn])),
        "coverage": {kind: coverage[0][kind]["coverage"] for kind in ("lac", "lac_by_class", "aps")},
    }


def table(result: dict[str, Any]) -> str:
    p = result["provenance"]
    lines = [
        "# Calibration on fresh images",
        "",
        f"Made by `python benchmarks/calibration.py`, commit {p['commit']}, {p['hardware']}. ECE in 15 bins of equal "
        "numbers of images; `with curves` after `--method isotonic`; "
        "`if perfect` is the mean ECE of labels drawn from the probabilities, the least that can be "
        "seen with so many images. Coverage is of sets that were promised to hold the true class in 90 %.",
        "",
        "| system | population | held-out, fresh images | macro AUC | temperature | ECE without | ECE | with curves "
        "| if perfect | coverage: LAC | by class | APS |",
        "|" + " --- |" * 12,
    ]
    for r in result["rows"]:
        numbers = [f"{r['macro_auc']:.4f}", f"{r['temperature']:.3f}"]
        numbers += [f"{r[key]:.4f}" for key in ("ece_without", "ece", "ece_isotonic", "ece_if_perfect")]
        numbers += [f"{v:.3f}" for v in r["coverage"].values()]
        cells = [r["recipe"], r["population"], f"{r['held_out']:,}, {r['fresh']:,}", *numbers]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
