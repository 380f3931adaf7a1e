"""The contract of a bundle, bundle.json: network, inputs, classes, calibration, metrics and provenance."""

import math
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator
from torch import nn

from darklens import aliases
from darklens.calibration import Calibration
from darklens.config import ClassName, Frozen
from darklens.data.preprocess import Preprocess
from darklens.fit.cache import fit_settings_of
from darklens.locate import shipped
from darklens.models.base import DEFAULT_POPULATION, OnPopulation
from darklens.models.ensemble import AnySystemConfig, Ensemble, EnsembleConfig
from darklens.models.macro_fit_k import MacroFitConfig
from darklens.models.zoo import SYSTEMS, Task, build, task_of


def _default_population(part: dict[str, Any]) -> str | None:
    """Return the name of the population that a part of a system without one would fit; None if it fits none."""
    kind = part.get("kind")
    known = SYSTEMS[kind].settings if isinstance(kind, str) and kind in SYSTEMS else None
    settings = MacroFitConfig if kind == "macro_fit" else known
    return DEFAULT_POPULATION if settings is not None and issubclass(settings, OnPopulation) else None


class Contract(Frozen):
    """Inputs, outputs, metrics and provenance of a bundle."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    recipe: str
    recipe_sha256: str
    model: AnySystemConfig
    classes: list[ClassName] = Field(min_length=1)
    n_pixels: int = Field(ge=8, le=4096, description="pixels along a side of input images")
    pixel_scale: float = Field(gt=0, description="pixel scale of input images, arcsec")
    preprocess: Preprocess
    parameters: int
    weights_sha256: str = ""
    calibration: Calibration | None = Field(default=None, description="calibration on held-out images, if any")
    ood_sha256: str = Field(default="", description="digest of ood.safetensors; empty if there is none")
    fallback: str = Field(default="", description="shipped model for images that this one doubts; empty: none")
    checked_by: str = Field(default="", description="shipped model whose fits check the classes; empty: none")
    data: dict[str, Any] = Field(description="the training data: population, seed, sha256")
    validation: dict[str, float] = Field(description="validation metrics of the best epoch")
    provenance: dict[str, Any] = Field(description="version, commit, hardware, seed, train_seconds, train_images")
    licence: str = "MIT"

    @model_validator(mode="before")
    @classmethod
    def _current_names(cls, tree: Any) -> Any:
        """Replace keys of older bundles."""
        return aliases.configuration(tree)

    @field_validator("classes")
    @classmethod
    def _distinct(cls, classes: list[str]) -> list[str]:
        if len(set(classes)) != len(classes):
            raise ValueError("two classes have the same name")
        return classes

    @field_validator("recipe", "licence")
    @classmethod
    def _check_text(cls, text: str) -> str:
        if not text.isprintable():
            raise ValueError("has control characters")
        return text

    @field_validator("fallback", "checked_by")
    @classmethod
    def _check_companion(cls, name: str) -> str:
        if name and name not in shipped():
            raise ValueError(f"must be a model of this package: {', '.join(shipped())}")
        return name

    @field_validator("data")
    @classmethod
    def _check_population(cls, data: dict[str, Any]) -> dict[str, Any]:
        name = data.get("population")
        if not (name is None or (isinstance(name, str) and name.isprintable())):
            raise ValueError("population must be a name")
        return data

    @field_validator("provenance")
    @classmethod
    def _check_provenance(cls, provenance: dict[str, Any]) -> dict[str, Any]:
        numbers = [provenance.get(name, 0) for name in ("train_seconds", "train_images")]
        if not all(isinstance(number, int | float) and 0 <= number < math.inf for number in numbers):
            raise ValueError("train_seconds and train_images must be numbers")
        if not all(text.isprintable() for text in provenance.values() if isinstance(text, str)):
            raise ValueError("has control characters")
        return provenance

    @model_validator(mode="after")
    def _check_together(self) -> "Contract":
        """Check that calibration and fitted population are those of such a model."""
        if self.calibration is not None:
            self.calibration.require_classes(len(self.classes))
        settings = fit_settings_of(self.model)
        if settings is not None and self.checked_by:
            raise ValueError("checked_by is for networks that take images")
        if settings is not None:
            field = settings.population.field
            if field.n_pixels != self.n_pixels or not math.isclose(field.pixel_scale, self.pixel_scale, rel_tol=1e-3):
                raise ValueError(
                    f"the fitted population has {field.n_pixels} pixels of {field.pixel_scale} arcsec, the model "
                    f"{self.n_pixels} of {self.pixel_scale}"
                )
        return self

    @field_validator("model", mode="before")
    @classmethod
    def _by_contents(cls, tree: Any) -> Any:
        """Reject populations by name: a name can be a path, and a bundle must not read files outside its folder."""
        members = (tree.get("members") or [tree]) if isinstance(tree, dict) else []
        parts = [*members, *(m.get("k_network") for m in members if isinstance(m, dict))]
        for part in parts:
            if isinstance(part, dict) and isinstance(part.get("population", _default_population(part)), str):
                raise ValueError("population must be a mapping, not a name")
        return tree

    @classmethod
    def untrained(cls, model: Any, *, n_pixels: int, pixel_scale: float, **known: Any) -> "Contract":
        """Return the contract of an untrained system, for benchmarks and tests.

        Args:
            model: Configuration of the system.
            n_pixels: Pixels along a side of input images.
            pixel_scale: Pixel scale of input images, arcsec.
            known: Other fields, such as `preprocess`. The default classes are no, sphere and vort.
        """
        nothing: dict[str, Any] = {"recipe_sha256": "", "parameters": 0, "data": {}, "validation": {}, "provenance": {}}
        usual = {"recipe": model.kind, "classes": ["no", "sphere", "vort"], "preprocess": Preprocess()}
        settings = {"model": model, "n_pixels": n_pixels, "pixel_scale": pixel_scale}
        return cls(**(nothing | usual | settings | known))

    @property
    def task(self) -> Task:
        """`classify` or `reconstruct`."""
        return task_of(self.model)

    def build(self) -> nn.Module:
        """Build the network with newly initialised weights."""
        n_pixels, pixel_scale = self.preprocess.output_size(self.n_pixels), self.pixel_scale * self.preprocess.bin
        if isinstance(self.model, EnsembleConfig):
            return Ensemble(self.model, n_pixels=n_pixels, pixel_scale=pixel_scale, n_classes=len(self.classes))
        return build(self.model, n_pixels=n_pixels, pixel_scale=pixel_scale, n_classes=len(self.classes))
