"""A bundle judged on a store: predictions for every image, and eval.json."""

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
from darklens.evaluation import judgement
from darklens.evaluation.parameters import parameters_of
from darklens.evaluation.strata import stratify
from darklens.evaluation.summary import summarise

_SEEN = "Images like these, of the same seed, were trained on; the numbers say nothing about new ones."


@dataclass(frozen=True)
class Result:
    """What an evaluation found. `probabilities` is None for a system that does not classify.

    `columns` are those that `judgement.columns` adds to predictions.csv.
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
) -> Result:
    """Judge a bundle on all images of a store.

    Args:
        bundle: The system.
        folder: Its bundle folder, whose digest goes into the result.
        store: Images that the system has not been trained on; if it has, the result carries a warning.
        seed: Of the bootstrap.
        workers: Processes of a system that fits lenses.
        advance: Called with the number of images just finished.

    Raises:
        InputError: If the images or classes are not those the bundle was made for.
    """
    check_compatible(bundle, store)
    labels, columns = store.labels, {}
    if bundle.contract.task == "classify":
        logits, features = bundle.outputs_of(store, workers=workers, advance=advance)
        probabilities = bundle.calibrated(logits)
        metrics = summarise(labels, probabilities, store.classes, seed=seed)
        metrics["strata"] = stratify(labels, probabilities, store.classes, parameters_of(store), seed=seed)
        metrics |= judgement.summarise(bundle, probabilities, features, labels)
        columns = judgement.columns(bundle, probabilities, features)
    else:
        from darklens.evaluation import reconstruction

        measured = []
        for images in batched(len(store), store.images, advance):
            received, output = bundle.run(images)
            measured.append(reconstruction.measures(output, received))
        probabilities = None
        joined = {name: np.concatenate([block[name] for block in measured]) for name in measured[0]}
        metrics = {"n": len(store), "reconstruction": reconstruction.summarise(joined, seed=seed)}
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
            "train_seconds": contract.provenance["train_seconds"],
            "train_images": contract.provenance["train_images"],
            "train_commit": contract.provenance["commit"],
            "train_hardware": contract.provenance["hardware"],
        },
        "warnings": [_SEEN] if trained_on(contract.data, store) else [],
    }
    return Result(evaluation, image_names(store), labels, probabilities, columns)


def image_names(store: Store) -> list[str]:
    """Return a name for each image: its file for imported ones, its number for simulated ones."""
    if "path" in store.index.columns:
        return [str(name) for name in store.truth("path")]
    return [str(i) for i in range(len(store))]


def trained_on(training_data: dict[str, Any], store: Store) -> bool:
    """Tell whether images of the store were trained on.

    A simulation is known by its population and seed: a longer one begins with the images of a shorter one.
    """
    members = training_data.get("members")
    if members:
        return any(trained_on(data, store) for data in members)
    simulated = store.index.seed is not None
    same_draw = (training_data["population"], training_data["seed"]) == (store.population_name, store.index.seed)
    return bool(training_data["sha256"] == store.sha256 or (simulated and same_draw))


def check_compatible(bundle: Bundle, store: Store) -> None:
    """Raise `InputError` unless the store has the classes and images that the bundle was made for."""
    contract, index = bundle.contract, store.index
    if contract.task == "classify" and index.classes != contract.classes:
        raise InputError(f"{store.path} has classes {index.classes}, the model knows {contract.classes}.")
    if index.n_pixels != contract.n_pixels or not np.isclose(index.pixel_scale, contract.pixel_scale, rtol=1e-3):
        raise InputError(
            f"{store.path} has {index.n_pixels} pixels of {index.pixel_scale} arcsec, the model takes "
            f"{contract.n_pixels} of {contract.pixel_scale} arcsec; evaluate on images like those it was trained on."
        )
