"""Does the leak hunter find what it should and keep silent otherwise?

    python benchmarks/leaks.py [--populations]

Planted: common-test-i without substructure in any class, but theta_E of one class scaled by 1.02 (its prior scaled,
which is the same). Clean: the same without scaling. Every experiment is of images of its own; only the rate of false
alarms is also measured on more labels than there are images, by permuting labels, which is just what a clean store is.
The bound is the same test given the true theta_E and nothing else.

With --populations the built-in populations as they are: what of their classes shows without looking at substructure.
Writes results/leaks/leaks.json and leaks.md.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from darklens import __version__, populations, provenance
from darklens.doctor.leaks import ALPHA, PERMUTATIONS, auc_with_interval, leaks
from darklens.doctor.statistics import STATISTICS, measure
from darklens.files import read_json, write_json, write_text
from darklens.populations.population import ThetaEOfMass
from darklens.populations.priors import Constant
from darklens.simulate.batch import simulate_batch

OUT = Path(__file__).parent.parent / "results" / "leaks"
NAMES, USUAL = [s.name for s in STATISTICS], {s.name for s in STATISTICS if s.usual}
SEEDS, SCALE, BLOCK = 20, 1.02, 60
N = 2000


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--populations", action="store_true", help="judge the built-in populations instead")
    parser.add_argument("--images", type=int, default=2000, help="of a class, of the built-in populations")
    parser.add_argument("--keep", type=Path, help="folder in which statistics are kept and found again")
    given = parser.parse_args()
    torch.set_num_threads(1)
    path = OUT / "leaks.json"
    result = read_json(path) if path.exists() else {"schema": 1}
    if given.populations:
        result["populations"] = {name: as_it_is(name, given.images, given.keep) for name in populations.names()}
    else:
        result |= {"alpha": ALPHA, "permutations": PERMUTATIONS, "scale": SCALE, **experiments(given.keep)}
    result["provenance"] = {"version": __version__, "commit": provenance.commit(), "hardware": provenance.hardware()}
    write_json(path, result)
    write_text(OUT / "leaks.md", to_markdown(result))


def experiments(keep):
    common = smooth("common-test-i")
    clean, planted = pool(common, 11, SEEDS * N, keep), pool(scaled(common), 12, SEEDS * (N // 3 + 1), keep)
    fixed = smooth("deeplense-model-i-corrected")
    few = 5
    few_clean, few_planted = pool(fixed, 13, few * N, keep), pool(scaled(fixed), 14, few * (N // 3 + 1), keep)
    return {
        "common-test-i": {
            "theta_E": {"mean": 1.28, "sigma": 0.15, "correlation_with_ring_radius": correlation(clean)},
            "clean": clean_runs(clean, N, SEEDS),
            "clean_by_permutation": permuted(clean, N, 200),
            "planted": [planted_runs(clean, planted, n) for n in (1000, N, 3000, 4000, 3 * N)],
        },
        "deeplense-model-i-corrected": {
            "theta_E": {"mean": fixed.lens.theta_E.theta_E(), "sigma": 0.0},
            "planted": [planted_runs(few_clean, few_planted, N)],
        },
    }


def smooth(name):
    """Return a population whose classes all are smooth lenses: labels without meaning."""
    population = populations.get(name)
    return population.model_copy(update={"classes": dict.fromkeys(population.classes, population.classes["no"])})


def scaled(population):
    """Return the population with every theta_E scaled."""
    prior = population.lens.theta_E
    if isinstance(prior, ThetaEOfMass):
        longer = Constant(value=prior.theta_E() * SCALE)
    else:
        longer = prior.model_copy(update={k: getattr(prior, k) * SCALE for k in ("mean", "sigma", "low", "high")})
    return population.model_copy(update={"lens": population.lens.model_copy(update={"theta_E": longer})})


def pool(population, seed, n, keep):
    """Simulate n images and return their statistics (n, s) and true theta_E (n,); no image is kept."""
    kept = keep and keep / f"{population.name}-{seed}-{n}.npz"
    if kept and kept.exists():
        with np.load(kept) as found:
            return found["values"], found["theta_E"]
    began, values, theta_E = time.perf_counter(), [], []
    for start in range(0, n, BLOCK):
        images, truth = simulate_batch(population, seed, range(start, min(start + BLOCK, n)))
        values.append(measure(images, pixel_scale=population.field.pixel_scale))
        theta_E.append(truth["theta_E"])
    print(f"{population.name}: {n} images, {(time.perf_counter() - began) / n * 1e3:.1f} ms each", flush=True)
    values, theta_E = np.concatenate(values), np.concatenate(theta_E)
    if kept:
        keep.mkdir(parents=True, exist_ok=True)
        np.savez(kept, values=values, theta_E=theta_E)
    return values, theta_E


def correlation(found):
    return float(np.corrcoef(found[0][:, NAMES.index("ring radius")], found[1])[0, 1])


def clean_runs(found, n, seeds):
    """Judge disjoint parts of a clean pool."""
    p = [leaks(found[0][i * n : (i + 1) * n], NAMES, np.arange(n) % 3, usual=USUAL, seed=i)[0].p for i in range(seeds)]
    return {"n": n, "seeds": seeds, "silent": sum(v > ALPHA for v in p), "smallest_p": p}


def permuted(found, n, runs):
    """Judge the first images under labels drawn anew."""
    labels = [np.random.default_rng(run).permutation(n) % 3 for run in range(runs)]
    p = [leaks(found[0][:n], NAMES, own, usual=USUAL, seed=run)[0].p for run, own in enumerate(labels)]
    return {"n": n, "runs": runs, "silent": sum(v > ALPHA for v in p), "silent_at_0.05": sum(v > 0.05 for v in p)}


def planted_runs(clean, planted, n):
    """Judge disjoint experiments of n images in which the second of three classes is the scaled one."""
    third = n // 3
    runs = min(len(planted[0]) // third, len(clean[0]) // (n - third), SEEDS)
    found, ring, bound, aucs = 0, 0, 0, []
    for run in range(runs):
        own, other = slice(run * third, (run + 1) * third), slice(run * (n - third), (run + 1) * (n - third))
        values = np.concatenate([clean[0][other], planted[0][own]])
        labels = np.concatenate([2 * (np.arange(n - third) % 2), np.ones(third, dtype=np.int64)])
        judged = leaks(values, NAMES, labels, usual=USUAL, seed=run)
        by_ring = [
            leak for leak in judged if leak.statistic == "ring radius" and leak.label == 1 and leak.by == "value"
        ]
        found += any(leak.is_significant and leak.label == 1 for leak in judged)
        ring += by_ring[0].found
        aucs.append(auc_with_interval(labels == 1, values[:, NAMES.index("ring radius")])[0])
        if np.ptp(clean[1]):
            theta_E = np.concatenate([clean[1][other], planted[1][own]])[:, None]
            bound += any(leak.is_significant for leak in leaks(theta_E, ["theta_E"], labels, seed=run))
    return {
        "n": n,
        "n_per_class": third,
        "runs": runs,
        "found": found,
        "found_by_ring_radius": ring,
        "found_from_true_theta_E_alone": bound if np.ptp(clean[1]) else None,
        "auc_of_ring_radius": float(np.mean(aucs)),
    }


def as_it_is(name, n_per_class, keep):
    population = populations.get(name)
    n = n_per_class * len(population.classes)
    values, _ = pool(population, 15, n, keep)
    names = population.class_names
    judged = leaks(values, NAMES, np.arange(n) % len(names), usual=USUAL)
    together = {leak.label: leak for leak in judged if leak.by == "all"}
    shown = {}
    for leak in judged:
        if leak.is_significant and leak.by != "all":
            shown.setdefault(leak.statistic, leak.as_dict(names))
    return {
        "n_per_class": n_per_class,
        "version": population.version,
        "conserve_mass": population.conserve_mass,
        "all_together": [together[i].as_dict(names) for i in sorted(together)],
        "found": list(shown.values()),
    }


def to_markdown(result):
    lines = ["# The leak hunter", "", "Made by `python benchmarks/leaks.py` and `--populations`.", ""]
    for name in ("common-test-i", "deeplense-model-i-corrected"):
        if name not in result:
            continue
        own = result[name]
        lines += [f"## {name}, smooth lenses only", ""]
        mean, sigma = own["theta_E"]["mean"], own["theta_E"]["sigma"]
        hidden = f"; {SCALE - 1:.0%} of it are {(SCALE - 1) * mean / sigma:.2f} standard deviations" if sigma else ""
        lines += [f"theta_E {mean:.3f} +- {sigma:.2f} arcsec{hidden}.", ""]
        if "clean" in own:
            c, p = own["clean"], own["clean_by_permutation"]
            lines += [
                f"Clean, n = {c['n']}: silent in {c['silent']} of {c['seeds']} seeds, all of images of their own; "
                f"in {p['silent']} of {p['runs']} permutations of the labels of {p['n']} images (warning at p <= 0.05 "
                f"instead of {result['alpha']:g}: {p['silent_at_0.05']}).",
                "",
            ]
        lines += [
            f"theta_E of one class of three scaled by {result['scale']}:",
            "",
            "| images | of each class | found | by ring radius | by the true theta_E alone | AUC of ring radius |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for r in own["planted"]:
            of = f"of {r['runs']}"
            bound = "" if r["found_from_true_theta_E_alone"] is None else f"{r['found_from_true_theta_E_alone']} {of}"
            lines.append(
                f"| {r['n']} | {r['n_per_class']} | {r['found']} {of} | {r['found_by_ring_radius']} {of} | {bound} "
                f"| {r['auc_of_ring_radius']:.3f} |"
            )
        lines.append("")
    if "populations" in result:
        lines += [
            "## The built-in populations as they are",
            "",
            "AUC of all statistics together, one class against the rest, and the statistics that tell a class by "
            "themselves.",
            "",
            "| population | images of each class | mass conserved | all together | alone |",
            "| --- | --- | --- | --- | --- |",
        ]
        for name, r in result["populations"].items():
            together = ", ".join(
                f"{t['class']} {t['auc']['value']:.3f}" + ("" if t["found"] else " (chance)") for t in r["all_together"]
            )
            alone = ", ".join(f"{t['statistic']}: {t['class']} {t['auc']['value']:.3f}" for t in r["found"]) or "none"
            lines.append(
                f"| {name} | {r['n_per_class']} | {'yes' if r['conserve_mass'] else 'no'} | {together} | {alone} |"
            )
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
