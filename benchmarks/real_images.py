"""The real images of Common Test I through `darklens predict`: `python benchmarks/real_images.py [MODEL]`.

Reads ../shared/realdata/common-test-i. Images 1 to 3 of a class are exact originals, the others were recovered from
figures to one part in 256. Writes results/common-test-i/real_images/real_images.{json,md}.
"""

import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from darklens import __version__, provenance
from darklens.evaluation.metrics import accuracy, class_auc
from darklens.files import write_json, write_text

ROOT = Path(__file__).resolve().parent.parent
REAL = ROOT.parent / "shared" / "realdata" / "common-test-i"
CLASSES = ["no", "sphere", "vort"]


def main(model):
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "predictions.csv"
        command = [Path(sys.executable).with_name("darklens"), "predict", model, REAL, "--out", out]
        subprocess.run(command, check=True)
        with out.open(newline="") as stream:
            rows = list(csv.DictReader(stream))
    for row in rows:
        path = Path(row["path"])
        row["class"], row["number"] = path.parent.name, int(path.stem)
        row["path"] = path.relative_to(REAL).as_posix()
    rows.sort(key=lambda row: (CLASSES.index(row["class"]), row["number"]))
    groups = {"exact": [r for r in rows if r["number"] <= 3], "recovered": [r for r in rows if r["number"] > 3]}
    summary = {name: judged(some) for name, some in groups.items()}
    about = {"version": __version__, "commit": provenance.commit(), "hardware": provenance.hardware()}
    result = {"schema": 1, "model": str(model), **summary, "rows": rows, "provenance": about}
    place = ROOT / "results" / "common-test-i" / "real_images"
    write_json(place / "real_images.json", result)
    write_text(place / "real_images.md", table(result))
    print(json.dumps(summary, indent=2))
    print(table(result))


def judged(rows):
    labels = np.array([CLASSES.index(row["class"]) for row in rows])
    probabilities = np.array([[float(row[f"p_{name}"]) for name in CLASSES] for row in rows])
    probabilities /= probabilities.sum(1, keepdims=True)
    auc = dict(zip(CLASSES, class_auc(labels, probabilities), strict=True))
    chi2 = [float(row["chi2_per_pixel"]) for row in rows if row["class"] == "no"]
    return {
        "n": len(rows),
        "accuracy": float(accuracy(labels, probabilities)),
        "macro_auc": float(np.mean(list(auc.values()))),
        "auc": {name: float(value) for name, value in auc.items()},
        "chi2_of_no": [min(chi2), float(np.median(chi2)), max(chi2)],
    }


def table(result):
    p = result["provenance"]
    lines = [
        "# The real images of Common Test I",
        "",
        f"`{result['model']}` through `darklens predict`; commit {p['commit']}, {p['hardware']}. The model was trained "
        "on simulated images alone. One thing was learnt from these: a network that is told of further noise, which "
        "simulated counts lack, goes astray on the recovered ones, so it is not told of it. chi2 is per block of 2 x 2 "
        "pixels.",
        "",
        "| images | n | accuracy | macro AUC | chi2 of `no`: least, median, most |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in ("exact", "recovered"):
        s = result[name]
        least, median, most = s["chi2_of_no"]
        judged_by = f"{s['n']} | {s['accuracy']:.4f} | {s['macro_auc']:.4f}"
        lines.append(f"| {name} | {judged_by} | {least:.3f}, {median:.3f}, {most:.3f} |")
    lines += ["", "| image | p no | p sphere | p vort | chi2 | with line | with points | beside the line |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in result["rows"]:
        numbers = [f"{float(row[f'p_{name}']):.4f}" for name in CLASSES]
        numbers += [
            f"{float(row[name]):.3f}" for name in ("chi2_per_pixel", "chi2_per_pixel_line", "chi2_per_pixel_points")
        ]
        right = "" if row["predicted"] == row["class"] else " (wrong)"
        lines.append(f"| {row['class']}/{row['number']}{right} | {' | '.join(numbers)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "lens_residual")
