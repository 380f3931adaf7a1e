"""Model cards: one line for lists of models, and README.md for the Hugging Face hub."""

from pathlib import Path
from typing import Any

import yaml

from darklens.bundle.contract import Contract
from darklens.files import write_text

_TAGS = ["gravitational-lensing", "dark-matter", "strong-lensing", "astronomy", "physics-informed", "pytorch"]
_METRICS = {"val_auc": ("Macro AUC", "roc_auc"), "val_loss": ("Cross-entropy", "loss")}


def summary_line(contract: Contract) -> str:
    """Return a line on the training data, the validation metrics and the inputs."""
    auc = contract.validation.get("val_auc")
    metric = "" if auc is None else f", macro AUC {auc:.5f} on its validation images"
    return (
        f"{contract.recipe} on {contract.data.get('population')}, {contract.provenance.get('train_images')} "
        f"images{metric}; takes {contract.n_pixels} x {contract.n_pixels} pixels of {contract.pixel_scale} arcsec; "
        f"{contract.parameters:,} parameters, {contract.licence}."
    )


def write_card(folder: Path, contract: Contract, name: str | None = None) -> None:
    """Write README.md into a bundle folder; by default the example names the folder."""
    write_text(folder / "README.md", model_card(contract, name or folder.resolve().name))


def model_card(contract: Contract, name: str) -> str:
    """Return the model card of a bundle: inputs, outputs, metrics and limits, with the hub's metadata at its head.

    Args:
        contract: Contract of the bundle.
        name: Repository `owner/name` in the usage example.
    """
    classifies = contract.task == "classify"
    population = str(contract.data.get("population") or "imported images")
    results = [
        {"type": kind, "name": f"{title}, validation images", "value": round(value, 6)}
        for key, (title, kind) in _METRICS.items()
        if (value := contract.validation.get(key)) is not None
    ]
    head: dict[str, Any] = {
        "license": contract.licence.lower(),
        "library_name": "darklens",
        "tags": _TAGS,
        **({"pipeline_tag": "image-classification"} if classifies else {}),
    }
    if results:
        task = {"type": "image-classification" if classifies else "other", "name": "dark-matter substructure"}
        head["model-index"] = [
            {
                "name": contract.recipe,
                "results": [{"task": task, "dataset": {"type": population, "name": population}, "metrics": results}],
            }
        ]
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n{_text(contract, name, population)}"


def _text(contract: Contract, name: str, population: str) -> str:
    size, scale = contract.n_pixels, contract.pixel_scale
    inputs = f"{size} x {size} pixels of {scale} arcsec, one band, in any linear scale"
    origin, calibration = contract.provenance, contract.calibration
    outputs = (
        f"probabilities of {', '.join(contract.classes)}" if contract.task == "classify" else "the reconstructed image"
    )
    scores = "".join(f"| {key.replace('_', ' ')} | {value:.5g} |\n" for key, value in contract.validation.items())
    calibrated = (
        f"Logits are divided by a temperature of {calibration.temperature:.3g}, fitted on {calibration.images}."
        if calibration is not None
        else "It is not calibrated: its probabilities may be overconfident."
    )
    return f"""# {contract.recipe}

Classifies dark-matter substructure in images of strong lenses; made with darklens {origin.get("version")}.

    pip install 'darklens[hub]'
    darklens predict {name} my-lens.fits --out predictions.csv

| | |
| --- | --- |
| input | {inputs} |
| output | {outputs} |
| trained on | {population}, {origin.get("train_images")} images, seed {origin.get("seed")} |
| training | {origin.get("train_seconds")} s on {origin.get("hardware")}, commit {origin.get("commit")} |
| parameters | {contract.parameters:,} |
| licence | {contract.licence} |

## Metrics

On the validation images. They chose the epoch, so they are no independent test.

| | |
| --- | --- |
{scores}
## Calibration

{calibrated}

## Limits

The training images are simulations of one population. For another telescope, noise or kind of lens, simulate such
images and evaluate the model on them first (`darklens simulate`, `darklens evaluate`).
"""
