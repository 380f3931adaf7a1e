"""darklens: physics-informed classification of dark-matter substructure in strong-lens images.

The public names are imported on first use, so that `import darklens` is fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from darklens.bundle import Bundle
    from darklens.data.store import Store
    from darklens.evaluation.evaluate import evaluate
    from darklens.fit.evidence import evidence_maps
    from darklens.fit.false_alarms import false_alarm_threshold
    from darklens.fit.gain_map import sensitivity_map
    from darklens.fit.hypotheses import fit_hypotheses
    from darklens.fit.macro import fit_macro
    from darklens.fit.perturber_profiles import HaloPerturber, Redshifts
    from darklens.fit.perturbers import find_perturbers
    from darklens.fit.scene_fit import fit
    from darklens.fit.source_reconstruction import reconstruct_source
    from darklens.physics.grid import Grid
    from darklens.populations.population import get as get_population
    from darklens.scene import (
        EPL,
        NFW,
        PSF,
        SIE,
        SIS,
        TNFW,
        Detector,
        Free,
        LightModel,
        LineMass,
        MassModel,
        MultiGaussian,
        Multipole,
        Observation,
        PhotonNoise,
        PointMass,
        PseudoJaffe,
        Scene,
        Sersic,
        Shapelets,
        Shear,
        SourceGrid,
    )
    from darklens.simulate.generate import generate
    from darklens.training.recipe import get as get_recipe
    from darklens.training.run import train

_HOME = {
    "Bundle": ("darklens.bundle", "Bundle"),
    "Grid": ("darklens.physics.grid", "Grid"),
    "HaloPerturber": ("darklens.fit.perturber_profiles", "HaloPerturber"),
    "Redshifts": ("darklens.fit.perturber_profiles", "Redshifts"),
    "Store": ("darklens.data.store", "Store"),
    "fit": ("darklens.fit", ""),  # a package that can be called
    "evaluate": ("darklens.evaluation.evaluate", "evaluate"),
    "evidence_maps": ("darklens.fit.evidence", "evidence_maps"),
    "false_alarm_threshold": ("darklens.fit.false_alarms", "false_alarm_threshold"),
    "find_perturbers": ("darklens.fit.perturbers", "find_perturbers"),
    "fit_hypotheses": ("darklens.fit.hypotheses", "fit_hypotheses"),
    "fit_macro": ("darklens.fit.macro", "fit_macro"),
    "generate": ("darklens.simulate.generate", "generate"),
    "get_population": ("darklens.populations.population", "get"),
    "get_recipe": ("darklens.training.recipe", "get"),
    "reconstruct_source": ("darklens.fit.source_reconstruction", "reconstruct_source"),
    "sensitivity_map": ("darklens.fit.gain_map", "sensitivity_map"),
    "train": ("darklens.training.run", "train"),
}
_SCENE = (
    "EPL NFW PSF SIE SIS TNFW Detector Free LightModel LineMass MassModel MultiGaussian Multipole "
    "Observation PhotonNoise PointMass PseudoJaffe Scene Sersic Shapelets Shear SourceGrid"
)
_HOME |= {name: ("darklens.scene", name) for name in _SCENE.split()}

__all__ = [
    "EPL",
    "NFW",
    "PSF",
    "SIE",
    "SIS",
    "TNFW",
    "Bundle",
    "Detector",
    "Free",
    "Grid",
    "HaloPerturber",
    "LightModel",
    "LineMass",
    "MassModel",
    "MultiGaussian",
    "Multipole",
    "Observation",
    "PhotonNoise",
    "PointMass",
    "PseudoJaffe",
    "Redshifts",
    "Scene",
    "Sersic",
    "Shapelets",
    "Shear",
    "SourceGrid",
    "Store",
    "evaluate",
    "evidence_maps",
    "false_alarm_threshold",
    "find_perturbers",
    "fit",
    "fit_hypotheses",
    "fit_macro",
    "generate",
    "get_population",
    "get_recipe",
    "reconstruct_source",
    "sensitivity_map",
    "train",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _HOME:
        raise AttributeError(f"module 'darklens' has no attribute {name!r}")
    module, attribute = _HOME[name]
    home = import_module(module)
    return getattr(home, attribute) if attribute else home


def _version() -> str:
    """Return the version of the installation, which is that of its git tag."""
    from importlib.metadata import PackageNotFoundError, version  # imported here so that `import darklens` stays fast

    try:
        number = version("darklens")
    except PackageNotFoundError:  # a source tree that is not installed
        number = "0+unknown"
    globals()["__version__"] = number
    return number


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
