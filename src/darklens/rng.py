"""Seeds as addresses: each random stream has a name, so it does not depend on who draws first.

The stream of image 17 of seed 0 is the same numbers whether one process makes all the images in order or
eight make them out of order.
"""

import hashlib

import numpy as np


def _digest(seed: int, address: tuple[str | int, ...]) -> bytes:
    text = "/".join([str(int(seed)), *(str(part) for part in address)])
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def generator(seed: int, *address: str | int) -> np.random.Generator:
    """Return the counter-based generator (Philox) of one address below `seed`."""
    return np.random.Generator(np.random.Philox(key=int.from_bytes(_digest(seed, address), "little")))


def integer_seed(seed: int, *address: str | int) -> int:
    """Return a 63-bit seed for libraries that take an integer, such as torch."""
    return int.from_bytes(_digest(seed, address)[:8], "little") >> 1
