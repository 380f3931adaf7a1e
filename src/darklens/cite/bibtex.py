"""BibTeX of the works that a recipe, run or model uses."""

import re
from collections.abc import Iterable
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import darklens
from darklens import populations, provenance
from darklens.bundle import Bundle
from darklens.bundle.contract import Contract
from darklens.calibration import Calibration
from darklens.cite import works
from darklens.cite.works import Use
from darklens.errors import ConfigError
from darklens.locate import is_model, locate
from darklens.models.ensemble import EnsembleConfig
from darklens.populations.population import Population
from darklens.recipes import RECIPES
from darklens.training.recipe import Recipe, get


@cache
def entries() -> dict[str, str]:
    """Return the entries of references.bib by key."""
    text = (resources.files("darklens") / "cite" / "references.bib").read_text(encoding="utf-8")
    return {match[1]: match[0] for match in re.finditer(r"^@\w+\{(\w+),\n.*?^\}", text, re.MULTILINE | re.DOTALL)}


def cite(subject: str) -> str:
    """Return BibTeX, each entry under a comment with its purpose.

    Args:
        subject: Run folder, bundle, shipped model or hub repository; or a recipe, by name or as a YAML file.

    Raises:
        ConfigError: If it is none of these.
    """
    if is_model(Path(subject)) and not Path(subject).is_file():
        return _of_model(Path(subject))
    try:
        recipe = get(subject)
    except ConfigError:
        raise ConfigError(
            f"{subject} is neither a run, a bundle, a shipped model nor a recipe; see `darklens models` and "
            "`darklens recipes`."
        ) from None
    return _of_recipe(recipe)


def _of_recipe(recipe: Recipe) -> str:
    population = populations.get(recipe.data.population, recipe.data.overrides) if recipe.data.population else None
    # The training of a classifier ends with a temperature calibration.
    calibration = Calibration() if recipe.stages[-1].task == "classify" else None
    build = {"version": darklens.__version__, "commit": provenance.commit()}
    return _text(f"recipe {recipe.name}", recipe.model, recipe, population, calibration, build)


def _of_model(path: Path) -> str:
    folder = locate(path)
    contract = Bundle.load(folder).contract
    config = folder.parent / "config.yaml"
    if config.exists():
        recipe: Recipe | None = get(str(config))
    else:
        recipe = get(contract.recipe) if contract.recipe in RECIPES else None
    return _text(
        f"{contract.recipe} on {contract.data.get('population') or 'imported images'}",
        contract.model,
        recipe,
        _known_population(contract),
        contract.calibration,
        contract.provenance,
    )


def _known_population(contract: Contract) -> Population | None:
    """Return the population of the training images, if this installation has it."""
    name = str(contract.data.get("population"))
    model = contract.model.members[0] if isinstance(contract.model, EnsembleConfig) else contract.model
    fitted = getattr(model, "population", None)
    if isinstance(fitted, Population) and fitted.name == name:
        return fitted
    return populations.get(name) if name in populations.names() else None


def _text(
    title: str,
    model: Any,
    recipe: Recipe | None,
    population: Population | None,
    calibration: Calibration | None,
    build: dict[str, Any],
) -> str:
    uses: list[Use] = [*works.of_model(model)]
    uses += works.of_population(population) if population else []
    uses += works.of_training(recipe.stages) if recipe else [("falcon2019", "training")]
    uses += works.of_calibration(calibration) if calibration else []
    uses += works.of_software()
    parts = [f"% Works used by {title}", f"% this software\n{_darklens(build)}", *_entries(uses)]
    parts += [f"% From a plug-in: {text}" for text in (works.other_profiles(population) if population else [])]
    return "\n\n".join(parts) + "\n"


def _entries(uses: Iterable[Use]) -> list[str]:
    purposes: dict[str, list[str]] = {}
    for key, purpose in uses:
        listed = purposes.setdefault(key, [])
        if purpose not in listed:
            listed.append(purpose)
    return [f"% {', '.join(what)}\n{entries()[key]}" for key, what in purposes.items()]


def _darklens(build: dict[str, Any]) -> str:
    version, commit = str(build.get("version", "unknown")), str(build.get("commit", "unknown"))
    return (
        "@software{darklens,\n"
        "  author = {{The darklens developers}},\n"
        "  title = {darklens: physics-informed classification of dark-matter substructure in strong-lens images},\n"
        f"  version = {{{version}}},\n"
        f"  note = {{commit {commit}}},\n"
        "}"
    )
