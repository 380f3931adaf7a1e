"""Write docs/cards from recipes, populations, bundles and results: `python tools/cards.py [--check]`.

Text that no file contains (difficulties, limits) is in docs/cards/words, one YAML file per card.
"""

import json
import sys
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from darklens import populations
from darklens.locate import shipped
from darklens.populations.priors import Constant, LogNormal, Normal, PowerLaw, Uniform

ROOT = Path(__file__).resolve().parent.parent
CARDS, RESULTS = ROOT / "docs" / "cards", ROOT / "results"
NOTE = "<!-- Made by `python tools/cards.py`; edit the text in docs/cards/words. -->\n\n"


def main() -> None:
    made = {**{f"populations/{n}.md": population_card(n) for n in populations.names()}, "index.md": index()}
    made |= {f"models/{name}.md": model_card(name) for name in shipped()}
    stale = [name for name, text in made.items() if not _holds(CARDS / name, text)]
    extra = [p for p in CARDS.rglob("*.md") if p.relative_to(CARDS).as_posix() not in made]
    if "--check" in sys.argv[1:]:
        if stale or extra:
            sys.exit(f"Out of date: {', '.join([*stale, *map(str, extra)])}; run `python tools/cards.py`.")
        return
    for path in extra:
        path.unlink()
    for name in stale:
        (CARDS / name).parent.mkdir(parents=True, exist_ok=True)
        (CARDS / name).write_text(made[name], encoding="utf-8")
    print(f"{len(made)} cards, {len(stale)} changed")


def _holds(path: Path, text: str) -> bool:
    return path.exists() and path.read_text(encoding="utf-8") == text


def index() -> str:
    rows = [f"- [{name}](populations/{name}.md): {populations.get(name).description}" for name in populations.names()]
    models = [f"- [{name}](models/{name}.md): {words(name)['about']}" for name in shipped()]
    return (
        f"{NOTE}# Cards\n\n"
        "Use these cards to choose a population or a trained model. Each says what it is, how it performs and what not "
        "to use it for.\n\n"
        "## Populations\n\n" + "\n".join(rows) + "\n\n## Shipped models\n\n" + "\n".join(models) + "\n\n"
        "```{toctree}\n:hidden:\n:glob:\n\npopulations/*\nmodels/*\n```\n"
    )


def words(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CARDS / "words" / f"{name}.yaml").read_text(encoding="utf-8"))
    return found


def bullets(items: list[str]) -> str:
    return "".join(f"- {' '.join(item.split())}\n" for item in items)


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


# Populations


def population_card(name: str) -> str:
    population, own = populations.get(name), words(name)
    kinds = [spec.kind for spec in population.classes.values()]
    masses = (
        [component.kind for component in population.scene.mass.values()]
        if population.scene
        else ["sis" if population.lens.is_round else "sie", "shear"]
    )
    terms = [
        *dict.fromkeys(masses),
        "sersic",
        *dict.fromkeys(kinds),
        population.noise.kind,
    ]
    known = words("equations")
    equations = bullets([known[term] for term in terms if term in known])
    priors = [
        [f"`{key}`", text, meaning]
        for part in ("field", "psf", "lens", "lens_light", "source", "scene", "classes", "noise")
        for key, text, meaning in settings(getattr(population, part), part)
    ]
    flags = f"`conserve_mass: {str(population.conserve_mass).lower()}`, stored as `{population.stored}`"
    return (
        f"{NOTE}# {name}\n\n{population.description}\n\n"
        f"Version {population.version}; classes {', '.join(f'`{c}`' for c in population.class_names)}; {flags}. "
        f"[YAML](../../../src/darklens/populations/{name}.yaml)\n\n"
        f"## Origin\n\n{' '.join(own['origin'].split())}\n\n"
        "## Equations\n\n$\\beta = \\theta - \\alpha(\\theta)$, $I(\\theta) = S(\\beta(\\theta))$ "
        "([laws and references](../../physics.md)).\n\n"
        f"{equations}\n## Priors\n\n{table(['setting', 'prior', 'unit or meaning'], priors)}\n"
        f"## Make it\n\n{generator(name)}\n"
        f"## What is difficult\n\n{bullets(own['hard'])}\n"
        f"## Do not use it for\n\n{bullets(own['not_for'])}"
    )


def settings(value: Any, key: str, meaning: str = "") -> list[tuple[str, str, str]]:
    """Return (key, prior in words, meaning) of everything below a setting."""
    if isinstance(value, dict):
        return [row for name, item in value.items() for row in settings(item, f"{key}.{name}")]
    if isinstance(value, BaseModel) and not isinstance(value, Constant | Uniform | PowerLaw | Normal | LogNormal):
        described = type(value).model_fields
        rows = [(key, f"`{value.kind}`", (type(value).__doc__ or "").split("\n")[0])] if hasattr(value, "kind") else []
        for name, field in described.items():
            item = getattr(value, name)
            if name != "kind" and item is not None:
                rows += settings(item, f"{key}.{name}", field.description or "")
        return rows
    return [] if value is None else [(key, prior(value), meaning)]


def prior(value: Any) -> str:
    match value:
        case Constant():
            return number(value.value)
        case Uniform():
            return f"U({number(value.low)}, {number(value.high)})"
        case PowerLaw():
            return f"∝ x^{number(value.slope)} in {number(value.low)} to {number(value.high)}"
        case Normal():
            return f"N({number(value.mean)}, {number(value.sigma)}){cuts(value)}"
        case LogNormal():
            return f"log-normal, median {number(value.median)}, {number(value.dex)} dex{cuts(value)}"
        case bool():
            return str(value).lower()
        case float() | int():
            return number(value)
    return f"`{value}`"


def cuts(value: Normal | LogNormal) -> str:
    ends = (value.low, value.high)
    return "" if ends == (None, None) else ", cut at " + " and ".join(number(end) for end in ends if end is not None)


def number(value: float) -> str:
    return f"{value:.5g}"


def generator(name: str) -> str:
    n = populations.get(name).field.n_pixels
    return (
        f"    darklens simulate {name} --out stores/train --n-per-class 10000 --seed 1\n\n"
        f"{n * n * 4 / 1e3:.0f} kB per image in a store. You can spread the work over cores and machines "
        "([guide](../../how-to/cluster.md)).\n"
    )


# Models


def model_card(name: str) -> str:
    folder = ROOT / "src/darklens/weights" / name
    bundle, judged, own = load(folder / "bundle.json"), load(folder / "eval.json"), words(name)
    trained, data, tested, n = bundle["provenance"], bundle["data"], judged["data"], bundle["n_pixels"]
    fits = " without the fits" if "population" in bundle["model"] else ""
    return (
        f"{NOTE}# {name}\n\n{' '.join(own['about'].split())}\n\n"
        f"{bundle['parameters']:,} parameters; input {n} x {n} pixels of {bundle['pixel_scale']} arcsec; "
        f"classes {', '.join(f'`{c}`' for c in bundle['classes'])}. Licence: {bundle['licence']}.\n\n"
        f"    darklens predict {name} FILES --out predictions.csv\n\n"
        "## Data\n\n"
        + table(
            ["", "population", "images", "seed", "sha256"],
            [
                [
                    "trained and validated on",
                    card_link(data["population"]),
                    f"{data['n']:,}",
                    str(data["seed"]),
                    f"`{data['sha256'][:16]}`",
                ],
                [
                    "tested on",
                    card_link(tested["population"]),
                    f"{judged['n']:,}",
                    str(tested["seed"]),
                    f"`{tested['sha256'][:16]}`",
                ],
            ],
        )
        + f"\nRecipe [`{bundle['recipe']}`](../../../src/darklens/recipes/{bundle['recipe']}.yaml), "
        f"seed {trained['seed']}, {trained['train_images']:,} training images, "
        f"{trained['train_seconds'] / 60:.0f} minutes{fits}; {source(bundle)}. "
        f"Weights `{bundle['weights_sha256'][:16]}`.\n\n"
        f"## Performance\n\n{metrics(judged)}\n## Calibration\n\n{calibration(judged)}\n"
        f"## Detection limit\n\n{limits(judged)}\n{elsewhere(bundle, own)}"
        f"## Limits\n\n{bullets(own['limits'])}\n## Use it for\n\n{bullets(own['use'])}"
    )


def card_link(population: str) -> str:
    return f"[{population}](../populations/{population}.md)"


def interval(its: dict[str, Any], places: int = 4) -> str:
    low, high = its["ci95"]
    # A bootstrap's end can miss 1 by a rounding error.
    return f"{its['value']:.{places}f} [{low:.{places}f}, {min(high, 1.0):.{places}f}]"


def metrics(judged: dict[str, Any]) -> str:
    classes = [c for c in judged["auc"] if c != "macro"]
    rows = [
        [
            "all, macro",
            interval(judged["auc"]["macro"], 5),
            interval(judged["average_precision"]["macro"], 5),
            interval(judged["accuracy"]),
        ]
    ]
    rows += [
        [c, *(interval(judged[m][c], d) for m, d in (("auc", 5), ("average_precision", 5), ("recall", 4)))]
        for c in classes
    ]
    confusion = [[f"true {c}", *map(str, row)] for c, row in zip(classes, judged["confusion"], strict=True)]
    return (
        f"One training, on the test images above; {source(judged)}. Brackets are 95 % intervals.\n\n"
        + table(["class", "AUC, one-vs-rest", "average precision", "accuracy, recall"], rows)
        + "\n"
        + table(["", *(f"predicted {c}" for c in classes)], confusion)
    )


def calibration(judged: dict[str, Any]) -> str:
    rows = [
        ["temperature", f"{judged['calibration']['temperature']:.3f}, from {judged['calibration']['images']}"],
        ["calibration error (ECE)", interval(judged["ece"])],
        ["log-loss", interval(judged["nll"])],
        ["Brier score", interval(judged["brier"])],
    ]
    for its in as_list(judged["conformal"]):
        for kind in ("lac", "lac_by_class", "aps"):
            by_class = ", ".join(f"{c:.1%}" for c in its[kind]["coverage_by_class"])
            rows.append(
                [
                    f"{its['level']:.0%} sets, {kind}",
                    f"contain the true class in {its[kind]['coverage']:.1%} (by class {by_class})",
                ]
            )
    for its in as_list(judged["selective"]):
        part, wrong = its["accepted"], its["wrong_of_accepted"]
        of_these = "" if wrong is None else f", {wrong:.2%} of these wrong"
        answered = "no guarantee possible" if part is None else f"{part:.1%} answered{of_these}"
        rows.append([f"risk of at most {its['risk']:.1%}", answered])
    rows.append(["`ood` is `yes` (nominal 1 %)", f"{judged['ood']['beyond_p99']:.2%} of test images"])
    return table(["what", "on the test images"], rows) + "\n[What these guarantee](../../uncertainty.md)\n"


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def limits(judged: dict[str, Any]) -> str:
    rows = []
    for stratum in judged["strata"]:
        for its in stratum.get("limits", []):
            reached = (
                f"{its['value']:.3g} {stratum['unit']}"
                if its["reached"] == "inside"
                else its["reached"] + " in the test images"
            )
            smallest, largest = stratum["bins"][0], stratum["bins"][-1]
            span = f"{smallest['low']:.2g} to {largest['high']:.2g} {stratum['unit']}"
            lowest = interval(smallest["recall"][stratum["class"]], 3)
            rows.append([stratum["class"], stratum["parameter"], f"{its['recall']:.0%}", reached, span, lowest])
    return table(
        ["class", "mass", "recall", "reached at", "masses of the test images", "recall in the lightest tenth"], rows
    )


def elsewhere(bundle: dict[str, Any], own: dict[str, Any]) -> str:
    """Return what was measured on other images, if it was measured with these weights' training data."""
    text = ""
    found = load(RESULTS / own["shifts"]) if "shifts" in own else None
    if found and found["model"]["data"]["sha256"] == bundle["data"]["sha256"]:
        rows = [
            [r["name"], interval(r["auc"]["macro"], 3), interval(r["accuracy"], 3), f"{r['ece']['value']:.3f}"]
            for r in found["rows"]
        ]
        text += f"## On other images\n\n{found['n']} images per row; {source(found)}. "
        text += "The fits always assume the training population.\n\n"
        text += table(["test images", "macro AUC", "accuracy", "ECE"], rows) + "\n"
    found = load(RESULTS / own["real_images"]) if "real_images" in own else None
    if found:
        rows = [
            [k, str(found[k]["n"]), f"{found[k]['accuracy']:.3f}", f"{found[k]['macro_auc']:.4f}"]
            for k in ("exact", "recovered")
        ]
        page = Path(own["real_images"]).with_suffix(".md").as_posix()
        text += f"## On original files of Common Test I\n\n{source(found)} ([each image](../../../results/{page})).\n\n"
        text += table(["images", "n", "accuracy", "macro AUC"], rows) + "\n"
    return text


def source(found: dict[str, Any]) -> str:
    return f"commit {found['provenance']['commit']}, {found['provenance']['hardware']}"


def load(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


if __name__ == "__main__":
    main()
