"""Examination of a store: statistics that leak the label, duplicate images, shared random numbers."""

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import numpy as np
from jaxtyping import Float

import darklens
from darklens.data.store import Store
from darklens.doctor.duplicates import Duplicate, Fingerprints, duplicates, fingerprints, joined
from darklens.doctor.leaks import ALPHA, PERMUTATIONS, Leak, detectable_auc, leaks
from darklens.doctor.statistics import STATISTICS, measure
from darklens.errors import InputError

_BLOCK_PIXELS = 64 * 150**2
_MAX_LISTED = 100  # duplicates in the report
_MAX_DUPLICATES = 100_000  # at which the search stops


def examine(
    store: Store,
    against: Sequence[Store] = (),
    *,
    seed: int = 0,
    advance: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Search a store for label leaks and duplicates.

    One block of images is in memory at a time, and about 1 kB for each image.

    Args:
        store: To be examined.
        against: Other splits, which must not share images with the store.
        seed: Of the permutations.
        advance: Called with the number of images just read, of all stores.

    Returns:
        The report, ready for JSON: statistics of each class, leaks, duplicates, and `warnings`, one sentence each.

    Raises:
        InputError: If the store has NaN pixels or too few images of its classes.
    """
    values, prints = _read(store, advance, with_statistics=True)
    others = [_read(other, advance)[1] for other in against]
    usual = {s.name for s in STATISTICS if s.usual}
    results = leaks(values, [s.name for s in STATISTICS], store.labels, usual=usual, seed=seed)
    stores = [store, *against]
    pairs = list(islice(duplicates(stores, [prints, *others]), _MAX_DUPLICATES))
    warnings = [
        *_leak_warnings(results, store.classes),
        *_duplicate_warnings(pairs, stores),
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
        "detectable_auc": detectable_auc(store.labels, len(STATISTICS)),
        "leaks": [leak.as_dict(store.classes) for leak in results],
        "against": [str(other.path) for other in against],
        "duplicates": {
            "n": len(pairs),
            "listed": [
                {"image": t.first, "is": t.second, "in": str(stores[t.store].path), "kind": t.kind}
                for t in pairs[:_MAX_LISTED]
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
                f"{store.path} has NaN or infinite pixels; `darklens inspect --verify` says where; import it again."
            )
        if with_statistics:
            values.append(measure(images, pixel_scale=store.index.pixel_scale))
        prints.append(fingerprints(images))
        advance(len(images))
    return np.concatenate(values), joined(prints)


def _leak_warnings(results: list[Leak], classes: list[str]) -> list[str]:
    """Return a sentence for each statistic that leaks, on the class that it separates best."""
    remedies = {s.name: s.remedy for s in STATISTICS}
    sentences: dict[str, str] = {}
    for leak in sorted((leak for leak in results if leak.is_significant), key=lambda leak: -abs(leak.auc - 0.5)):
        low, high = leak.ci95
        strength = f"(AUC {leak.auc:.3f} [{low:.3f}, {high:.3f}], p {_p(leak.p)})"
        name = classes[leak.label]
        if leak.by == "all":
            text = (
                f"All statistics together separate {name} from the other classes without substructure {strength}: only "
                "a higher AUC is evidence that a system detects substructure."
            )
        else:
            larger, more = ("larger", "more") if leak.sign > 0 else ("smaller", "less")
            how = f"is {larger}" if leak.by == "value" else f"scatters {more}"
            text = f"The {leak.statistic} {how} in {name} than in other classes {strength}: {remedies[leak.statistic]}."
        sentences.setdefault(leak.statistic, text)
    return list(sentences.values())


def _duplicate_warnings(pairs: list[Duplicate], stores: list[Store]) -> list[str]:
    labels = [store.labels for store in stores]
    at_least = "At least " if len(pairs) == _MAX_DUPLICATES else ""
    sentences = []
    for number, other in enumerate(stores):
        matches = [pair for pair in pairs if pair.store == number]
        if not matches:
            continue
        n, a, b = len(matches), matches[0].first, matches[0].second
        exact = sum(pair.kind == "same bytes" for pair in matches)
        differ = sum(stores[0].classes[labels[0][m.first]] != other.classes[labels[number][m.second]] for m in matches)
        relabelled = f", {differ} of them with a different label" if differ else ""
        if number == 0:
            what = f"{'image is a duplicate' if n == 1 else 'images are duplicates'} within the store"
            example, remedy = f"image {b} equals image {a}", "keep one of each"
        else:
            what = f"{'image is' if n == 1 else 'images are'} shared with {other.path}"
            example, remedy = f"image {b} there equals image {a}", "remove them from one of the two stores"
        sentences.append(
            f"{at_least}{n} {what}, {exact} byte for byte and {n - exact} rotated, mirrored or rescaled{relabelled} "
            f"(for example, {example}): {remedy}."
        )
    return sentences


def _same_draws(store: Store, other: Store) -> list[str]:
    """Return a warning if both stores have the same seed, so that image i of both has the same random numbers."""
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
