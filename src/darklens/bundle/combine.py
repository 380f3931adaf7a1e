"""Deep ensembles: one bundle whose probabilities are the mean over several trained classifiers."""

from collections.abc import Sequence
from typing import Any

import torch

from darklens.bundle.contract import Contract
from darklens.bundle.predictor import Bundle
from darklens.calibration import Calibration
from darklens.config import digest
from darklens.errors import InputError
from darklens.fit.cache import fit_settings_of
from darklens.models.ensemble import Ensemble, EnsembleConfig


def ensemble(members: Sequence[Bundle]) -> Bundle:
    """Return the deep ensemble of classifiers that take the same images (Lakshminarayanan et al. 2017).

    Members keep their temperatures. Thresholds of prediction sets and risks are not inherited, because the held-out
    images of one member may be training images of another. Calibrate the ensemble on images on which no member was
    trained (`evaluation.calibrate.calibrate_on`). The out-of-distribution reference is that of the first member.

    Raises:
        InputError: If there are fewer than two members, one is no classifier or an ensemble itself, or their inputs
            differ.
    """
    if len(members) < 2:
        raise InputError("An ensemble needs at least two models; name further runs or bundles.")
    first = members[0].contract
    for member in members:
        member.require_classifier("ensemble")
        if isinstance(member.contract.model, EnsembleConfig):
            raise InputError(f"{member.contract.recipe} is an ensemble itself; name its members instead.")
        if _inputs_of(member.contract) != _inputs_of(first):
            raise InputError(
                f"{member.contract.recipe} and {first.recipe} differ in classes, image size, pixel scale, "
                "pre-processing or fitted population; an ensemble needs models that take the same images."
            )
    records = [member.contract.calibration or Calibration() for member in members]
    for record in records:
        record.require_temperature_alone("an ensemble")
    config = EnsembleConfig.model_validate({"members": [member.contract.model for member in members]})
    ood = first.calibration.ood if first.calibration else None
    contract = first.model_copy(
        update={
            "recipe": f"ensemble of {len(members)}: {', '.join(dict.fromkeys(m.contract.recipe for m in members))}",
            "recipe_sha256": digest(config),
            "model": config,
            "parameters": sum(member.contract.parameters for member in members),
            "data": {**first.data, "members": [member.contract.data for member in members]},
            "validation": {},
            "provenance": _provenance([member.contract for member in members]),
            "calibration": Calibration(ood=ood, images="none yet; the OOD reference is that of the first member"),
        }
    )
    network = contract.build()
    assert isinstance(network, Ensemble)
    for part, member in zip(network.members, members, strict=True):
        part.load_state_dict(member.network.state_dict())
    network.temperatures.copy_(torch.tensor([record.temperature for record in records]))
    return Bundle(contract, network, ood_reference=members[0].ood_reference)


def _inputs_of(contract: Contract) -> Any:
    return (
        contract.classes,
        contract.n_pixels,
        contract.pixel_scale,
        contract.preprocess,
        fit_settings_of(contract.model),
    )


def _provenance(members: Sequence[Contract]) -> dict[str, Any]:
    """Combine the provenance of the members: total training time, and images of all distinct data sets."""
    shared = {
        name: ", ".join(dict.fromkeys(str(member.provenance.get(name)) for member in members))
        for name in ("version", "commit", "hardware", "seed")
    }
    images = {(m.data.get("sha256"), m.provenance.get("train_images", 0)) for m in members}
    seconds = sum(member.provenance.get("train_seconds", 0) for member in members)
    return {**shared, "train_seconds": round(seconds, 1), "train_images": sum(n for _, n in images)}
