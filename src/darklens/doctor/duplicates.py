"""Duplicate images within a store or between stores: equal bytes, or rotated, mirrored and linearly rescaled copies.

Each image is represented by a digest of its bytes and six numbers that are invariant under rotations by 90 degrees,
reflections and positive linear rescaling. Images whose invariants agree are compared pixel by pixel, so that rounding
does not hide a copy and two noisy exposures of one lens do not count as copies.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from darklens.data.store import Store

_TOLERANCE = 2e-3  # of the invariants; those of 8-bit copies differ by about 5e-4
# Largest rms difference of copies, relative to the noise and to the standard deviation of the image. Two exposures
# with independent noise differ by 1.4 times the noise.
_NOISE_FRACTION, _SCATTER_FRACTION = 0.2, 1e-5

Kind = Literal["same bytes", "rotated, mirrored or rescaled"]


@dataclass(frozen=True)
class Fingerprints:
    """Digests (n,) and invariants (n, 6) of a store's images: 56 bytes an image."""

    digests: Int[np.ndarray, " n"]
    invariants: Float[np.ndarray, "n 6"]


@dataclass(frozen=True)
class Duplicate:
    """Image `first` of the examined store equals image `second` of store number `store` (0: the same store)."""

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
    # The root of the fourth moment is of the order of the other invariants, also for a bright point source.
    invariants[1] = n * np.sqrt(invariants[1] / n)
    return Fingerprints(np.array(digests, dtype=np.int64), np.stack(invariants, axis=1) / n)


def joined(blocks: list[Fingerprints]) -> Fingerprints:
    """Return the concatenated fingerprints of several blocks."""
    return Fingerprints(np.concatenate([b.digests for b in blocks]), np.concatenate([b.invariants for b in blocks]))


def duplicates(stores: list[Store], prints: list[Fingerprints]) -> Iterator[Duplicate]:
    """Yield the duplicates of the first store's images, in it and in the others.

    Each of several equal images is paired with the first only, so a store of n equal images gives n - 1 duplicates.
    """
    store, examined = stores[0], prints[0]
    digests, first_index = np.unique(examined.digests, return_index=True)
    original = dict(zip(digests.tolist(), first_index.tolist(), strict=True))
    for i, digest in enumerate(examined.digests.tolist()):
        if original[digest] != i:
            yield Duplicate(original[digest], i, 0, "same bytes")
    representatives = np.sort(first_index)
    for i, j in _near(examined.invariants[representatives], None):
        a, b = int(representatives[i]), int(representatives[j])
        if same_image(store, a, store, b):
            yield Duplicate(a, b, 0, "rotated, mirrored or rescaled")
    for number, (other, compared) in enumerate(zip(stores[1:], prints[1:], strict=True), start=1):
        if other.index.n_pixels != store.index.n_pixels:
            continue
        for j, digest in enumerate(compared.digests.tolist()):
            if digest in original:
                yield Duplicate(original[digest], j, number, "same bytes")
        new = np.flatnonzero(~np.isin(compared.digests, digests))
        for i, j in _near(examined.invariants[representatives], compared.invariants[new]):
            a, b = int(representatives[i]), int(new[j])
            if same_image(store, a, other, b):
                yield Duplicate(a, b, number, "rotated, mirrored or rescaled")


def same_image(store: Store, i: int, other: Store, j: int) -> bool:
    """Return whether two images are equal up to orientation, linear scale and rounding."""
    images = store.images([i])[0], other.images([j])[0]
    a, b = (_normalised(image)[0] for image in images)
    tolerance = max(_SCATTER_FRACTION, _NOISE_FRACTION * float(_noise(a)))
    return any(
        float(np.sqrt(((a - np.rot90(flipped, quarter_turns)) ** 2).mean())) <= tolerance
        for flipped in (b, b[:, ::-1])
        for quarter_turns in range(4)
    )


def _near(points: Float[np.ndarray, "n d"], others: Float[np.ndarray, "m d"] | None) -> Iterator[tuple[int, int]]:
    """Yield the pairs whose coordinates all agree to `_TOLERANCE`; without `others`, pairs among the points."""
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
    """Return the noise of an image from the median of its second differences, robust against bright light."""
    second = np.diff(image, 2, axis=1) / np.sqrt(6)
    return float(1.4826 * np.median(np.abs(second)))
