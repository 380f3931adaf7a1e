"""Train every recipe on one population and keep the evaluations, which make the tables of results/README.md."""

from pathlib import Path

from darklens.files import read_json
from darklens.recipes import names
from darklens.training import recipe as recipes
from darklens.training.recipe import Recipe
from experiments import engine, results
from experiments.engine import SEEDS, Backend, Experiment, Overrides, Work

SEED = 0


class Config(Experiment):
    """All recipes that can train on a population.

    Attributes:
        population: Of training and test images.
        backend: That simulates them.
        n_per_class: Training images of each class.
        test_per_class: Test images of each class.
        epochs_fraction: Of the epochs of each stage.
        overrides: Of every recipe.
        only: Names of the recipes; default: those that take a store and those that simulate this population.
        legacy: Whether to train as the study did too.
    """

    population: str
    backend: Backend = "compiled"
    n_per_class: int
    test_per_class: int
    epochs_fraction: float = 1.0
    overrides: Overrides = []
    only: list[str] = []
    legacy: bool = True


def run(config: Config, work: Work) -> None:
    """Train and evaluate, the shortest trainings first."""
    train = engine.simulate(work, config.population, config.n_per_class, SEEDS["train"], backend=config.backend)
    test = engine.simulate(work, config.population, config.test_per_class, SEEDS["test"], backend=config.backend)
    size = f"{config.population}-{config.n_per_class}-{config.test_per_class}"
    for recipe in sorted(chosen(config), key=lambda recipe: sum(epochs(config, recipe))):
        folder = work.runs / size / recipe.name
        changes = [f"stages.{i}.epochs={n}" for i, n in enumerate(epochs(config, recipe))]
        store = train if recipe.data.kind == "store" else None
        engine.train(recipe.name, [*config.overrides, *changes], folder, seed=SEED, store=store)
        keep(engine.evaluate(folder, test), work.out)


def chosen(config: Config) -> list[Recipe]:
    found = [recipes.get(name) for name in config.only or names()]
    fitting = [r for r in found if r.data.kind == "store" or r.data.population == config.population]
    return [r for r in fitting if config.legacy or not r.name.endswith("_legacy")]


def epochs(config: Config, recipe: Recipe) -> list[int]:
    return [max(1, round(stage.epochs * config.epochs_fraction)) for stage in recipe.stages]


def keep(evaluation: Path, kept: Path) -> None:
    """Copy an evaluation below the results, if it is not there yet."""
    record = read_json(evaluation / "eval.json")
    path = kept / record["data"]["population"] / record["model"]["recipe"] / f"seed{SEED}" / "eval.json"
    if not path.exists() or read_json(path) != record:
        results.add(evaluation, SEED, kept)
