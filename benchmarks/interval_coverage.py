"""How often the 95 % intervals of `darklens evaluate` hold the truth: `python benchmarks/interval_coverage.py`.

An experiment draws test images of three classes, whose logits are normal with unit scatter about `skill` for the true
class and zero for the others, times `sharpness`: at sharpness = skill the probabilities are the true ones, beyond it
they are overconfident. The truth is the metric of 600,000 such images. Writes results/coverage.json; some ten minutes.
"""

import argparse
from pathlib import Path

import numpy as np

from darklens import provenance, rng
from darklens.evaluation.bootstrap import bootstrap, percentile_interval, scalar_metrics
from darklens.evaluation.intervals import metric_with_interval
from darklens.files import write_json

SYSTEMS = {
    "fair, overconfident": {"skill": 1.5, "sharpness": 3.0},
    "good, calibrated": {"skill": 2.2, "sharpness": 2.2},
    "strong, calibrated": {"skill": 3.0, "sharpness": 3.0},
}
TRUTH_IMAGES = 600_000


def sample(n, *address, skill, sharpness):
    labels = np.arange(n) % 3
    logits = sharpness * (rng.generator(0, *address).normal(size=(n, 3)) + skill * np.eye(3)[labels])
    p = np.exp(logits - logits.max(1, keepdims=True))
    return labels, p / p.sum(1, keepdims=True)


def covered(experiments, n, resamples, system):
    """Return for each metric its truth, and how often intervals and plain bootstrap percentiles hold it."""
    truth = scalar_metrics(*sample(TRUTH_IMAGES, "truth", **system))
    ours, percentiles, total = (dict.fromkeys(truth, 0.0) for _ in range(3))
    for k in range(experiments):
        labels, p = sample(n, "experiment", k, **system)
        values, drawn = scalar_metrics(labels, p), bootstrap(labels, p, seed=k, resamples=resamples)
        for name, true in truth.items():
            low, high = metric_with_interval(name, values[name], drawn[name], labels, p)["ci95"]
            ours[name] += low <= true <= high
            low, high = percentile_interval(drawn[name])
            percentiles[name] += low <= true <= high
            total[name] += values[name]
    return {
        name: {
            "truth": true,
            "mean_estimate": total[name] / experiments,
            "covered": ours[name] / experiments,
            "covered_by_percentiles": percentiles[name] / experiments,
        }
        for name, true in truth.items()
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiments", type=int, default=1000)
    parser.add_argument("--images", type=int, default=300, help="of each experiment, three classes together")
    parser.add_argument("--resamples", type=int, default=500)
    parser.add_argument("--json", type=Path, default=Path("results/coverage.json"))
    given = parser.parse_args()
    found = {
        name: {**system, "metrics": covered(given.experiments, given.images, given.resamples, system)}
        for name, system in SYSTEMS.items()
    }
    settings = {"experiments": given.experiments, "images": given.images, "resamples": given.resamples}
    about = {"schema": 1, "commit": provenance.commit(), "hardware": provenance.hardware(), **settings}
    write_json(given.json, {**about, "truth_images": TRUTH_IMAGES, "systems": found})
    for name, entry in found.items():
        print(name)
        for metric, m in entry["metrics"].items():
            print(
                f"  {metric:20s} truth {m['truth']:.4f}  covered {m['covered']:.3f}  "
                f"percentiles {m['covered_by_percentiles']:.3f}"
            )


if __name__ == "__main__":
    main()
