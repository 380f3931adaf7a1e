"""Fits of the smooth lens and of perturbers to images; calling the package fits a scene to an observation."""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from darklens.fit.fit_result import FitResult
    from darklens.scene.observation import Observation
    from darklens.scene.scene import Scene


class _FitPackage(ModuleType):
    """The package as a function, so that `from darklens import fit` gives both (decision 16)."""

    def __call__(self, observation: "Observation", scene: "Scene", **options: Any) -> "FitResult":
        """Fit a scene to an observation; see `darklens.fit.scene_fit.fit`."""
        from darklens.fit.scene_fit import fit

        return fit(observation, scene, **options)


sys.modules[__name__].__class__ = _FitPackage
