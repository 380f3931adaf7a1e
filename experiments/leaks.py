"""Whether `doctor` finds leaks that were planted, stays silent without any, and what it says of our populations."""

import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from darklens import populations
from darklens.doctor.leaks import ALPHA, PERMUTATIONS, Leak, auc_with_interval, leaks
from darklens.doctor.statistics import STATISTICS, measure
from darklens.populations.population import Population, ThetaEOfMass
from darklens.populations.priors import Constant
from darklens.simulate.batch import simulate_batch
from experiments import engine
from experiments.engine import Experiment, Work

NAMES, USUAL = [s.name for s in STATISTICS], {s.name for s in STATISTICS if s.usual}
RING, BLOCK = NAMES.index("ring radius"), 60


class Config(Experiment):
    """Smooth lenses alone, with and without a scaled theta_E in one class; and the built-in populations as they are.

    Every run has images of its own; only the rate of false alarms is also measured with permuted labels, of which
    there are more than images. The bound is the same test with the true theta_E and nothing else.

    Attributes:
        scale: Of theta_E in the planted class.
        n: Images of a run; `planted` are further numbers, of `common-test-i` with a leak.
        runs: Of each number of images, at most; `few_runs` of the population with one theta_E.
        n_per_class: Images of the built-in populations, of which `only` chooses some.
    """

    scale: float
    n: int
    planted: list[int]
    runs: int
    few_runs: int
    permutations: int
    n_per_class: int
    only: list[str] = []


class Pool(NamedTuple):
    """Statistics (n, s) and true theta_E (n,) of images, none of which is kept."""

    values: np.ndarray
    theta_E: np.ndarray


def run(config: Config, work: Work) -> dict[str, Any]:
    """Plant leaks, look for them, and look at the populations."""
    torch.set_num_threads(1)
    n, third = config.n, config.n // 3 + 1
    common, fixed = smooth("common-test-i"), smooth("deeplense-model-i-corrected")
    clean = pool(work, common, 11, config.runs * n)
    planted = pool(work, scaled(common, config.scale), 12, config.runs * third)
    few_clean = pool(work, fixed, 13, config.few_runs * n)
    few_planted = pool(work, scaled(fixed, config.scale), 14, config.few_runs * third)
    correlation = float(np.corrcoef(clean.values[:, RING], clean.theta_E)[0, 1])
    sizes = sorted({*config.planted, n})
    return {
        "schema": 1,
        "alpha": ALPHA,
        "permutations": PERMUTATIONS,
        "scale": config.scale,
        "common-test-i": {
            "theta_E": {"mean": 1.28, "sigma": 0.15, "correlation_with_ring_radius": correlation},
            "clean": clean_runs(clean, n, config.runs),
            "clean_by_permutation": permuted(clean, n, config.permutations),
            "planted": [planted_runs(clean, planted, size, config.runs) for size in sizes],
        },
        "deeplense-model-i-corrected": {
            "theta_E": {"mean": fixed.lens.theta_E.theta_E(), "sigma": 0.0},
            "planted": [planted_runs(few_clean, few_planted, n, config.runs)],
        },
        "populations": {name: unchanged(work, name, config.n_per_class) for name in config.only or populations.names()},
        "provenance": engine.made_by(),
    }


def smooth(name: str) -> Population:
    """Return a population whose classes all are smooth lenses: labels without meaning."""
    population = populations.get(name)
    return population.model_copy(update={"classes": dict.fromkeys(population.classes, population.classes["no"])})


def scaled(population: Population, scale: float) -> Population:
    """Return the population with every theta_E scaled."""
    prior = population.lens.theta_E
    if isinstance(prior, ThetaEOfMass):
        longer = Constant(value=prior.theta_E() * scale)
    else:
        longer = prior.model_copy(update={k: getattr(prior, k) * scale for k in ("mean", "sigma", "low", "high")})
    return population.model_copy(update={"lens": population.lens.model_copy(update={"theta_E": longer})})


def pool(work: Work, population: Population, seed: int, n: int) -> Pool:
    """Simulate and measure n images, or read the statistics of an earlier run."""
    path: Path = work.runs / f"{population.name}-{seed}-{n}.npz"
    if path.exists():
        with np.load(path) as arrays:
            return Pool(arrays["values"], arrays["theta_E"])
    started, values, theta_E = time.perf_counter(), [], []
    for start in range(0, n, BLOCK):
        images, truth = simulate_batch(population, seed, range(start, min(start + BLOCK, n)))
        values.append(measure(images, pixel_scale=population.field.pixel_scale))
        theta_E.append(truth["theta_E"])
    print(f"{population.name}: {n} images, {(time.perf_counter() - started) / n * 1e3:.1f} ms each", flush=True)
    simulated = Pool(np.concatenate(values), np.concatenate(theta_E))
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **simulated._asdict())
    return simulated


def clean_runs(clean: Pool, n: int, runs: int) -> dict[str, Any]:
    """Test disjoint parts of a clean pool."""
    labels = np.arange(n) % 3
    p = [leaks(clean.values[i * n : (i + 1) * n], NAMES, labels, usual=USUAL, seed=i)[0].p for i in range(runs)]
    return {"n": n, "seeds": runs, "silent": sum(value > ALPHA for value in p), "smallest_p": p}


def permuted(clean: Pool, n: int, runs: int) -> dict[str, Any]:
    """Test the first images with permuted labels."""
    labels = [np.random.default_rng(run).permutation(n) % 3 for run in range(runs)]
    p = [leaks(clean.values[:n], NAMES, y, usual=USUAL, seed=run)[0].p for run, y in enumerate(labels)]
    silent = {"silent": sum(value > ALPHA for value in p), "silent_at_0.05": sum(value > 0.05 for value in p)}
    return {"n": n, "runs": runs, **silent}


def planted_runs(clean: Pool, planted: Pool, n: int, limit: int) -> dict[str, Any]:
    """Test disjoint runs of n images in which the second of three classes is the scaled one."""
    third = n // 3
    runs = min(len(planted.values) // third, len(clean.values) // (n - third), limit)
    detected, by_ring, bound, aucs = 0, 0, 0, []
    for run in range(runs):
        ours, others = slice(run * third, (run + 1) * third), slice(run * (n - third), (run + 1) * (n - third))
        values, theta_E = (np.concatenate([a[others], b[ours]]) for a, b in zip(clean, planted, strict=True))
        labels = np.concatenate([2 * (np.arange(n - third) % 2), np.ones(third, dtype=np.int64)])
        tests = leaks(values, NAMES, labels, usual=USUAL, seed=run)
        detected += any(leak.is_significant and leak.label == 1 for leak in tests)
        by_ring += any(leak.is_significant and is_of_ring(leak) for leak in tests)
        aucs.append(auc_with_interval(labels == 1, values[:, RING])[0])
        if np.ptp(clean.theta_E):
            bound += any(leak.is_significant for leak in leaks(theta_E[:, None], ["theta_E"], labels, seed=run))
    return {
        "n": n,
        "n_per_class": third,
        "runs": runs,
        "found": detected,
        "found_by_ring_radius": by_ring,
        "found_from_true_theta_E_alone": bound if np.ptp(clean.theta_E) else None,
        "auc_of_ring_radius": float(np.mean(aucs)),
    }


def is_of_ring(leak: Leak) -> bool:
    return (leak.statistic, leak.label, leak.by) == ("ring radius", 1, "value")


def unchanged(work: Work, name: str, n_per_class: int) -> dict[str, Any]:
    """Test a built-in population as it is."""
    population = populations.get(name)
    classes = population.class_names
    n = n_per_class * len(classes)
    tests = leaks(pool(work, population, 15, n).values, NAMES, np.arange(n) % len(classes), usual=USUAL)
    together = {leak.label: leak for leak in tests if leak.by == "all"}
    strongest: dict[str, Any] = {}
    for leak in tests:
        if leak.is_significant and leak.by != "all":
            strongest.setdefault(leak.statistic, leak.as_dict(classes))
    return {
        "n_per_class": n_per_class,
        "version": population.version,
        "conserve_mass": population.conserve_mass,
        "all_together": [together[i].as_dict(classes) for i in sorted(together)],
        "found": list(strongest.values()),
    }


def page(config: Config, result: dict[str, Any]) -> str:
    """Return a section for each population with planted leaks, and one for the built-in populations."""
    lines = [engine.page(config, {})]
    for name in ("common-test-i", "deeplense-model-i-corrected"):
        entry = result[name]
        mean, sigma, excess = entry["theta_E"]["mean"], entry["theta_E"]["sigma"], result["scale"] - 1
        size = f"; {excess:.0%} of it are {excess * mean / sigma:.2f} standard deviations" if sigma else ""
        lines += [f"## {name}, smooth lenses only", "", f"theta_E {mean:.3f} +- {sigma:.2f} arcsec{size}.", ""]
        if "clean" in entry:
            c, p = entry["clean"], entry["clean_by_permutation"]
            lines += [
                f"Clean, n = {c['n']}: silent in {c['silent']} of {c['seeds']} seeds, each with images of its own; in "
                f"{p['silent']} of {p['runs']} permutations of the labels of {p['n']} images (warning at p <= 0.05 "
                f"instead of {result['alpha']:g}: {p['silent_at_0.05']}).",
                "",
            ]
        table = [
            ["images", "of each class", "found", "by ring radius", "by the true theta_E alone", "AUC of ring radius"]
        ]
        for r in entry["planted"]:
            counts = [r["found"], r["found_by_ring_radius"], r["found_from_true_theta_E_alone"]]
            cells = ["" if count is None else f"{count} of {r['runs']}" for count in counts]
            table.append([str(r["n"]), str(r["n_per_class"]), *cells, f"{r['auc_of_ring_radius']:.3f}"])
        lines += [f"theta_E of one class of three scaled by {result['scale']}:", "", *engine.markdown(table), ""]
    table = [["population", "images of each class", "mass conserved", "all together", "alone"]]
    for name, r in result["populations"].items():
        together = ", ".join(
            f"{t['class']} {t['auc']['value']:.3f}" + ("" if t["found"] else " (chance)") for t in r["all_together"]
        )
        alone = ", ".join(f"{t['statistic']}: {t['class']} {t['auc']['value']:.3f}" for t in r["found"]) or "none"
        table.append([name, str(r["n_per_class"]), "yes" if r["conserve_mass"] else "no", together, alone])
    about = (
        "AUC of all statistics together, one class against the rest, and the statistics that separate a class alone."
    )
    lines += ["## The built-in populations", "", about, "", *engine.markdown(table)]
    return "\n".join(lines) + "\n"
