"""Compare systems that are trained on the same images and evaluated on the same test images."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from darklens import populations
from darklens.config import Frozen
from darklens.data.store import Store
from darklens.evaluation import bootstrap
from darklens.evaluation.compare import format_metric
from darklens.evaluation.intervals import metrics_with_intervals
from darklens.evaluation.runs import read_run
from darklens.executors import usable_cores
from darklens.files import read_json
from darklens.fit.cache import cached_fits
from darklens.recipes import names
from darklens.report.figures import COLOURS
from darklens.training import recipe as recipes
from experiments import curves, engine
from experiments.engine import SEEDS, Backend, Experiment, Overrides, Work

Row = dict[str, Any]
METRICS = ("auc", "legacy_auc", "accuracy", "ece", "nll", "confusion")
EPOCHS = "metrics.csv"
KEPT = ("eval.json", "roc.png", "calibration.png", EPOCHS)
BUNDLE = "bundle/bundle.json"  # of a finished run


class System(Frozen):
    """A recipe and its changes.

    Attributes:
        logistic: In place of a recipe: columns of the fits for a logistic regression on ln(1 + value).
        keep: Folder below the results in which the evaluation and the epochs are kept.
        images_per_second: Rate of the training on one idle processor, simulation and validation included.
        sizes: Numbers of training images per class, and `seeds` the number of trainings; default: the experiment's.
    """

    recipe: str = ""
    overrides: Overrides = []
    logistic: list[str] = []
    keep: str = ""
    images_per_second: float = 0
    sizes: list[int] = []
    seeds: int | None = None


class Config(Experiment):
    """Systems trained on one population.

    Attributes:
        settings: Numbers that overrides and texts name in braces.
        overrides: Of all recipes; those of a system follow.
        every_recipe: Train all recipes that can use the population for this fraction of their epochs.
        only: Names of the systems that are trained; default: all.
        finished_only: Train nothing; use finished trainings, and the learning curves of unfinished ones.
        sizes: Numbers of training images per class and the overrides for each; default: `n_per_class`.
        pairs: Systems, `name` or `name@size`, whose paired differences are computed.
        reference: System whose pairs fill the columns `difference` and `p` of the first table.
        columns: Head and content (see `cell`) of the first table, `difference_columns` of the second.
        published: Values of 1 - macro AUC in the figure, by their labels.
    """

    population: str
    population_overrides: Overrides = []
    backend: Backend = "compiled"
    n_per_class: int = 0
    test_per_class: int
    seeds: int = 1
    settings: dict[str, int | float] = {}
    overrides: Overrides = []
    systems: dict[str, System] = {}
    every_recipe: float | None = None
    only: list[str] = []
    finished_only: bool = False
    sizes: dict[int, Overrides] = {}
    only_sizes: list[int] = []
    pairs: list[tuple[str, str]] = []
    reference: str = ""
    columns: dict[str, str] = {}
    difference_columns: dict[str, str] = {}
    figure: Literal["none", "seeds", "sizes", "curves"] = "none"
    published: dict[str, float] = {}

    def values(self) -> dict[str, Any]:
        """Return the settings that texts and overrides may name."""
        fields = ("population", "backend", "n_per_class", "test_per_class", "seeds")
        return {name: getattr(self, name) for name in fields} | self.settings


@dataclass(frozen=True)
class Training:
    """One training of one system."""

    name: str
    system: System
    n: int
    seed: int
    overrides: list[str]
    run: Path


def all_recipes(config: Config, fraction: float) -> dict[str, System]:
    """Return a system for each recipe that takes a store or simulates the population, the shortest trainings first.

    The experiment `convergence` trains the `*_long` recipes.
    """
    chosen = []
    for recipe in map(recipes.get, names()):
        epochs = [max(1, round(stage.epochs * fraction)) for stage in recipe.stages]
        changes = [f"stages.{i}.epochs={n}" for i, n in enumerate(epochs)]
        usable = recipe.data.kind == "store" or recipe.data.population == config.population
        if usable and not recipe.name.endswith("_long"):
            keep = f"{config.population}/{recipe.name}"
            chosen.append((sum(epochs), System(recipe=recipe.name, overrides=changes, keep=keep)))
    return {system.recipe: system for _, system in sorted(chosen, key=lambda pair: pair[0])}


def trainings(config: Config, work: Work) -> Iterator[Training]:
    """Yield all trainings in the order of the table."""
    systems = config.systems if config.every_recipe is None else all_recipes(config, config.every_recipe)
    for name, system in systems.items():
        if config.only and name not in config.only:
            continue
        for n in config.only_sizes or system.sizes or config.sizes or [config.n_per_class]:
            chosen = [*config.overrides, *system.overrides, *config.sizes.get(n, [])]
            overrides = [engine.filled(override, {**config.values(), "n": n}) for override in chosen]
            slug = "-".join("".join(letter if letter.isalnum() else " " for letter in name).split())
            images = f"{config.population}{config.population_overrides}{config.backend}"
            digest = sha256(f"{system.recipe}{overrides}{images}".encode()).hexdigest()[:6]
            for seed in range(system.seeds or config.seeds):
                yield Training(name, system, n, seed, overrides, work.runs / f"{slug}-{n}-{digest}" / f"seed{seed}")


def run(config: Config, work: Work) -> dict[str, Any]:
    """Simulate, train, evaluate and compare."""
    options = {"overrides": config.population_overrides, "backend": config.backend}
    train = None
    if config.n_per_class:
        train = engine.simulate(work, config.population, config.n_per_class, SEEDS["train"], **options)
    test = engine.simulate(work, config.population, config.test_per_class, SEEDS["test"], **options)
    chosen = [t for t in trainings(config, work) if not config.finished_only or (t.run / BUNDLE).exists()]
    rows = []
    for training in chosen:
        system = training.system
        if system.logistic:
            assert train is not None
            evaluation = regression(config, training, Store(train), Store(test))
        else:
            stream = recipes.get(system.recipe, training.overrides).data.kind == "stream"
            store = None if stream else train
            engine.train(system.recipe, training.overrides, training.run, seed=training.seed, store=store)
            folder = engine.evaluate(training.run, test)
            evaluation = read_json(folder / "eval.json")
            kept = work.out.parent / system.keep / f"seed{training.seed}"
            for file in KEPT if system.keep else ():
                if (source := (training.run if file == EPOCHS else folder) / file).exists():
                    kept.mkdir(parents=True, exist_ok=True)
                    shutil.copy(source, kept / file)
        rows.append(
            {
                "system": training.name,
                "recipe": system.recipe,
                "overrides": training.overrides,
                "n_per_class": training.n,
                "seed": training.seed,
                "parameters": evaluation["model"]["parameters"],
                "train_seconds": evaluation["provenance"]["train_seconds"],
                **{key: evaluation[key] for key in METRICS if key in evaluation},
            }
        )
    return {
        "schema": 2,
        "settings": config.values(),
        "test": {"n": len(Store(test)), "sha256": Store(test).sha256},
        "rows": rows,
        "differences": [d for pair in config.pairs if (d := difference(pair, chosen))],
        **({"curves": learning_curves(config, work)} if config.figure == "curves" else {}),
        "provenance": engine.made_by(),
    }


def learning_curves(config: Config, work: Work) -> list[dict[str, Any]]:
    """Return the learning curve of each training that has reached the population itself."""
    drawn = []
    for training in trainings(config, work):
        points = curves.of_run(training.run, recipes.get(training.system.recipe, training.overrides))
        if points:
            identity = {"system": training.name, "seed": training.seed}
            rate, finished = training.system.images_per_second, (training.run / BUNDLE).exists()
            drawn.append({**identity, "images_per_second": rate, "finished": finished, "points": points})
    return drawn


def regression(config: Config, training: Training, train: Store, test: Store) -> dict[str, Any]:
    """Return the metrics of a logistic regression on ln(1 + value) of columns of the fits."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    population, columns = populations.get(config.population, config.population_overrides), training.system.logistic
    rows = np.concatenate([np.flatnonzero(train.labels == label)[: training.n] for label in range(len(train.classes))])
    features = []
    for store, limit in ((train, int(rows.max()) + 1), (test, None)):
        fits = cached_fits(store, population, workers=usable_cores(), limit=limit)
        features.append(np.log1p(np.maximum(np.stack([fits.column(name) for name in columns], 1), 0)))
    model = make_pipeline(StandardScaler(), LogisticRegression(C=10, max_iter=5000))
    model.fit(features[0][rows], train.labels[rows])
    metrics = metrics_with_intervals(test.labels, model.predict_proba(features[1]), test.classes)
    parameters = len(train.classes) * (len(columns) + 1)
    return {**metrics, "model": {"parameters": parameters}, "provenance": {"train_seconds": 0}}


def difference(pair: Sequence[str], all_trainings: list[Training]) -> dict[str, Any]:
    """Return the paired difference of two systems over test images and their common seeds; empty without a pair."""
    sides = []
    for name, _, size in (member.partition("@") for member in pair):
        same = [training for training in all_trainings if training.name == name and size in ("", str(training.n))]
        sides.append([read_run(training.run / "test") for training in same])
    n_seeds = min(map(len, sides))
    if n_seeds == 0:
        return {}
    labels = sides[0][0].labels
    first_side, second_side = (
        [bootstrap.BootstrapMetrics.of(labels, evaluation.probabilities) for evaluation in side[:n_seeds]]
        for side in sides
    )
    metrics = bootstrap.difference(first_side, second_side, paired=True)
    first, second = (member.replace("@", ", ") + (" per class" if "@" in member else "") for member in pair)
    return {"first": first, "second": second, "seeds": n_seeds, **metrics}


def page(config: Config, result: dict[str, Any]) -> str:
    """Return the text with the table of systems and that of differences."""
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in result["rows"]:
        groups.setdefault((row["system"], row["n_per_class"]), []).append(row)
    to_reference = {d["first"]: d for d in result["differences"] if d["second"] == config.reference}
    tables = [[list(config.columns)], [list(config.difference_columns)]]
    for (name, _), rows in groups.items():
        tables[0].append([cell(spec, rows, to_reference.get(name)) for spec in config.columns.values()])
    for d in result["differences"]:
        if d["first"] not in to_reference or d["second"] != config.reference:
            tables[1].append([difference_cell(spec, d) for spec in config.difference_columns.values()])
    values = {**result["settings"], **result["provenance"], "test_images": result["test"]["n"]}
    if config.figure == "curves":
        tables.append(curves.table(result["curves"]))
    return engine.page(config, values, *(table for table in tables if table[0] and len(table) > 1))


def cell(spec: str, rows: list[Row], to_reference: dict[str, Any] | None) -> str:
    """Return a cell for the trainings of one system that differ in their seeds.

    `system` is the name, `system:0` and `system:1` its parts at ", ". `difference:FORMAT` and `p` are of the system
    less the reference. A metric, such as `auc.macro`, has a format of the mean over seeds (`:.4f`), the same with the
    value of each seed in brackets (`:.4f each`), or `:interval`.
    """
    path, _, form = spec.partition(":")
    first = rows[0]
    if path == "system":
        return (first["system"].split(", ")[int(form)] if form else first["system"]).replace("|", "\\|")
    if path == "parameters":
        return f"{first[path] / 1e6:.2f} M" if first[path] > 1000 else str(first[path])
    if path == "n_per_class":
        return f"{first[path]:,}"
    if path == "minutes":
        return f"{first['train_seconds'] / 60:.0f} min"
    if path in ("difference", "p"):
        return difference_cell(f"auc:{form}" if form else path, to_reference) if to_reference else ""
    metrics = [reduce(lambda tree, key: tree[key], path.split("."), row) for row in rows]
    if form == "interval":
        return format_metric(metrics[0])
    numbers = [metric["value"] if isinstance(metric, dict) else metric for metric in metrics]
    form, _, each = form.partition(" ")
    separate = f" ({', '.join(format(number, form) for number in numbers)})" if each and len(numbers) > 1 else ""
    return "-" if None in numbers else f"{np.mean(numbers):{form}}{separate}"


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
    """Return the figure of macro AUC by system."""
    if config.figure == "curves":
        return curves.draw(result["curves"], result["differences"])
    aucs: dict[str, dict[int, list[float]]] = {}
    for row in result["rows"] if config.figure != "none" else ():
        by_size = aucs.setdefault(row["system"], {})
        by_size.setdefault(row["n_per_class"], []).append(row["auc"]["macro"]["value"])
    draw = {"none": lambda *_: None, "seeds": draw_seeds, "sizes": draw_sizes}[config.figure]
    return draw(config, result, aucs)


def draw_seeds(config: Config, result: dict[str, Any], aucs: dict[str, dict[int, list[float]]]) -> Figure:
    """Draw a dot for each training and, beside it, the difference of each system from the reference."""
    to_reference = {d["first"]: d["auc"] for d in result["differences"] if d["second"] == config.reference}
    drawing = Figure(figsize=(9.5, 0.5 * len(aucs) + 1.6), layout="constrained")
    by_seed, differences = drawing.subplots(1, 2, sharey=True)
    for y, (name, by_size) in enumerate(aucs.items()):
        (each,) = by_size.values()
        by_seed.plot(each, [y] * len(each), "o", color=COLOURS[0], alpha=0.5, markersize=6)
        by_seed.plot([np.mean(each)], [y], "|", color="black", markersize=18)
        if name in to_reference:
            value, (low, high) = to_reference[name]["value"], to_reference[name]["ci95"]
            spread = [[max(0.0, value - low)], [max(0.0, high - value)]]
            differences.errorbar([value], [y], xerr=spread, fmt="o", color=COLOURS[1], capsize=3)
    differences.axvline(0, color="0.6", linewidth=1, linestyle=":")
    by_seed.set(yticks=range(len(aucs)), yticklabels=list(aucs), xlabel="macro AUC (dot: one seed)")
    differences.set(xlabel=f"difference from {config.reference}")
    differences.xaxis.set_major_locator(MaxNLocator(5))
    by_seed.invert_yaxis()
    for axes in (by_seed, differences):
        axes.grid(axis="x", alpha=0.3)
    return drawing


def draw_sizes(config: Config, result: dict[str, Any], aucs: dict[str, dict[int, list[float]]]) -> Figure:
    """Draw 1 - AUC of each system against the number of training images, logarithmic on both axes."""
    drawing = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = drawing.subplots()
    for i, (name, by_size) in enumerate(aucs.items()):
        errors = [max(1e-6, 1 - float(np.mean(by_size[n]))) for n in sorted(by_size)]
        style = {"color": COLOURS[i % len(COLOURS)], "linestyle": "-" if i < 5 else "--"}
        axes.plot(sorted(by_size), errors, marker="o", label=name, **style)
    for label, error in config.published.items():
        axes.axhline(error, color="0.6", linestyle=":", label=label)
    axes.set(xscale="log", yscale="log", xlabel="training images of each class", ylabel="1 - macro AUC")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    return drawing
