"""Write results/README.md from the eval.json files below results/: `python tools/results.py`.

`python tools/results.py --add EVALUATION_DIR SEED` first copies an evaluation to
results/POPULATION/RECIPE/seedSEED/ (eval.json and figures).
"""

import json
import shutil
import sys
from pathlib import Path

from darklens.evaluation.compare import with_interval

RESULTS = Path(__file__).resolve().parent.parent / "results"
KEPT = ("eval.json", "roc.png", "calibration.png")


def main(arguments: list[str]) -> None:
    if arguments:
        _, folder, seed = arguments
        add(Path(folder), int(seed))
    (RESULTS / "README.md").write_text(table(), encoding="utf-8")


def add(folder: Path, seed: int) -> None:
    evaluation = json.loads((folder / "eval.json").read_text())
    place = RESULTS / evaluation["data"]["population"] / evaluation["model"]["recipe"] / f"seed{seed}"
    place.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        if (folder / name).exists():
            shutil.copy(folder / name, place / name)


def table() -> str:
    columns = ["population", "recipe", "seed", "training images", "test images", "macro AUC", "accuracy", "ECE"]
    lines = [
        "# Results",
        "",
        "Made by `python tools/results.py` from the eval.json files below this folder. AUC is one-vs-rest from",
        "probabilities, brackets are 95 % bootstrap intervals over test images. Each row is one training of one seed;",
        "rows with other numbers of images or another population are not to be compared with each other.",
        "",
        f"| {' | '.join([*columns, 'commit', 'hardware'])} |",
        "|" + " --- |" * (len(columns) + 2),
    ]
    for path in sorted(RESULTS.glob("*/*/seed*/eval.json")):
        e = json.loads(path.read_text())
        p = e["provenance"]
        cells = [
            e["data"]["population"],
            f"[{e['model']['recipe']}]({path.parent.relative_to(RESULTS)})",
            path.parent.name.removeprefix("seed"),
            str(p["train_images"]),
            str(e["n"]),
            with_interval(e["auc"]["macro"]),
            with_interval(e["accuracy"]),
            with_interval(e["ece"]),
            p["train_commit"],
            p["train_hardware"],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(sys.argv[1:])
