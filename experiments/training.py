"""Compare systems that are trained on the same images and evaluated on the same test images."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from darklens import populations
from darklens.config import Frozen
from darklens.data.store import Store
from darklens.evaluation.bootstrap import difference_over_seeds
from darklens.evaluation.compare import format_metric
from darklens.evaluation.intervals import metrics_with_intervals
from darklens.evaluation.runs import read_run
from darklens.executors import usable_cores
from darklens.files import read_json
from darklens.fit.cache import cached_fits
from darklens.report.figures import COLOURS
from darklens.training import recipe as recipes
from experiments import engine
from experiments.engine import SEEDS, Backend, Experiment, Overrides, Work

Row = dict[str, Any]
METRICS = ("auc", "legacy_auc", "accuracy", "ece", "nll", "confusion")


class System(Frozen):
    """What is trained.

    Attributes:
        recipe: Name of the recipe.
        overrides: Its changes, after those of the experiment.
        logistic: In place of a recipe: columns of the fits for a logistic regression on ln(1 + value).
        labels: Further cells of the table by name.
        keep: Folder below the results in which its eval.json is kept.
        sizes: Numbers of training images per class; default: those of the experiment.
        seeds: Number of trainings; default: that of the experiment.
    """

    recipe: str = ""
    overrides: Overrides = []
    logistic: list[str] = []
    labels: dict[str, str] = {}
    keep: str = ""
    sizes: list[int] = []
    seeds: int | None = None


class Config(Experiment):
    """Systems trained on one population.

    Attributes:
        population: Of training and test images, with `population_overrides`, simulated by `backend`.
        n_per_class: Training images of each class.
        test_per_class: Test images of each class.
        seeds: Trainings of each system, with seeds 0, 1, ...
        settings: Numbers that overrides and texts name in braces.
        overrides: Of all recipes.
        systems: By name.
        only: Names of the systems that are trained; default: all.
        sizes: Numbers of training images per class and the overrides for each; empty: `n_per_class`.
        only_sizes: Those that are trained; default: all.
        pairs: Names of systems, `name` or `name@size`, whose paired differences are computed.
        reference: System whose pairs fill the columns `difference` and `p` of the first table.
        columns: Head and content of the first table's columns, see `cell`.
        difference_columns: The same of the table of differences, see `difference_cell`.
        figure: Trainings with differences from the reference, or curves against the number of images.
        published: Values of 1 - macro AUC in the figure, by their labels.
    """

    population: str
    population_overrides: Overrides = []
    backend: Backend = "compiled"
    n_per_class: int
    test_per_class: int
    seeds: int = 1
    settings: dict[str, int | float] = {}
    overrides: Overrides = []
    systems: dict[str, System]
    only: list[str] = []
    sizes: dict[int, Overrides] = {}
    only_sizes: list[int] = []
    pairs: list[tuple[str, str]] = []
    reference: str = ""
    columns: dict[str, str]
    difference_columns: dict[str, str] = {}
    figure: Literal["none", "seeds", "sizes"] = "none"
    published: dict[str, float] = {}

    def values(self) -> dict[str, Any]:
        """Return the settings that texts and overrides may name."""
        names = ("population", "backend", "n_per_class", "test_per_class", "seeds")
        return {name: getattr(self, name) for name in names} | self.settings


@dataclass(frozen=True)
class Training:
    """One training of one system."""

    name: str
    system: System
    n: int
    seed: int
    overrides: list[str]
    run: Path


def trainings(config: Config, work: Work) -> Iterator[Training]:
    """Yield all trainings in the order of the table."""
    for name, system in config.systems.items():
        if config.only and name not in config.only:
            continue
        for n in config.only_sizes or system.sizes or config.sizes or [config.n_per_class]:
            values = {**config.values(), "n": n}
            chosen = [*config.overrides, *system.overrides, *config.sizes.get(n, [])]
            overrides = [engine.filled(override, values) for override in chosen]
            for seed in range(system.seeds or config.seeds):
                yield Training(name, system, n, seed, overrides, work.runs / slug(name) / str(n) / f"seed{seed}")


def slug(name: str) -> str:
    return "-".join("".join(letter if letter.isalnum() else " " for letter in name).split())


def run(config: Config, work: Work) -> dict[str, Any]:
    """Simulate, train, evaluate and compare."""
    sizes = {"train": config.n_per_class, "test": config.test_per_class}
    options = {"overrides": config.population_overrides, "backend": config.backend}
    stores = {k: engine.simulate(work, config.population, n, SEEDS[k], **options) for k, n in sizes.items()}
    rows = []
    for training in trainings(config, work):
        if training.system.logistic:
            evaluation = regression(config, training, Store(stores["train"]), Store(stores["test"]))
        else:
            stream = recipes.get(training.system.recipe, training.overrides).data.kind == "stream"
            store = None if stream else stores["train"]
            engine.train(training.system.recipe, training.overrides, training.run, seed=training.seed, store=store)
            path = engine.evaluate(training.run, stores["test"]) / "eval.json"
            evaluation = read_json(path)
            if training.system.keep:
                kept = work.out.parent / training.system.keep / f"seed{training.seed}"
                kept.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, kept / path.name)
        rows.append(row_of(training, evaluation))
    return {
        "schema": 2,
        "settings": config.values(),
        "test": engine.about_store(stores["test"]),
        "rows": rows,
        "differences": [difference(pair, list(trainings(config, work))) for pair in config.pairs],
        "provenance": engine.made_by(),
    }


def row_of(training: Training, evaluation: dict[str, Any]) -> Row:
    return {
        "system": training.name,
        "labels": training.system.labels,
        "recipe": training.system.recipe,
        "overrides": training.overrides,
        "n_per_class": training.n,
        "seed": training.seed,
        "parameters": evaluation["model"]["parameters"],
        "train_seconds": evaluation["provenance"]["train_seconds"],
        **{key: evaluation[key] for key in METRICS},
    }


def regression(config: Config, training: Training, train: Store, test: Store) -> dict[str, Any]:
    """Return the metrics of a logistic regression on ln(1 + value) of columns of the fits."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    population = populations.get(config.population, config.population_overrides)
    columns = training.system.logistic
    rows = np.concatenate([np.flatnonzero(train.labels == label)[: training.n] for label in range(len(train.classes))])
    features = []
    for store, limit in ((train, int(rows.max()) + 1), (test, None)):
        fits = cached_fits(store, population, engine=config.backend, workers=usable_cores(), limit=limit)
        features.append(np.log1p(np.maximum(np.stack([fits.column(name) for name in columns], 1), 0)))
    model = make_pipeline(StandardScaler(), LogisticRegression(C=10, max_iter=5000))
    model.fit(features[0][rows], train.labels[rows])
    metrics = metrics_with_intervals(test.labels, model.predict_proba(features[1]), test.classes)
    parameters = len(train.classes) * (len(columns) + 1)
    return {**metrics, "model": {"parameters": parameters}, "provenance": {"train_seconds": 0}}


def difference(pair: Sequence[str], every_training: list[Training]) -> dict[str, Any]:
    """Return the paired difference of two systems over test images and their common seeds."""
    sides = []
    for member in pair:
        name, _, size = member.partition("@")
        same = [t for t in every_training if t.name == name and size in ("", str(t.n))]
        sides.append([read_run(t.run / "test") for t in same])
    n_seeds = min(map(len, sides))
    probabilities = [[evaluation.probabilities for evaluation in side[:n_seeds]] for side in sides]
    metrics = difference_over_seeds(sides[0][0].labels, *probabilities)
    first, second = (", ".join(member.split("@")) + (" a class" if "@" in member else "") for member in pair)
    return {"first": first, "second": second, "seeds": n_seeds, **metrics}


def page(config: Config, result: dict[str, Any]) -> str:
    """Return the text with the table of systems and that of differences."""
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in result["rows"]:
        groups.setdefault((row["system"], row["n_per_class"]), []).append(row)
    to_reference = {d["first"]: d for d in result["differences"] if d["second"] == config.reference}
    systems = [list(config.columns)]
    systems += [
        [cell(spec, rows, to_reference.get(name)) for spec in config.columns.values()]
        for (name, _), rows in groups.items()
    ]
    pairs = [d for d in result["differences"] if not config.reference or d["second"] != config.reference]
    differences = [list(config.difference_columns)]
    differences += [[difference_cell(spec, d) for spec in config.difference_columns.values()] for d in pairs]
    values = {**result["settings"], **result["provenance"], "test_images": result["test"]["n"]}
    return engine.page(config, values, systems, *([differences] if config.difference_columns else []))


def cell(spec: str, rows: list[Row], to_reference: dict[str, Any] | None) -> str:
    """Return a cell for the trainings of one system that differ in their seeds.

    `system`, `parameters`, `n_per_class`, `minutes` and `labels.NAME` are as they say. `difference:FORMAT` and `p` are
    of the system less the reference. Anything else is the path of a metric, such as `auc.macro`, followed by a format
    of the mean over seeds (`:.4f`), with the value of each seed in brackets (`:.4f each`), or `:interval`.
    """
    path, _, form = spec.partition(":")
    first = rows[0]
    if path == "system":
        return str(first["system"]).replace("|", "\\|")
    if path == "parameters":
        return f"{first[path] / 1e6:.2f} M" if first[path] > 1000 else str(first[path])
    if path == "n_per_class":
        return f"{first[path]:,}"
    if path == "minutes":
        return f"{first['train_seconds'] / 60:.0f} min"
    if path in ("difference", "p"):
        return difference_cell(f"auc:{form}" if form else path, to_reference) if to_reference else ""
    metrics = [at(row, path) for row in rows]
    if form == "interval":
        return format_metric(metrics[0])
    if isinstance(metrics[0], str | None):
        return metrics[0] or "-"
    numbers = [metric["value"] if isinstance(metric, dict) else metric for metric in metrics]
    form, _, each = form.partition(" ")
    separate = f" ({', '.join(format(number, form) for number in numbers)})" if each and len(numbers) > 1 else ""
    return f"{np.mean(numbers):{form}}{separate}"


def at(tree: Any, path: str) -> Any:
    for key in path.split("."):
        tree = tree[key]
    return tree


def difference_cell(spec: str, row: dict[str, Any]) -> str:
    """Return a cell of a paired difference: `pair`, `seeds`, `p` (of AUC), or `METRIC:FORMAT` with its interval."""
    path, _, form = spec.partition(":")
    if path == "pair":
        return f"{row['first']} - {row['second']}".replace("|", "\\|")
    if path == "seeds":
        return str(row["seeds"])
    if path == "p":
        return f"{row['auc']['p']:.3f}"
    low, high = row[path]["ci95"]
    return f"{row[path]['value']:{form}} [{low:{form}}, {high:{form}}]"


def figure(config: Config, result: dict[str, Any]) -> Figure | None:
    draw = {"none": None, "seeds": draw_seeds, "sizes": draw_sizes}[config.figure]
    return draw(config, result) if draw else None


def draw_seeds(config: Config, result: dict[str, Any]) -> Figure:
    """Draw a dot for each training and, beside it, the difference of each system from the reference."""
    names = list(dict.fromkeys(row["system"] for row in result["rows"]))
    to_reference = {d["first"]: d["auc"] for d in result["differences"] if d["second"] == config.reference}
    drawing = Figure(figsize=(9.5, 0.5 * len(names) + 1.6), layout="constrained")
    left, right = drawing.subplots(1, 2, sharey=True)
    for y, name in enumerate(names):
        aucs = [row["auc"]["macro"]["value"] for row in result["rows"] if row["system"] == name]
        left.plot(aucs, [y] * len(aucs), "o", color=COLOURS[0], alpha=0.5, markersize=6)
        left.plot([np.mean(aucs)], [y], "|", color="black", markersize=18)
        if name in to_reference:
            value, (low, high) = to_reference[name]["value"], to_reference[name]["ci95"]
            spread = [[max(0.0, value - low)], [max(0.0, high - value)]]
            right.errorbar([value], [y], xerr=spread, fmt="o", color=COLOURS[1], capsize=3)
    right.axvline(0, color="0.6", linewidth=1, linestyle=":")
    left.set(yticks=range(len(names)), yticklabels=names, xlabel="macro AUC (dot: one seed)")
    right.set(xlabel=f"difference from {config.reference}")
    right.xaxis.set_major_locator(MaxNLocator(5))
    left.invert_yaxis()
    for axes in (left, right):
        axes.grid(axis="x", alpha=0.3)
    return drawing


def draw_sizes(config: Config, result: dict[str, Any]) -> Figure:
    """Draw 1 - AUC of each system against the number of training images, logarithmic on both axes."""
    drawing = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = drawing.subplots()
    names = list(dict.fromkeys(row["system"] for row in result["rows"]))
    for i, name in enumerate(names):
        aucs: dict[int, list[float]] = {}
        for row in result["rows"]:
            if row["system"] == name:
                aucs.setdefault(row["n_per_class"], []).append(row["auc"]["macro"]["value"])
        sizes = sorted(aucs)
        errors = [max(1e-6, 1 - float(np.mean(aucs[n]))) for n in sizes]
        style = {"color": COLOURS[i % len(COLOURS)], "linestyle": "-" if i < 5 else "--"}
        axes.plot(sizes, errors, marker="o", label=name, **style)
    for label, error in config.published.items():
        axes.axhline(error, color="0.6", linestyle=":", label=label)
    axes.set(xscale="log", yscale="log", xlabel="training images of each class", ylabel="1 - macro AUC")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    return drawing
