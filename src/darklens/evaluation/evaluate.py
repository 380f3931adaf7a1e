"""Evaluation of a bundle on a store: a prediction for each image, and the content of eval.json."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

import darklens
from darklens import provenance
from darklens.bundle import Bundle, batched, sha256_of_bundle
from darklens.data.store import Store
from darklens.errors import InputError
from darklens.evaluation.columns import prediction_columns, summarise_calibration
from darklens.evaluation.intervals import means_with_intervals, metrics_with_intervals
from darklens.evaluation.metrics import reconstruction_metrics
from darklens.evaluation.parameters import parameters_of
from darklens.evaluation.strata import stratify

_TRAINED_ON = (
    "The system was trained on images of this population and seed, so these metrics do not hold for new images."
)


@dataclass(frozen=True)
class EvaluationResult:
    """Result of an evaluation.

    Attributes:
        evaluation: The content of eval.json.
        names: Of the images.
        labels: True classes.
        probabilities: Calibrated, and not widened where there is a reason not to trust the class (`verdict` is
            `unknown`), because metrics of the network would otherwise depend on the flags. None for a system that does
            not classify.
        columns: Further columns of predictions.csv, as from `prediction_columns`.
    """

    evaluation: dict[str, Any]
    names: list[str]
    labels: Int[np.ndarray, " n"]
    probabilities: Float[np.ndarray, "n classes"] | None
    columns: dict[str, list[str]] = field(default_factory=dict)


def evaluate(
    bundle: Bundle,
    folder: Path,
    store: Store,
    *,
    seed: int = 0,
    workers: int = 1,
    advance: Callable[[int], None] = lambda _: None,
) -> EvaluationResult:
    """Evaluate a bundle on all images of a store.

    Args:
        bundle: The system.
        folder: Its bundle folder, whose digest goes into the result.
        store: Test images; if the system was trained on them, the result has a warning.
        seed: Of the bootstrap.
        workers: Processes that fit lenses, for a system that does.
        advance: Called with the number of images just finished.

    Raises:
        InputError: If the classes, size or pixel scale of the images differ from those of the bundle, or a class has
            no images.
    """
    check_compatible(bundle, store)
    if bundle.contract.task == "classify":
        store.require_all_classes("an evaluation")
    labels, columns, probabilities = store.labels, {}, None
    if bundle.contract.task == "classify":
        output = bundle.outputs_of(store, workers=workers, advance=advance)
        probabilities, features = bundle.calibrated(output.logits), output.ood_features
        metrics = metrics_with_intervals(labels, probabilities, store.classes, seed=seed)
        metrics["strata"] = stratify(labels, probabilities, store.classes, parameters_of(store), seed=seed)
        metrics |= summarise_calibration(bundle, probabilities, features, labels)
        columns = prediction_columns(bundle, probabilities, features, bundle.doubts_of(store, output))
    else:
        batches = []
        for images in batched(len(store), store.images, advance):
            received, restored = bundle.run(images)
            batches.append(reconstruction_metrics(restored, received))
        values = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
        metrics = {"n": len(store), "reconstruction": means_with_intervals(values, seed=seed)}
    contract = bundle.contract
    evaluation = {
        "schema": 1,
        **metrics,
        "model": {
            "recipe": contract.recipe,
            "recipe_sha256": contract.recipe_sha256,
            "parameters": contract.parameters,
            "bundle_sha256": sha256_of_bundle(folder),
        },
        "data": {"population": store.population_name, "seed": store.index.seed, "sha256": store.sha256},
        "training_data": contract.data,
        "provenance": {
            "version": darklens.__version__,
            "commit": provenance.commit(),
            "hardware": provenance.hardware(),
            "seed": contract.provenance.get("seed"),
            "train_seconds": contract.provenance.get("train_seconds", 0),
            "train_images": contract.provenance.get("train_images", 0),
            "train_commit": contract.provenance.get("commit"),
            "train_hardware": contract.provenance.get("hardware"),
        },
        "warnings": [_TRAINED_ON] if trained_on(contract.data, store) else [],
    }
    return EvaluationResult(evaluation, image_names(store), labels, probabilities, columns)


def image_names(store: Store) -> list[str]:
    """Return a name for each image: the file of an imported image, the number of a simulated one."""
    if "path" in store.index.columns:
        return [str(name) for name in store.truth("path")]
    return [str(i) for i in range(len(store))]


def trained_on(training_data: dict[str, Any], store: Store) -> bool:
    """Return whether images of the store were in the training data.

    Simulations of equal population and seed share images: a larger one begins with the images of a smaller one.
    """
    members = training_data.get("members")
    if members:
        return any(trained_on(data, store) for data in members)
    simulated = store.index.seed is not None
    same_draw = (training_data["population"], training_data["seed"]) == (store.population_name, store.index.seed)
    return bool(training_data["sha256"] == store.sha256 or (simulated and same_draw))


def check_compatible(bundle: Bundle, store: Store) -> None:
    """Raise `InputError` unless classes, size and pixel scale of the images are those of the bundle."""
    contract, index = bundle.contract, store.index
    if contract.task == "classify" and index.classes != contract.classes:
        raise InputError(f"{store.path} has classes {index.classes}, but the model has {contract.classes}.")
    if index.n_pixels != contract.n_pixels or not np.isclose(index.pixel_scale, contract.pixel_scale, rtol=1e-3):
        raise InputError(
            f"{store.path} has {index.n_pixels} pixels of {index.pixel_scale} arcsec, but the model takes "
            f"{contract.n_pixels} of {contract.pixel_scale} arcsec; evaluate on images like those it was trained on."
        )
