"""Everything that a trained classifier learns from images that its weights have not seen.

Held-out images are shared by two halves, class by class: the first fits the temperature and proposes what may be tried,
the second fits all thresholds. So no threshold is judged by what it was chosen on. What is familiar comes from images
that were trained on, or of a store that nobody trained on from its first half. Validation images have chosen the
epoch before; what that costs shows in the coverage on fresh test images, which `evaluate` reports.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int

from darklens import rng
from darklens.bundle import Bundle, Output
from darklens.calibration import Calibration, Curve, softmax
from darklens.data.store import Store
from darklens.errors import InputError
from darklens.evaluation import conformal, isotonic, ood, selective
from darklens.evaluation.evaluate import check_compatible, trained_on
from darklens.evaluation.temperature import FEWEST, fit_temperature

Method = Literal["temperature", "isotonic"]


class Labelled(NamedTuple):
    """Outputs of n images, and their true classes."""

    output: Output
    labels: Int[np.ndarray, " n"]

    def part(self, rows: Int[np.ndarray, " k"]) -> "Labelled":
        """Return some of the images."""
        return Labelled(Output(self.output.logits[rows], self.output.features[rows]), self.labels[rows])


def halves(labels: Int[np.ndarray, " n"], *, seed: int) -> tuple[Int[np.ndarray, " a"], Int[np.ndarray, " b"]]:
    """Return the rows of two halves with each class in both; of an odd number the second has one more."""
    first, second = [], []
    for label in np.unique(labels):
        members = rng.generator(seed, "calibration", int(label)).permutation(np.flatnonzero(labels == label))
        first.append(members[: len(members) // 2])
        second.append(members[len(members) // 2 :])
    return np.sort(np.concatenate(first)), np.sort(np.concatenate(second))


def calibrated(
    bundle: Bundle,
    held_out: Labelled,
    *,
    trained_on: Labelled | None = None,
    images: str,
    seed: int = 0,
    method: Method = "temperature",
) -> Bundle:
    """Return the bundle with a calibration and with what familiar images look like.

    Args:
        bundle: A classifier; a calibration that it has is replaced.
        held_out: Images that no weight was fitted to.
        trained_on: Images, typical of those trained on, that are familiar; None takes the first half of the others.
        images: A sentence on where the held-out images come from, for the record.
        seed: Of the halves and of randomised sets.
        method: isotonic fits a curve for each class after the temperature.

    Raises:
        InputError: If curves are asked for and a class has too few images for them.
    """
    rows = halves(held_out.labels, seed=seed)
    first, second = (held_out.part(half) for half in rows)
    typical = first if trained_on is None else trained_on
    fitted = len(first.labels) if len(first.labels) >= FEWEST else 0
    temperature = fit_temperature(first.output.logits, first.labels) if fitted else 1.0
    curves: tuple[Curve, ...] = ()
    if method == "isotonic":
        if min(np.bincount(first.labels, minlength=len(bundle.contract.classes))) < isotonic.FEWEST:
            raise InputError(
                f"Curves need {2 * isotonic.FEWEST} held-out images of each class, half of which fit them; "
                "simulate more, or calibrate without --method isotonic."
            )
        curves = isotonic.fit_curves(softmax(first.output.logits / temperature), first.labels)
    honest = Calibration(temperature=temperature, temperature_images=fitted, curves=curves)
    tried, tested = (honest.probabilities(half.output.logits) for half in (first, second))
    confidence, right, n = tested.max(1), tested.argmax(1) == second.labels, len(second.labels)
    familiar = ood.fit(typical.output.features, typical.labels, len(bundle.contract.classes))
    record = honest.model_copy(
        update={
            "threshold_images": n,
            "images": images,
            "conformal": tuple(conformal.fit(tested, second.labels, level, seed=seed) for level in conformal.LEVELS),
            "selective": tuple(
                selective.fit(
                    confidence,
                    right,
                    selective.candidates(tried.max(1), n, risk=risk, certainty=selective.CERTAINTY),
                    risk=risk,
                )
                for risk in selective.RISKS
            ),
            "ood": ood.thresholds(ood.scores(familiar, second.output.features)),
        }
    )
    contract = bundle.contract.model_copy(update={"calibration": record})
    return Bundle(contract, bundle.network, familiar=familiar)


def calibrate_on(
    bundle: Bundle,
    store: Store,
    *,
    seed: int = 0,
    method: Method = "temperature",
    workers: int = 1,
    advance: Callable[[int], None] = lambda _: None,
) -> Bundle:
    """Return the bundle calibrated on a store that it, or any member of an ensemble, was not trained on.

    Half of the images, class by class, say what is familiar and fit the temperature, the others fit all thresholds.

    Args:
        bundle: A classifier; a calibration that it has is replaced.
        store: At least four images of each class; of some hundreds of each, thresholds are good to a per cent.
        seed: Of the halves and of randomised sets.
        method: isotonic fits a curve for each class after the temperature, of 600 images a class or more.
        workers: Processes of a system that fits lenses.
        advance: Called with the number of images just finished.

    Raises:
        InputError: If the bundle was trained on such images, or classes or images are not those it was made for, or
            they are too few.
    """
    bundle.require_classifier("calibrate")
    check_compatible(bundle, store)
    if trained_on(bundle.contract.data, store):
        raise InputError(
            f"{store.path} holds images that the model was trained on, of which it is too sure; "
            "calibrate on others, for example a simulation of another seed."
        )
    if min(np.bincount(store.labels, minlength=len(store.classes))) < 4:
        raise InputError(f"{store.path} has a class of fewer than 4 images; calibrate on some hundreds of each class.")
    found = Labelled(bundle.outputs_of(store, workers=workers, advance=advance), store.labels)
    name = f"{store.population_name}, seed {store.index.seed}, which no network was trained on"
    return calibrated(bundle, found, images=name, seed=seed, method=method)
