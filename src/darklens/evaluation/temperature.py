"""One number that makes probabilities honest: logits are divided by it (Guo et al. 2017, arXiv:1706.04599)."""

import numpy as np
from jaxtyping import Float, Int

from darklens.calibration import softmax

LOWEST, HIGHEST = 0.05, 20.0
FEWEST = 30  # images; below, the temperature of a few lucky ones would be as good as any


def fit_temperature(logits: Float[np.ndarray, "n c"], labels: Int[np.ndarray, " n"]) -> float:
    """Return the temperature at which held-out images are most probable, between 0.05 and 20.

    The loss is convex in 1 / temperature, so a bisection of its slope finds the minimum. As in Platt (1999), each
    image is doubted by one part in n + 1, shared by all classes: otherwise images that are all classified rightly
    would make a network certain of everything.

    Args:
        logits: Of n >= 1 held-out images.
        labels: Their true classes.
    """
    n, c = logits.shape
    z = logits.astype(np.float64)
    target = np.full((n, c), 1 / (n + 1) / c)
    target[np.arange(n), labels] += n / (n + 1)

    def slope(inverse: float) -> float:
        return float(((softmax(z * inverse) - target) * z).sum())

    low, high = 1 / HIGHEST, 1 / LOWEST
    for _ in range(60):
        middle = (low * high) ** 0.5
        if slope(middle) > 0:
            high = middle
        else:
            low = middle
    return float(1 / (low * high) ** 0.5)
