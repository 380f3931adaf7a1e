"""A store examined: what tells its classes apart without substructure, which images it has twice or shares."""

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import numpy as np
from jaxtyping import Float

import darklens
from darklens.data.store import Store
from darklens.doctor.duplicates import Duplicate, Fingerprints, duplicates, fingerprints, joined
from darklens.doctor.leaks import ALPHA, PERMUTATIONS, Leak, leaks
from darklens.doctor.statistics import STATISTICS, measure
from darklens.errors import InputError

_BLOCK_PIXELS = 64 * 150**2
_LISTED = 100  # duplicates in the report
_MOST_DUPLICATES = 100_000  # at which one stops looking


def examine(
    store: Store,
    against: Sequence[Store] = (),
    *,
    seed: int = 0,
    advance: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Look for leaks and duplicates.

    One block of images is in memory at a time; of each image some 1 kB of numbers is kept.

    Args:
        store: To be examined.
        against: Other splits, in which none of its images may be.
        seed: Of the permutations.
        advance: Called with the number of images just read, of all stores.

    Returns:
        The report: what was found of each statistic and class, the duplicates, and `warnings`, a sentence each.

    Raises:
        InputError: If the store has NaN pixels or too few images of its classes.
    """
    values, own = _read(store, advance, with_statistics=True)
    others = [_read(other, advance)[1] for other in against]
    usual = {s.name for s in STATISTICS if s.usual}
    found = leaks(values, [s.name for s in STATISTICS], store.labels, usual=usual, seed=seed)
    twins = list(islice(duplicates([store, *against], [own, *others]), _MOST_DUPLICATES))
    stores = [store, *against]
    warnings = [
        *_leak_warnings(found, store.classes),
        *_duplicate_warnings(twins, stores),
        *(sentence for other in against for sentence in _same_draws(store, other)),
    ]
    return {
        "schema": 1,
        "version": darklens.__version__,
        "store": str(store.path),
        "sha256": store.sha256,
        "population": store.population_name,
        "seed": store.index.seed,
        "n": len(store),
        "classes": store.classes,
        "alpha": ALPHA,
        "permutations": PERMUTATIONS,
        "statistics": {
            s.name: {
                "unit": s.unit,
                "mean": {
                    name: float(values[store.labels == i, column].mean())
                    for i, name in enumerate(store.classes)
                    if (store.labels == i).any()
                },
            }
            for column, s in enumerate(STATISTICS)
        },
        "leaks": [leak.tree(store.classes) for leak in found],
        "against": [str(other.path) for other in against],
        "duplicates": {
            "n": len(twins),
            "listed": [
                {"image": t.first, "is": t.second, "in": str(stores[t.store].path), "kind": t.kind}
                for t in twins[:_LISTED]
            ],
        },
        "warnings": warnings,
    }


def _read(
    store: Store, advance: Callable[[int], None], *, with_statistics: bool = False
) -> tuple[Float[np.ndarray, "n s"], Fingerprints]:
    size = max(1, _BLOCK_PIXELS // store.index.n_pixels**2)
    values: list[np.ndarray] = [np.empty((0, len(STATISTICS)))]
    prints = []
    for start in range(0, len(store), size):
        images = store.images(range(start, min(start + size, len(store))))
        if not np.isfinite(images).all():
            raise InputError(
                f"{store.path} has NaN or infinite pixels; `darklens inspect --verify` says where, import it again."
            )
        if with_statistics:
            values.append(measure(images, pixel_scale=store.index.pixel_scale))
        prints.append(fingerprints(images))
        advance(len(images))
    return np.concatenate(values), joined(prints)


def _leak_warnings(found: list[Leak], classes: list[str]) -> list[str]:
    """Return a sentence for each statistic that tells a class, about the class that it tells best."""
    remedies = {s.name: s.remedy for s in STATISTICS}
    sentences: dict[str, str] = {}
    for leak in sorted((leak for leak in found if leak.found), key=lambda leak: -abs(leak.auc - 0.5)):
        low, high = leak.ci95
        how_well = f"(AUC {leak.auc:.3f} [{low:.3f}, {high:.3f}], p {_p(leak.p)})"
        name = classes[leak.label]
        if leak.by == "all":
            text = (
                f"All statistics together tell {name} from the rest without looking at substructure {how_well}: a "
                "system must do better than that before it says anything of substructure."
            )
        else:
            larger, more = ("larger", "more") if leak.sign > 0 else ("smaller", "less")
            how = f"is {larger}" if leak.by == "value" else f"scatters {more}"
            text = f"The {leak.statistic} {how} in {name} than in the rest {how_well}: {remedies[leak.statistic]}."
        sentences.setdefault(leak.statistic, text)
    return list(sentences.values())


def _duplicate_warnings(twins: list[Duplicate], stores: list[Store]) -> list[str]:
    labels = [store.labels for store in stores]
    sentences = []
    for number, other in enumerate(stores):
        own = [t for t in twins if t.store == number]
        if not own:
            continue
        exact = sum(t.kind == "same bytes" for t in own)
        differ = sum(stores[0].classes[labels[0][t.first]] != other.classes[labels[number][t.second]] for t in own)
        at_least = "at least " if len(twins) == _MOST_DUPLICATES else ""
        many = "image is a copy" if len(own) == 1 else "images are copies"
        where = "of another in it" if number == 0 else f"of images in {other.path}"
        told = f", {differ} of them under another class" if differ else ""
        example = (
            f"image {own[0].second} is {own[0].first}" if number == 0 else f"{own[0].second} there is {own[0].first}"
        )
        remedy = "keep one of each" if number == 0 else "remove them from one of the two before anything is judged"
        sentences.append(
            f"{at_least}{len(own)} {many} {where}, {exact} byte by byte and {len(own) - exact} turned, mirrored or "
            f"rescaled{told} ({example}, for instance): {remedy}."
        )
    return sentences


def _same_draws(store: Store, other: Store) -> list[str]:
    """Say so if both were simulated with one seed: image i then has the same random numbers in both."""
    if store.index.seed is None or store.index.seed != other.index.seed:
        return []
    same = store.index.population == other.index.population
    what = "the same images" if same else "lenses, sources and noise drawn from the same random numbers"
    return [
        f"{other.path} was simulated with the same seed ({store.index.seed}), so it has {what}: simulate one of them "
        "with another seed."
    ]


def _p(value: float) -> str:
    floor = 1 / (PERMUTATIONS + 1)
    return f"at most {floor:.2g}" if value <= floor else f"{value:.2g}"
