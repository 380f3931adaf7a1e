"""Random streams addressed by seed and name, independent of the order in which they are used.

Image 17 of seed 0 has the same random numbers whether one process simulates all images in order or eight processes
simulate them out of order.
"""

import hashlib
from collections.abc import Sequence

import numpy as np


def _digest(seed: int, address: tuple[str | int, ...]) -> bytes:
    text = "/".join([str(int(seed)), *(str(part) for part in address)])
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def generator(seed: int, *address: str | int) -> np.random.Generator:
    """Return the counter-based generator (Philox) of an address, such as a name and an index, under a seed."""
    return np.random.Generator(np.random.Philox(key=int.from_bytes(_digest(seed, address), "little")))


def integer_seed(seed: int, *address: str | int) -> int:
    """Return a 63-bit seed of an address, for libraries that need an integer, such as torch."""
    return int.from_bytes(_digest(seed, address)[:8], "little") >> 1


# Philox4x32-10 (Salmon et al. 2011, SC '11, doi:10.1145/2063384.2063405).
_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = 0x9E3779B9, 0xBB67AE85
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_TO_UNIT = 2.0**-52


def philox(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Return the random words (..., 4) for counters (..., 4) and a 64-bit key; 32-bit words are stored in uint64."""
    c0, c1, c2, c3 = (counter[..., i] for i in range(4))
    k0, k1 = key
    for _ in range(10):
        p0, p1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (p1 >> _HALF) ^ c1 ^ np.uint64(k0), p1 & _LOW, (p0 >> _HALF) ^ c3 ^ np.uint64(k1), p0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=-1)


def uniforms(seed: int, *address: str | int, rows: Sequence[int], n: int) -> np.ndarray:
    """Return uniform numbers in (0, 1), float64 of shape (len(rows), n), of an address under a seed.

    The numbers of a row depend only on its index, so an image has the same numbers in any batch.
    """
    key = int.from_bytes(_digest(seed, address)[:8], "little")
    row, block = np.asarray(rows, dtype=np.uint64)[:, None], np.arange((n + 1) // 2, dtype=np.uint64)[None]
    shape = np.broadcast_shapes(row.shape, block.shape)
    counter = np.zeros((*shape, 4), dtype=np.uint64)
    counter[..., 0], counter[..., 1], counter[..., 2] = block, row & _LOW, row >> _HALF
    words = philox(counter, (key & 0xFFFFFFFF, key >> 32)).reshape(len(rows), -1, 2)
    bits = (words[..., 0] << _HALF | words[..., 1]) >> np.uint64(12)
    return np.asarray((bits[:, :n] + 0.5) * _TO_UNIT)
