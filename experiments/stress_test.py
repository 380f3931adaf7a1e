"""Searches for perturbers in the populations of a benchmark of substructure detectors, by its definitions.

The benchmark's own script renders the populations with lenstronomy; nothing of darklens takes part. Each searched image
adds a line to a file in runs/, so an interrupted experiment continues where it stopped.
"""

import json
import subprocess
import sys
import time
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from darklens.config import Frozen
from darklens.errors import ConfigError
from darklens.fit.perturber_profiles import PerturberKind, Redshifts
from darklens.fit.perturbers import find_perturbers
from darklens.fit.scene_fit import fit
from darklens.fit.source_reconstruction import reconstruct_source
from darklens.memory import keep_freed_memory
from darklens.scene.observation import Observation
from darklens.scene.psf import PSF
from darklens.scene.scene import Scene
from experiments import engine
from experiments.engine import ROOT, Experiment, Work

RATE = 0.1  # of false alarms
BINS = (9.0, 9.5, 10.0, 10.5, 11.0)  # log10 of M200, in M_sun
LOW_MASS = 9.5  # log10 of M200, of haloes with galaxies as sources
LOCALISED = 0.16  # arcsec: two pixels
EXCLUDED = 10.0  # chi2 per pixel
LARGE = 20.0  # delta chi2 of false alarms that no threshold of this kind would remove
Row = dict[str, Any]


class Analysis(Frozen):
    """A model, the smooth population that sets its threshold, and the populations that are judged.

    Attributes:
        model: Scene.
        perturber: Kind of perturber of the search.
        concentration: c200 of the haloes of the search; None for the relation with mass.
        smooth: Population without perturbers.
        judged: Other populations.
        source_grid: Nodes along a side of the grid of the source; None for the source of the scene.
    """

    model: str
    perturber: PerturberKind = "tnfw"
    concentration: float | None = None
    smooth: str
    judged: list[str] = []
    source_grid: int | None = None


class Config(Experiment):
    """The analyses, and the script of the benchmark, from the root of the repository.

    Attributes:
        script: Renders a population: `script OUT --seed SEED --n N --only NAME`.
        analyses: By name.
        n: Number of images of each population.
        threshold_seed: Seed of the images that set the threshold.
        seed: Seed of the images that are judged.
        only: Names of analyses to run; all if empty.
        compiled: Whether to compile the scenes.
    """

    script: str
    analyses: dict[str, Analysis]
    n: int
    threshold_seed: int
    seed: int
    only: list[str] = []
    compiled: bool = True


def run(config: Config, work: Work) -> dict[str, Any]:
    """Search all images and return the measures of the benchmark."""
    keep_freed_memory()
    analyses = {}
    for name, analysis in config.analyses.items():
        if config.only and name not in config.only:
            continue
        reference = search(config, work, name, analysis, analysis.smooth, config.threshold_seed)
        threshold = float(np.quantile([row["score"] for row in reference], 1 - RATE))
        populations = {}
        for population in dict.fromkeys([analysis.smooth, *analysis.judged]):
            rows = search(config, work, name, analysis, population, config.seed)
            populations[population] = measures(rows, threshold)
            if population == analysis.smooth:
                reference += rows if config.seed != config.threshold_seed else []
            elif analysis.smooth.startswith("galaxy"):
                populations[population] |= ranking(rows, reference)
        analyses[name] = {
            "model": analysis.model,
            "concentration": analysis.concentration,
            "threshold": threshold,
            "populations": populations,
        }
    return {"schema": 1, "n": config.n, "analyses": analyses, "provenance": engine.made_by()}


def images(config: Config, work: Work, population: str, seed: int) -> Any:
    """Return the images of a population, rendered if they are not there yet."""
    folder = work.stores / "stress-test" / f"seed{seed}-n{config.n}"
    path = folder / f"{population}.npz"
    if not path.exists():
        script = (ROOT / config.script).resolve()
        if not script.is_file():
            raise ConfigError(f"{script} does not exist; give the script of the benchmark as script=FILE.")
        options = ["--seed", str(seed), "--n", str(config.n), "--only", population]
        subprocess.run([sys.executable, str(script), str(folder), *options], check=True)
    return np.load(path, allow_pickle=False)


def search(config: Config, work: Work, name: str, analysis: Analysis, population: str, seed: int) -> list[Row]:
    """Return a row for each image of a population."""
    work.runs.mkdir(parents=True, exist_ok=True)
    path = work.runs / f"{name.replace(' ', '-').replace('=', '')}-{population}-seed{seed}.jsonl"
    rows: list[Row] = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    if len(rows) >= config.n:
        return rows[: config.n]
    data = images(config, work, population, seed)
    scene = Scene.from_yaml(analysis.model)
    scale = float(data["pixel_scale"])
    psf = PSF.image(data["psf"], pixel_scale=scale)
    with path.open("a") as file:
        for i in range(len(rows), config.n):
            observation = Observation.of(data["images"][i], noise_map=data["noise"][i], psf=psf, pixel_scale=scale)
            rows.append(row(observation, scene, analysis, json.loads(str(data["truth"][i])), compiled=config.compiled))
            print(name, population, i, rows[-1], flush=True)
            file.write(json.dumps(rows[-1]) + "\n")
            file.flush()
    return rows


def row(observation: Observation, scene: Scene, analysis: Analysis, truth: Row, *, compiled: bool) -> Row:
    """Return the result of one search beside the truth."""
    redshifts = Redshifts(0.5, 1.0, analysis.concentration)
    started = time.process_time()
    kind = analysis.perturber
    fitted = fit(observation, scene, compiled=compiled)
    if analysis.source_grid is not None:
        fitted = reconstruct_source(fitted, analysis.source_grid)
        scene = fitted.scene
    result = find_perturbers(
        observation,
        scene,
        result=fitted,
        perturber=kind,
        redshifts=redshifts,
        threshold=None if analysis.source_grid is None else LARGE,  # scores do not depend on it
        compiled=compiled,
    )
    out: Row = {
        "score": 0.0 if result.message else result.score,
        "score_if_unflagged": result.score,
        "delta_chi2": result.delta_chi2,
        "chi2_per_pixel": result.best.chi2_per_pixel,
        "message": result.message,
        "seconds": time.process_time() - started,
    }
    halo = truth["subhalo"]
    if halo:
        out["true_log10_mass"] = halo["log10_M200"]
    if halo and result.perturbers:
        perturber = result.perturbers[0]
        out["distance"] = float(np.hypot(perturber.x - halo["x"], perturber.y - halo["y"]))
        out["mass_error"] = perturber.log10_mass - halo["log10_M200"]
    return out


def measures(rows: list[Row], threshold: float) -> dict[str, Any]:
    """Return the measures of the benchmark for one population."""
    above = np.array([r["score"] > threshold for r in rows])
    out: dict[str, Any] = {
        "n": len(rows),
        "above_threshold": float(above.mean()),
        "above_20": float(np.mean([r["score"] > LARGE for r in rows])),
        "excluded": int(sum(r["chi2_per_pixel"] > EXCLUDED for r in rows)),
        "flagged": int(sum(bool(r["message"]) for r in rows)),
        "seconds": float(np.median([r["seconds"] for r in rows])),
    }
    if "true_log10_mass" not in rows[0]:
        return out
    mass = np.array([r["true_log10_mass"] for r in rows])
    localised = above & np.array([r.get("distance", np.inf) < LOCALISED for r in rows])
    out["completeness"], out["localised"], out["n_in_bin"] = [], [], []
    for low, high in pairwise(BINS):
        inside = (mass >= low) & (mass < high)
        out["n_in_bin"].append(int(inside.sum()))
        out["completeness"].append(float(above[inside].mean()) if inside.any() else None)
        out["localised"].append(float(localised[inside].mean()) if inside.any() else None)
    errors = np.array([r["mass_error"] for r, chosen in zip(rows, localised, strict=True) if chosen])
    out["n_localised"] = int(localised.sum())
    out["mass_error"] = quantiles(errors)
    return out


def ranking(rows: list[Row], smooth: list[Row]) -> dict[str, Any]:
    """Return how well the score ranks haloes above smooth lenses, where fits with warnings have a score too."""
    heavy = [row for row in rows if row["true_log10_mass"] > LOW_MASS]
    below, above = (np.array([row["score_if_unflagged"] for row in part]) for part in (smooth, heavy))
    threshold = float(np.quantile(below, 1 - RATE))
    errors = [row["mass_error"] for row in heavy if row.get("distance", np.inf) < LOCALISED]
    return {
        "ranking": {
            "n_smooth": len(below),
            "n": len(above),
            "auc": auc(below, above),
            "auc_ci95": bootstrapped_auc(below, above),
            "completeness": float((above > threshold).mean()),
            "n_near": len(errors),
            "mass_error": quantiles(np.array(errors)),
            "chi2_per_pixel": float(np.median([r["chi2_per_pixel"] for r in [*rows, *smooth]])),
            "seconds": float(np.median([r["seconds"] for r in rows])),
        }
    }


def auc(below: NDArray[np.float64], above: NDArray[np.float64]) -> float:
    """Return the probability that a value of `above` exceeds one of `below`."""
    is_above = np.repeat([False, True], [len(below), len(above)])
    return float(roc_auc_score(is_above, np.concatenate([below, above])))


def bootstrapped_auc(below: NDArray[np.float64], above: NDArray[np.float64]) -> list[float]:
    """Return the 95 % interval of `auc`, from images drawn with replacement."""
    generator = np.random.default_rng(0)
    drawn = [auc(generator.choice(below, len(below)), generator.choice(above, len(above))) for _ in range(2000)]
    return [float(q) for q in np.quantile(drawn, (0.025, 0.975))]


def quantiles(errors: NDArray[np.float64]) -> list[float] | None:
    """Return median, and 16th and 84th percentile; None for no values."""
    return [float(q) for q in np.quantile(errors, (0.5, 0.16, 0.84))] if len(errors) else None


def page(config: Config, result: dict[str, Any]) -> str:
    """Return the tables of completeness and of false alarms."""
    bins = [f"10^{low:g} to 10^{high:g}" for low, high in pairwise(BINS)]
    haloes = [["analysis", "population", "threshold", *bins, "localised", "mass error (dex)", "seconds"]]
    alarms = [
        ["analysis", "population", "n", "threshold", "above threshold", "above 20", "flagged", "excluded", "seconds"]
    ]
    analyses = list(result["analyses"].items())
    populations = [(name, p, m) for name, analysis in analyses for p, m in analysis["populations"].items()]
    ranked = [(name, p, m["ranking"]) for name, p, m in populations if "ranking" in m]
    for name, analysis in analyses:
        if name in [other for other, *_ in ranked]:  # all fits have warnings, so no score is above zero
            continue
        for population, m in analysis["populations"].items():
            if "completeness" in m:
                error = m["mass_error"]
                haloes.append(
                    [
                        f"{name} (`{analysis['model']}`)",
                        population,
                        f"{analysis['threshold']:.1f}",
                        *(
                            "" if c is None else f"{100 * c:.0f} % of {n}"
                            for c, n in zip(m["completeness"], m["n_in_bin"], strict=True)
                        ),
                        f"{m['n_localised']} of {m['above_threshold'] * m['n']:.0f}",
                        f"{error[0]:+.3f} ({error[1]:+.2f} to {error[2]:+.2f})" if error else "",
                        f"{m['seconds']:.1f}",
                    ]
                )
            else:
                alarms.append(
                    [
                        f"{name} (`{analysis['model']}`)",
                        population,
                        str(m["n"]),
                        f"{analysis['threshold']:.1f}",
                        f"{100 * m['above_threshold']:.1f} %",
                        f"{100 * m['above_20']:.1f} %",
                        str(m["flagged"]),
                        str(m["excluded"]),
                        f"{m['seconds']:.1f}",
                    ]
                )
    tables = [table for table in (haloes, alarms) if len(table) > 1]
    if ranked:
        tables.append(ranked_rows(ranked))
    return engine.page(config, {**result["provenance"], "n": result["n"]}, *tables)


def ranked_rows(ranked: list[tuple[str, str, dict[str, Any]]]) -> list[list[str]]:
    """Return the table of `ranking`."""
    header = ["analysis", "population", "smooth", f"above 10^{LOW_MASS:g}", "AUC", "above threshold", "localised"]
    rows = [[*header, "mass error (dex)", "chi2 per pixel", "seconds"]]
    for name, population, r in ranked:
        error, (low, high) = r["mass_error"], r["auc_ci95"]
        rows.append(
            [
                *(name, population, str(r["n_smooth"]), str(r["n"]), f"{r['auc']:.3f} [{low:.3f}, {high:.3f}]"),
                *(f"{100 * r['completeness']:.0f} %", f"{r['n_near']} of {r['n']}"),
                f"{error[0]:+.3f} ({error[1]:+.2f} to {error[2]:+.2f})" if error else "",
                *(f"{r['chi2_per_pixel']:.1f}", f"{r['seconds']:.0f}"),
            ]
        )
    return rows
