"""The README.md of a bundle, with the metadata that the Hugging Face hub reads from its head."""

from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from darklens.contract import Contract

_TAGS = ["gravitational-lensing", "dark-matter", "strong-lensing", "astronomy", "physics-informed", "pytorch"]
_METRICS = {"val_auc": ("Macro AUC", "roc_auc"), "val_loss": ("Cross-entropy", "loss")}


def model_card(contract: "Contract", name: str) -> str:
    """Return the card of a bundle: what it is, takes and gives, how well it did, and what it cannot do.

    Args:
        contract: The bundle's.
        name: What it is called in its example.
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


def _text(contract: "Contract", name: str, population: str) -> str:
    size, scale = contract.n_pixels, contract.pixel_scale
    takes = f"{size} x {size} pixels of {scale} arcsec, one band, in any linear scale"
    origin, calibration = contract.provenance, contract.calibration
    gives = f"probabilities of {', '.join(contract.classes)}" if contract.task == "classify" else "the image again"
    scores = "".join(f"| {key.replace('_', ' ')} | {value:.5g} |\n" for key, value in contract.validation.items())
    calibrated = (
        f"Logits are divided by a temperature of {calibration.temperature:.3g}, found on {calibration.images}."
        if calibration is not None
        else "It is not calibrated: its probabilities may be too sure."
    )
    return f"""# {contract.recipe}

Classifies dark-matter substructure in images of strong lenses; made with darklens {origin.get("version")}.

    pip install 'darklens[hub]'
    darklens predict {name} my-lens.fits --out predictions.csv

| | |
| --- | --- |
| takes | {takes} |
| gives | {gives} |
| trained on | {population}, {origin.get("train_images")} images, seed {origin.get("seed")} |
| training | {origin.get("train_seconds")} s on {origin.get("hardware")}, commit {origin.get("commit")} |
| parameters | {contract.parameters:,} |
| licence | {contract.licence} |

## How well it does

On the validation images, which chose the epoch and are no independent test:

| | |
| --- | --- |
{scores}
## Calibration

{calibrated}

## Limits

It was trained on simulated images of one population. On images of another telescope, noise or kind of lens its
probabilities mean little; simulate such images and judge it on them first (`darklens simulate`, `darklens evaluate`).
"""
