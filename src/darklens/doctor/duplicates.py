"""Images that are in a store twice, or in two stores: the same bytes, or turned, mirrored and linearly rescaled.

Each image is kept as a digest of its bytes and six numbers that no turn, reflection or positive linear rescaling
changes. Images whose numbers agree are then compared pixel by pixel, so rounding cannot hide a copy from a hash's bins,
nor two noisy images of one lens pass for copies.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from darklens.data.store import Store

_TOLERANCE = 2e-3  # of the invariants; 8-bit copies differ by some 5e-4
_OF_NOISE, _OF_SPREAD = 0.2, 1e-5  # rms difference of copies: noise drawn anew would give 1.4 of the noise

Kind = Literal["same bytes", "turned, mirrored or rescaled"]


@dataclass(frozen=True)
class Fingerprints:
    """Digests (n,) and invariants (n, 6) of a store's images: 56 bytes an image."""

    digests: Int[np.ndarray, " n"]
    invariants: Float[np.ndarray, "n 6"]


@dataclass(frozen=True)
class Duplicate:
    """Image `first` of the examined store and image `second` of the store numbered `store` (0: the same one)."""

    first: int
    second: int
    store: int
    kind: Kind


def fingerprints(images: Float[np.ndarray, "b 1 n n"]) -> Fingerprints:
    """Return the fingerprints of a block of images."""
    digests = [
        int.from_bytes(hashlib.blake2b(image.tobytes(), digest_size=8).digest(), "little", signed=True)
        for image in np.ascontiguousarray(images)
    ]
    v = _normalised(images[:, 0]).reshape(len(images), -1)
    axis = np.linspace(-1, 1, images.shape[-1])
    r2 = (axis[None] ** 2 + axis[:, None] ** 2).ravel()
    square, cube = v * v, v * v * v
    n = v.shape[1]
    invariants = [cube.sum(1), (square * square).sum(1), v @ r2, v @ r2**2, square @ r2, cube @ r2]
    # The fourth moment of a bright point is huge: its root is of the size of the others.
    invariants[1] = n * np.sqrt(invariants[1] / n)
    return Fingerprints(np.array(digests, dtype=np.int64), np.stack(invariants, axis=1) / n)


def joined(blocks: list[Fingerprints]) -> Fingerprints:
    """Return the fingerprints of several blocks as one."""
    return Fingerprints(np.concatenate([b.digests for b in blocks]), np.concatenate([b.invariants for b in blocks]))


def duplicates(stores: list[Store], prints: list[Fingerprints]) -> Iterator[Duplicate]:
    """Yield the duplicates of the first store's images, in it and in the others.

    Of several equal images each is paired with the first only, so a store of one image n times gives n - 1.
    """
    first, own = stores[0], prints[0]
    kept, where = np.unique(own.digests, return_index=True)
    home = dict(zip(kept.tolist(), where.tolist(), strict=True))
    for i, digest in enumerate(own.digests.tolist()):
        if home[digest] != i:
            yield Duplicate(home[digest], i, 0, "same bytes")
    representatives = np.sort(where)
    for i, j in _near(own.invariants[representatives], None):
        a, b = int(representatives[i]), int(representatives[j])
        if same_image(first, a, first, b):
            yield Duplicate(a, b, 0, "turned, mirrored or rescaled")
    for number, (other, theirs) in enumerate(zip(stores[1:], prints[1:], strict=True), start=1):
        if other.index.n_pixels != first.index.n_pixels:
            continue
        for j, digest in enumerate(theirs.digests.tolist()):
            if digest in home:
                yield Duplicate(home[digest], j, number, "same bytes")
        new = np.flatnonzero(~np.isin(theirs.digests, kept))
        for i, j in _near(own.invariants[representatives], theirs.invariants[new]):
            a, b = int(representatives[i]), int(new[j])
            if same_image(first, a, other, b):
                yield Duplicate(a, b, number, "turned, mirrored or rescaled")


def same_image(store: Store, i: int, other: Store, j: int) -> bool:
    """Tell whether one image is the other, but for its orientation, scale and rounding."""
    images = store.images([i])[0], other.images([j])[0]
    a, b = (_normalised(image)[0] for image in images)
    allowed = max(_OF_SPREAD, _OF_NOISE * float(_noise(a)))
    return any(
        float(np.sqrt(((a - np.rot90(flipped, turns)) ** 2).mean())) <= allowed
        for flipped in (b, b[:, ::-1])
        for turns in range(4)
    )


def _near(points: Float[np.ndarray, "n d"], others: Float[np.ndarray, "m d"] | None) -> Iterator[tuple[int, int]]:
    """Yield the pairs whose coordinates all agree to `_TOLERANCE`; without `others`, those among the points."""
    from scipy.spatial import cKDTree

    tree = cKDTree(points)
    if others is None:
        yield from sorted(tree.query_pairs(_TOLERANCE, p=np.inf))
        return
    for j, near in enumerate(tree.query_ball_point(others, _TOLERANCE, p=np.inf)):
        yield from ((int(i), j) for i in near)


def _normalised(images: Float[np.ndarray, "b n n"]) -> Float[np.ndarray, "b n n"]:
    """Return images of mean 0 and standard deviation 1; constant ones become 0."""
    centred = images.astype(np.float64) - images.mean((1, 2), dtype=np.float64)[:, None, None]
    spread = centred.std((1, 2))[:, None, None]
    return np.asarray(centred / np.where(spread > 0, spread, 1.0))


def _noise(image: Float[np.ndarray, "n n"]) -> float:
    """Return the noise of an image from the median of its second differences, which bright light hardly enters."""
    second = np.diff(image, 2, axis=1) / np.sqrt(6)
    return float(1.4826 * np.median(np.abs(second)))
