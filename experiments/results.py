"""Write results/README.md from the files below results/: `python -m experiments.results`.

`python -m experiments.results --add EVALUATION_DIR SEED` first copies an evaluation to
results/POPULATION/RECIPE/seedSEED/ (eval.json and figures).
"""

import json
import shutil
import sys
from pathlib import Path

from darklens.evaluation.compare import format_metric
from experiments.engine import ROOT, markdown

RESULTS = ROOT / "results"
# Pages of experiments.
EMBEDDED = (
    "*/learning_curves/curves.md",
    "*/shifts/shifts.md",
    "*/real_images/real_images.md",
    "*/study/study.md",
    "*/convergence/convergence.md",
    "*/few_images/few_images.md",
    "*/ablation/ablation.md",
)
FILES = ("eval.json", "roc.png", "calibration.png")
COLUMNS = ["recipe", "seed", "parameters", "macro AUC", "no", "sphere", "vort", "accuracy", "ECE", "legacy AUC"]
COLUMNS += ["training", "where"]
HEAD = """# Results

Use these tables to compare systems. Compare only rows of the same table: they have the same number of training images
and the same test images. Each row is one training with one seed. AUC is one-vs-rest, and brackets are 95 % bootstrap
intervals over test images. Legacy AUC is the metric of the 2024 study, for which random probabilities score 0.87.

Made by `python -m experiments.results` from the eval.json files below this folder."""
# ../docs/explanations/the-studys-numbers.md derives the estimates of the one-vs-rest AUC.
STUDY = """## The 2024 study, as published

Common Test I, 10,000 training and 2,500 test images per class. The published AUC counts misclassified images of a class
as negatives ([explanation](../docs/explanations/the-studys-numbers.md)), so compare it with our legacy AUC. The
accuracies are printed in its notebooks. We estimated the one-vs-rest macro AUC from them.

| system | no | sphere | vort | mean | accuracy | one-vs-rest macro AUC, estimated |
| --- | --- | --- | --- | --- | --- | --- |
| Resnet_simple | 0.951 | 0.999 | 0.995 | 0.982 | 0.773 | 0.92 |
| Resnet_18 | 0.981 | 1.000 | 0.998 | 0.993 | 0.858 | 0.965 |
| SIS_autoencoder | 0.974 | 1.000 | 0.995 | 0.990 | 0.829 | 0.95 |
| SIS_autoencoder2 | 0.977 | 0.999 | 0.996 | 0.991 | 0.849 | 0.96 |"""


def main(words: list[str]) -> None:
    if words:
        _, folder, seed = words
        add(Path(folder), int(seed))
    write_page()


def write_page() -> None:
    (RESULTS / "README.md").write_text(page(), encoding="utf-8")


def add(folder: Path, seed: int, results: Path = RESULTS) -> None:
    """Copy an evaluation below `results`."""
    evaluation = json.loads((folder / "eval.json").read_text())
    target = results / evaluation["data"]["population"] / evaluation["model"]["recipe"] / f"seed{seed}"
    target.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        if (folder / name).exists():
            shutil.copy(folder / name, target / name)


def page() -> str:
    """Return the study's published table, a table for each set of conditions, and the pages of experiments."""
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
            *markdown([COLUMNS, *(cells(path) for path in paths)]),
        ]
        sections.append("\n".join(lines))
    sections += reconstructions()
    for pattern in EMBEDDED:
        sections += [embedded(path) for path in sorted(RESULTS.glob(pattern))]
    return "\n\n".join(sections) + "\n"


def reconstructions() -> list[str]:
    """Return a table of the systems that reconstruct images."""
    table = [["recipe", "population", "seed", "images", "PSNR, dB", "SSIM", "chi2 per pixel", "where"]]
    for path in sorted(RESULTS.glob("*/*/seed*/eval.json")):
        e = json.loads(path.read_text())
        if "reconstruction" in e:
            metrics = [format_metric(e["reconstruction"][name]) for name in ("psnr_db", "ssim", "chi2_per_pixel")]
            where = f"{e['provenance']['train_commit']}, {e['provenance']['train_hardware']}"
            link = f"[{e['model']['recipe']}]({path.parent.relative_to(RESULTS)})"
            seed = path.parent.name.removeprefix("seed")
            table.append([link, e["data"]["population"], seed, f"{e['n']:,}", *metrics, where])
    return ["\n".join(["## Reconstruction of images", "", *markdown(table)])] if len(table) > 1 else []


def embedded(path: Path) -> str:
    """Return the page of an experiment, its heading a level lower, and its figure."""
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


if __name__ == "__main__":
    main(sys.argv[1:])
