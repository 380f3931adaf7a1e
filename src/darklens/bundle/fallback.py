"""Classification with a fallback: images that a model doubts are classified by a second one that assumes less."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from darklens.bundle.outputs import Classification, Images, InferenceBackend
from darklens.bundle.predictor import Bundle

CONFIDENT = 0.75  # chosen on elliptical lenses and original images of Common Test I (decision 21)
UNCERTAIN = f"no class has a probability above {CONFIDENT:g}"


class Part(NamedTuple):
    """The images of a batch that one model classified.

    Attributes:
        bundle: The model.
        indices: Positions of the images in the batch.
        classification: Of these images, in this order.
        fallback_reasons: Reasons of the first model to doubt each image; empty where this is the first model.
    """

    bundle: Bundle
    indices: list[int]
    classification: Classification
    fallback_reasons: list[tuple[str, ...]]


def classify(
    bundle: Bundle,
    images: Images,
    backend: InferenceBackend | None = None,
    *,
    exposure: Images | None = None,
    mask: Bool[np.ndarray, "b 1 n n"] | None = None,
    with_maps: bool = False,
    doubts: Sequence[tuple[str, ...]] | None = None,
) -> list[Part]:
    """Classify images, and those that the model doubts with its fallback if it has one.

    A model doubts an image if it has a reason not to trust the class, if the residuals suggest another PSF, lens shape
    or lens light, if one line lowers chi2 almost as much as points do (`fit.checks.suspicions`), or if no class has a
    probability above 0.75. The result of the fallback replaces that of the model, even if the fallback doubts the image
    too: it describes more lenses. Reasons that do not come from the model (`doubts`) hold for both.

    Args:
        bundle: The first model.
        images: As for `Bundle.classify`, like all other arguments.
        backend: Inference backend of the first model; the fallback runs in eager mode.
        exposure: Relative exposure of each pixel.
        mask: Pixels without data.
        with_maps: Whether to return the maps of systems that predict k(x, y).
        doubts: Further reasons not to trust the class of each image.

    Returns:
        One part for each model that classified images, the first model first; each image is in one part.

    Raises:
        ValueError: As `Bundle.classify`.
        InputError: If the fallback takes other images or has other classes.
    """
    further = doubts or [()] * len(images)
    first = bundle.classify(images, backend, exposure=exposure, mask=mask, with_maps=with_maps, doubts=further)
    reasons = [
        all_doubts[len(external) :] or (*suspicion, *(UNCERTAIN,) * (not external and max(p) <= CONFIDENT))
        for external, all_doubts, suspicion, p in zip(
            further, first.doubts, bundle.suspicions_of(first), first.probabilities.tolist(), strict=True
        )
    ]
    doubtful = [i for i, of_image in enumerate(reasons) if of_image]
    fallback = bundle.fallback if doubtful else None
    if fallback is None:
        return [Part(bundle, list(range(len(images))), first, [()] * len(images))]
    second = fallback.classify(
        images[doubtful],
        exposure=None if exposure is None else exposure[doubtful],
        mask=None if mask is None else mask[doubtful],
        with_maps=with_maps,
        doubts=[further[i] for i in doubtful],
    )
    trusted = [i for i, of_image in enumerate(reasons) if not of_image]
    parts = [Part(bundle, trusted, first.rows(trusted), [()] * len(trusted))] if trusted else []
    return [*parts, Part(fallback, doubtful, second, [reasons[i] for i in doubtful])]
