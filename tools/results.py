"""Write results/README.md from the eval.json files below results/: `python tools/results.py`.

`python tools/results.py --add EVALUATION_DIR SEED` first copies an evaluation to
results/POPULATION/RECIPE/seedSEED/ (eval.json and figures).
"""

import json
import shutil
import sys
from pathlib import Path

from darklens.evaluation.compare import format_metric

RESULTS = Path(__file__).resolve().parent.parent / "results"
# Pages that other tools make.
EMBEDDED = (
    "*/learning_curves/curves.md",
    "*/shifts/shifts.md",
    "*/real_images/real_images.md",
    "*/study/study.md",
    "*/ablation/ablation.md",
)
KEPT = ("eval.json", "roc.png", "calibration.png")
COLUMNS = [
    "recipe",
    "seed",
    "parameters",
    "macro AUC",
    "no",
    "sphere",
    "vort",
    "accuracy",
    "ECE",
    "legacy AUC",
    "training",
    "where",
]
HEAD = """# Results

Made by `python tools/results.py` from the eval.json files below this folder. AUC is one-vs-rest from probabilities,
brackets are 95 % bootstrap intervals over test images, each row is one training of one seed. Only rows of one table
saw as many training images and were judged on the same test images. Legacy AUC is the 2024 study's metric, on which
probabilities drawn at random score 0.87."""
# ../docs/legacy.md; the estimates of the honest AUC are from a toy curve of AUC against accuracy.
STUDY = """## The 2024 study, as published

Common Test I, 10,000 training and 2,500 test images a class. The published AUC counts misclassified members of a class
as negatives ([faults](../docs/legacy.md)), so it belongs beside our legacy AUC and not beside our AUC. The accuracies
are those its notebooks print; the honest macro AUC is an estimate from them.

| system | no | sphere | vort | mean | accuracy | honest macro AUC, estimated |
| --- | --- | --- | --- | --- | --- | --- |
| Resnet_simple | 0.951 | 0.999 | 0.995 | 0.982 | 0.773 | 0.92 |
| Resnet_18 | 0.981 | 1.000 | 0.998 | 0.993 | 0.858 | 0.965 |
| SIS_autoencoder | 0.974 | 1.000 | 0.995 | 0.990 | 0.829 | 0.95 |
| SIS_autoencoder2 | 0.977 | 0.999 | 0.996 | 0.991 | 0.849 | 0.96 |"""


def main(arguments: list[str]) -> None:
    if arguments:
        _, folder, seed = arguments
        add(Path(folder), int(seed))
    (RESULTS / "README.md").write_text(page(), encoding="utf-8")


def add(folder: Path, seed: int) -> None:
    evaluation = json.loads((folder / "eval.json").read_text())
    place = RESULTS / evaluation["data"]["population"] / evaluation["model"]["recipe"] / f"seed{seed}"
    place.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        if (folder / name).exists():
            shutil.copy(folder / name, place / name)


def page() -> str:
    """Return the study's table as it was published, then a table for each set of conditions, then comparisons."""
    groups: dict[tuple[str, int, int, str], list[Path]] = {}
    for path in sorted(RESULTS.glob("*/*/seed*/eval.json")):
        e = json.loads(path.read_text())
        if "auc" in e:
            conditions = (e["data"]["population"], e["provenance"]["train_images"], e["n"], e["data"]["sha256"])
            groups.setdefault(conditions, []).append(path)
    sections = [HEAD, STUDY]
    for (population, n_train, n_test, sha256), paths in groups.items():
        lines = [
            f"## {population}: {n_train:,} training images, {n_test:,} test images",
            "",
            f"Test images {sha256[:12]}.",
            "",
            *rows([COLUMNS, ["---"] * len(COLUMNS), *(cells(path) for path in paths)]),
        ]
        sections.append("\n".join(lines))
    sections += reconstructions()
    for pattern in EMBEDDED:
        sections += [embedded(path) for path in sorted(RESULTS.glob(pattern))]
    return "\n\n".join(sections) + "\n"


def reconstructions() -> list[str]:
    """Return a table of the systems that give back the image."""
    table = [["recipe", "population", "seed", "images", "PSNR, dB", "SSIM", "chi2 per pixel", "where"]]
    table.append(["---"] * len(table[0]))
    for path in sorted(RESULTS.glob("*/*/seed*/eval.json")):
        e = json.loads(path.read_text())
        if "reconstruction" in e:
            found = [format_metric(e["reconstruction"][name]) for name in ("psnr_db", "ssim", "chi2_per_pixel")]
            where = f"{e['provenance']['train_commit']}, {e['provenance']['train_hardware']}"
            link = f"[{e['model']['recipe']}]({path.parent.relative_to(RESULTS)})"
            seed = path.parent.name.removeprefix("seed")
            table.append([link, e["data"]["population"], seed, f"{e['n']:,}", *found, where])
    return ["\n".join(["## Reconstruction of images", "", *rows(table)])] if len(table) > 2 else []


def embedded(path: Path) -> str:
    """Return a table that another tool made, its heading a level lower, and its figure."""
    text = "#" + path.read_text().strip()
    picture = path.with_suffix(".png")
    return f"{text}\n\n![]({picture.relative_to(RESULTS)})" if picture.exists() else text


def cells(path: Path) -> list[str]:
    e = json.loads(path.read_text())
    p, legacy = e["provenance"], e["legacy_auc"]["macro"]
    return [
        f"[{e['model']['recipe']}]({path.parent.relative_to(RESULTS)})",
        path.parent.name.removeprefix("seed"),
        f"{e['model']['parameters'] / 1e6:.2f} M",
        format_metric(e["auc"]["macro"]),
        *(f"{e['auc'][name]['value']:.3f}" for name in ("no", "sphere", "vort")),
        format_metric(e["accuracy"]),
        format_metric(e["ece"]),
        "-" if legacy is None else f"{legacy:.3f}",
        f"{p['train_seconds'] / 60:.0f} min",
        f"{p['train_commit']}, {p['train_hardware']}",
    ]


def rows(table: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in table]


if __name__ == "__main__":
    main(sys.argv[1:])
