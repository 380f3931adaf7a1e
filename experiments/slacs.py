"""Fits of HST images of SLACS lenses, beside published Einstein radii."""

import csv
from pathlib import Path
from typing import Any

import numpy as np

from darklens.errors import ConfigError
from experiments import engine
from experiments.engine import ROOT, Experiment, Work

_CLOSE = 0.03  # relative difference of Einstein radii that agree
_NEAR = 0.01  # of a published value, from which a value counts as between two of them
Row = dict[str, Any]


class Config(Experiment):
    """A scene, and a folder NAME/{image,noise,psf}.fits with published.csv, from the root of the repository.

    Attributes:
        source_grid: Number of nodes along a side of a source grid; the fit has none if 0.
        only: Number of lenses to fit; all if 0.
    """

    model: str
    half_width: float
    images: str
    source_grid: int = 0
    only: int = 0


def run(config: Config, work: Work) -> dict[str, Any]:
    """Fit the lenses and compare with the published radii."""
    folder = (ROOT / config.images).resolve()
    if not folder.is_dir():
        raise ConfigError(f"{folder} does not exist; give the folder of SLACS lenses as images=FOLDER.")
    with (folder / "published.csv").open(encoding="utf-8") as file:
        published = {row["lens_name"]: row for row in csv.DictReader(file)}
    names = sorted(path.parent.name for path in folder.glob("*/image.fits"))[: config.only or None]
    out = work.runs / (config.model + ("-grid" if config.source_grid else ""))
    table, maps = out.with_suffix(".csv"), out.with_name(f"{out.name}-maps")
    paths = [str(folder / name) for name in names]
    options = ["--model", config.model, "--pixel-scale", "0.05", "--out", str(table), "--maps", str(maps)]
    if config.source_grid:
        options += ["--source-grid", str(config.source_grid)]
    if not table.exists():
        engine.darklens("fit", *paths, *options, f"half_width={config.half_width}")
    rows = []
    for fitted in csv.DictReader(table.read_text(encoding="utf-8").splitlines()):
        name = Path(fitted["path"]).name
        rows.append(row(name, fitted, published[name]))
    worst = sorted(rows, key=lambda r: -abs(np.log(r["ratio"])))[:5]
    print(f"Pictures of the worst five, in {maps}: {', '.join(r['name'] for r in worst)}")
    about = {"schema": 1, "model": config.model, "source_grid": config.source_grid}
    return {**about, "rows": rows, "provenance": engine.made_by()}


def row(name: str, fitted: dict[str, str], published: dict[str, str]) -> Row:
    """Return a fit beside the published radii."""
    theta_E = float(fitted["theta_E"])
    b_sie, other = float(published["bSIE"]), float(published["thetaE_lens_m"])
    return {
        "name": name,
        "theta_E": theta_E,
        "theta_E_error": float(fitted["theta_E_error"]),
        "b_SIE": b_sie,
        "other": other,
        "ratio": theta_E / b_sie,
        "ratio_to_other": theta_E / other,
        "chi2_per_pixel": float(fitted["chi2_per_pixel"]),
        "message": fitted["message"],
        "seconds": float(fitted["seconds"]),
    }


def page(config: Config, result: dict[str, Any]) -> str:
    """Return the table of lenses, worst first."""
    rows = result["rows"]
    ratios, others = (np.array([r[key] for r in rows]) for key in ("ratio", "ratio_to_other"))
    published = ratios / others
    is_between = (np.minimum(ratios, others) < 1 + _NEAR) & (np.maximum(ratios, others) > 1 - _NEAR)
    agrees, warned = abs(ratios - 1) < _CLOSE, np.array([bool(r["message"]) for r in rows])
    values = {
        "n": len(rows),
        "published": int((abs(published - 1) < _CLOSE).sum()),
        "within_3": int(agrees.sum()),
        "others": int((~agrees).sum()),
        "between": int((~agrees & is_between).sum()),
        "others_without": int((~agrees & ~warned).sum()),
        "agree_with": int((agrees & warned).sum()),
        "within_5": int((abs(ratios - 1) < 0.05).sum()),
        "other_3": int((abs(others - 1) < _CLOSE).sum()),
        "seconds": float(np.mean([r["seconds"] for r in rows])),
        "model": config.model,
        "source": f", then with --source-grid {config.source_grid}" if config.source_grid else "",
        "half_width": config.half_width,
    }
    table = [["lens", "theta_E", "b_SIE", "ratio", "other", "ratio", "chi2 per pixel", "seconds", "warnings"]]
    for r in sorted(rows, key=lambda r: -abs(np.log(r["ratio"]))):
        theta_E = f"{r['theta_E']:.3f} +- {r['theta_E_error']:.3f}"
        by = [theta_E, f"{r['b_SIE']:.2f}", f"{r['ratio']:.3f}", f"{r['other']:.3f}", f"{r['ratio_to_other']:.3f}"]
        table.append([r["name"], *by, f"{r['chi2_per_pixel']:.2f}", f"{r['seconds']:.0f}", r["message"]])
    return engine.page(config, {**result["provenance"], **values}, table)
