"""Searches for dark perturbers in HST images of SLACS lenses, one of which has a published subhalo."""

import csv
from pathlib import Path
from typing import Any

import numpy as np

from darklens.config import Frozen
from darklens.errors import ConfigError
from experiments import engine
from experiments.engine import ROOT, Experiment, Work

Row = dict[str, Any]


class Published(Frozen):
    """A published subhalo.

    Attributes:
        name: The lens.
        x: Position relative to the lens, arcsec.
        y: Position, arcsec.
        z_lens: Redshift of the lens.
        z_source: Redshift of the source.
        source: Publication.
    """

    name: str
    x: float
    y: float
    z_lens: float
    z_source: float
    source: str


class Config(Experiment):
    """Scenes and perturbers, and a folder NAME/{image,noise,psf}.fits, from the root of the repository.

    Attributes:
        searches: Pairs of scene and perturber; the first is run on all lenses, all on that with the published subhalo.
        published: The published subhalo.
        images: Folder of the lenses.
        half_width: Half the side of the fitted square, arcsec.
        only: Number of lenses to search; all if 0.
    """

    searches: list[tuple[str, str]]
    published: Published
    images: str
    half_width: float
    only: int = 0


def run(config: Config, work: Work) -> dict[str, Any]:
    """Search the lenses."""
    folder = (ROOT / config.images).resolve()
    if not folder.is_dir():
        raise ConfigError(f"{folder} does not exist; give the folder of SLACS lenses as images=FOLDER.")
    names = sorted(path.parent.name for path in folder.glob("*/image.fits"))[: config.only or None]
    published = config.published
    redshifts = ["--z-lens", str(published.z_lens), "--z-source", str(published.z_source)]
    of_published = [
        search(config, work, [folder / published.name], scene, perturber, redshifts)[0]
        for scene, perturber in config.searches
    ]
    rows = search(config, work, [folder / name for name in names], *config.searches[0], [])
    return {"schema": 1, "published": of_published, "rows": rows, "provenance": engine.made_by()}


def search(config: Config, work: Work, paths: list[Path], scene: str, perturber: str, options: list[str]) -> list[Row]:
    """Return a row for each lens."""
    name = f"{scene}-{perturber}-{len(paths)}"
    table = work.runs / f"{name}.csv"
    if not table.exists():
        words = ["--model", scene, "--perturber", perturber, "--pixel-scale", "0.05", f"half_width={config.half_width}"]
        where = ["--out", str(table), "--maps", str(work.runs / f"{name}-maps")]
        engine.darklens("search", *map(str, paths), *words, *options, *where)
    return [row(r, scene, perturber) for r in csv.DictReader(table.read_text(encoding="utf-8").splitlines())]


def row(result: dict[str, str], scene: str, perturber: str) -> Row:
    """Return the columns that the tables show."""
    numbers = ("delta_chi2", "x", "y", "log10_mass", "log10_mass_error", "chi2_per_pixel", "seconds")
    return {
        "name": Path(result["path"]).name,
        "scene": scene,
        "perturber": perturber,
        "detected": result["detected"] == "yes",
        "message": result["message"],
        **{key: float(result[key]) if result[key] else None for key in numbers},
        "concentration": float(result["concentration"]) if result.get("concentration") else None,
    }


def page(config: Config, result: dict[str, Any]) -> str:
    """Return the table of the published subhalo, and of all lenses by delta chi2."""
    published = config.published
    first = [["scene", "perturber", "detected", "delta chi2", "x, y (arcsec)", "distance", "log10 mass", "message"]]
    for r in result["published"]:
        distance = np.hypot(r["x"] - published.x, r["y"] - published.y)
        first.append([r["scene"], r["perturber"], *_cells(r), f"{distance:.2f}", _mass(r), r["message"]])
    second = [["lens", "detected", "delta chi2", "x, y (arcsec)", "log10 mass", "chi2 per pixel", "message"]]
    by_gain = sorted(result["rows"], key=lambda r: -r["delta_chi2"])
    second += [[r["name"], *_cells(r), _mass(r), f"{r['chi2_per_pixel']:.2f}", r["message"]] for r in by_gain]
    rows = result["rows"]
    values = {
        "n": len(rows),
        "detections": sum(r["detected"] for r in rows),
        "untrusted": sum(bool(r["message"]) for r in rows),
        "seconds": float(np.median([r["seconds"] for r in rows])),
        "lens": published.name,
        "x": published.x,
        "y": published.y,
        "source": published.source,
        "scene": config.searches[0][0],
        "perturber": config.searches[0][1],
        "half_width": config.half_width,
    }
    return engine.page(config, result["provenance"] | values, first, second)


def _cells(r: Row) -> list[str]:
    position = "" if r["x"] is None else f"{r['x']:.2f}, {r['y']:.2f}"
    return ["yes" if r["detected"] else "no", f"{r['delta_chi2']:.0f}", position]


def _mass(r: Row) -> str:
    if r["log10_mass"] is None:
        return ""
    error = "" if r["log10_mass_error"] is None else f" ± {r['log10_mass_error']:.2f}"
    shape = "" if r["concentration"] is None else f" (c = {r['concentration']:.0f})"
    return f"{r['log10_mass']:.2f}{error}{shape}"
