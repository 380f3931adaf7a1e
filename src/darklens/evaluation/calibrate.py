"""Calibration of a trained classifier on held-out images: temperature, prediction sets, risk guarantees, OOD score.

The held-out images are divided into two halves, class by class. The first half fits the temperature (and the curves)
and proposes candidate thresholds; the second half fits all thresholds, so that no threshold is tested on the images
that it was chosen on. The reference of the OOD score comes from training images, or, for a store that the bundle was
not trained on, from the first half. Validation images have already chosen the epoch; the effect of that is visible in
the coverage on test images, which `evaluate` reports.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int

from darklens import rng
from darklens.bundle import Bundle, Output
from darklens.calibration import Calibration, CalibrationCurve, SelectiveThreshold, softmax
from darklens.data.store import Store
from darklens.errors import InputError
from darklens.evaluation import conformal, ood
from darklens.evaluation.evaluate import check_compatible, trained_on
from darklens.evaluation.scaling import MIN_CURVE_IMAGES, MIN_TEMPERATURE_IMAGES, fit_curves, fit_temperature

Method = Literal["temperature", "isotonic"]


class LabelledOutputs(NamedTuple):
    """Outputs of n images, and their true classes."""

    output: Output
    labels: Int[np.ndarray, " n"]

    def subset(self, rows: Int[np.ndarray, " k"]) -> "LabelledOutputs":
        """Return k of the images."""
        return LabelledOutputs(Output(self.output.logits[rows], self.output.ood_features[rows]), self.labels[rows])


def halves(labels: Int[np.ndarray, " n"], *, seed: int) -> tuple[Int[np.ndarray, " a"], Int[np.ndarray, " b"]]:
    """Return the rows of two halves of each class; of an odd number of images the second half has one more."""
    first, second = [], []
    for label in np.unique(labels):
        members = rng.generator(seed, "calibration", int(label)).permutation(np.flatnonzero(labels == label))
        first.append(members[: len(members) // 2])
        second.append(members[len(members) // 2 :])
    return np.sort(np.concatenate(first)), np.sort(np.concatenate(second))


def calibrate(
    bundle: Bundle,
    held_out: LabelledOutputs,
    *,
    reference: LabelledOutputs | None = None,
    images: str,
    seed: int = 0,
    method: Method = "temperature",
) -> Bundle:
    """Return the bundle with a calibration and the reference of the OOD score.

    Args:
        bundle: A classifier; an earlier calibration is replaced.
        held_out: Images that no weight was fitted to.
        reference: Training images, for the OOD score; by default the first half of the held-out images.
        images: Where the held-out images come from, for the record.
        seed: Of the halves and of randomised prediction sets.
        method: isotonic adds a curve for each class after the temperature.

    Raises:
        InputError: If a class has too few images for curves.
    """
    n_classes = len(bundle.contract.classes)
    first, second = (held_out.subset(half) for half in halves(held_out.labels, seed=seed))
    n_temperature = len(first.labels) if len(first.labels) >= MIN_TEMPERATURE_IMAGES else 0
    temperature = fit_temperature(first.output.logits, first.labels) if n_temperature else 1.0
    curves: tuple[CalibrationCurve, ...] = ()
    if method == "isotonic":
        if min(np.bincount(first.labels, minlength=n_classes)) < MIN_CURVE_IMAGES:
            raise InputError(
                f"Curves need {2 * MIN_CURVE_IMAGES} held-out images of each class, half of which fit them; "
                "simulate more, or calibrate without --method isotonic."
            )
        curves = fit_curves(softmax(first.output.logits / temperature), first.labels)
    scaled = Calibration(temperature=temperature, temperature_images=n_temperature, curves=curves)
    proposing, testing = (scaled.probabilities(half.output.logits) for half in (first, second))
    confidence, correct, n = testing.max(1), testing.argmax(1) == second.labels, len(second.labels)
    reference = first if reference is None else reference
    ood_reference = ood.fit(reference.output.ood_features, reference.labels, n_classes)

    def selective_threshold(risk: float) -> SelectiveThreshold:
        candidates = conformal.candidate_thresholds(proposing.max(1), n, risk=risk, certainty=conformal.CERTAINTY)
        return conformal.fit_selective(confidence, correct, candidates, risk=risk)

    record = scaled.model_copy(
        update={
            "threshold_images": n,
            "images": images,
            "conformal": tuple(
                conformal.fit_sets(testing, second.labels, level, seed=seed) for level in conformal.LEVELS
            ),
            "selective": tuple(selective_threshold(risk) for risk in conformal.RISKS),
            "ood": ood.thresholds(ood_reference.scores(second.output.ood_features)),
        }
    )
    contract = bundle.contract.model_copy(update={"calibration": record})
    return Bundle(contract, bundle.network, ood_reference=ood_reference, device=bundle.device)


def calibrate_on(
    bundle: Bundle,
    store: Store,
    *,
    seed: int = 0,
    method: Method = "temperature",
    workers: int = 1,
    advance: Callable[[int], None] = lambda _: None,
) -> Bundle:
    """Return the bundle calibrated on a store that neither it nor any member of an ensemble was trained on.

    Half of the images of each class fit the temperature and the reference of the OOD score, the others all thresholds.

    Args:
        bundle: A classifier; an earlier calibration is replaced.
        store: At least four images of each class; several hundred of each make the thresholds accurate to a per cent.
        seed: Of the halves and of randomised prediction sets.
        method: isotonic adds a curve for each class after the temperature; it needs 600 images of each class.
        workers: Processes that fit lenses, for a system that does.
        advance: Called with the number of images just finished.

    Raises:
        InputError: If the bundle was trained on images of the store, the images or classes do not match, or there are
            too few images.
    """
    bundle.require_classifier("calibrate")
    check_compatible(bundle, store)
    if trained_on(bundle.contract.data, store):
        raise InputError(
            f"{store.path} holds images that the model was trained on, for which it is overconfident; "
            "calibrate on others, for example a simulation of another seed."
        )
    store.require_all_classes("a calibration")
    if min(np.bincount(store.labels, minlength=len(store.classes))) < 4:
        raise InputError(
            f"{store.path} has a class of fewer than 4 images; calibrate on several hundred of each class."
        )
    outputs = LabelledOutputs(bundle.outputs_of(store, workers=workers, advance=advance), store.labels)
    name = f"{store.population_name}, seed {store.index.seed}, which no network was trained on"
    return calibrate(bundle, outputs, images=name, seed=seed, method=method)
