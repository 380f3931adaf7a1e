"""darklens: physics-informed classification of dark-matter substructure in strong-lens images.

The names below are imported when first used, so that `import darklens` is instant.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from darklens.bundle import Bundle
    from darklens.data.store import Store
    from darklens.evaluation.evaluate import evaluate
    from darklens.fit.evidence import evidence_maps
    from darklens.fit.hypotheses import fit_hypotheses
    from darklens.fit.macro import fit_macro
    from darklens.physics.grid import Grid
    from darklens.populations.population import get as get_population
    from darklens.simulate.generate import generate
    from darklens.training.recipe import get as get_recipe
    from darklens.training.run import train

_HOME = {
    "Bundle": ("darklens.bundle", "Bundle"),
    "Grid": ("darklens.physics.grid", "Grid"),
    "Store": ("darklens.data.store", "Store"),
    "evaluate": ("darklens.evaluation.evaluate", "evaluate"),
    "evidence_maps": ("darklens.fit.evidence", "evidence_maps"),
    "fit_hypotheses": ("darklens.fit.hypotheses", "fit_hypotheses"),
    "fit_macro": ("darklens.fit.macro", "fit_macro"),
    "generate": ("darklens.simulate.generate", "generate"),
    "get_population": ("darklens.populations.population", "get"),
    "get_recipe": ("darklens.training.recipe", "get"),
    "train": ("darklens.training.run", "train"),
}

__all__ = [
    "Bundle",
    "Grid",
    "Store",
    "evaluate",
    "evidence_maps",
    "fit_hypotheses",
    "fit_macro",
    "generate",
    "get_population",
    "get_recipe",
    "train",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _HOME:
        raise AttributeError(f"module 'darklens' has no attribute {name!r}")
    module, attribute = _HOME[name]
    return getattr(import_module(module), attribute)


def _version() -> str:
    """Return the version of the installation: that of the git tag it was built from."""
    from importlib.metadata import PackageNotFoundError, version  # here, so that the import above stays instant

    try:
        found = version("darklens")
    except PackageNotFoundError:  # run from a source tree that was never installed
        found = "0+unknown"
    globals()["__version__"] = found
    return found


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
