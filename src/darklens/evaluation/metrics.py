"""Metrics of class probabilities: pure functions of labels (n,) and probabilities (n, c)."""

import numpy as np
from jaxtyping import Float, Int

from darklens.errors import InputError

Labels = Int[np.ndarray, " n"]
Probabilities = Float[np.ndarray, "n c"]

SMALLEST_PROBABILITY = 1e-15  # keeps the logarithm of a confident mistake finite; the value scikit-learn used
ECE_BINS = 15


def check(labels: np.ndarray, probabilities: np.ndarray) -> None:
    """Refuse input on which a metric would be undefined.

    Raises:
        InputError: If there are no images, shapes disagree, a class has no image, or rows are not probabilities.
    """
    if len(labels) == 0:
        raise InputError("There are no images to evaluate.")
    if probabilities.ndim != 2 or len(probabilities) != len(labels):
        raise InputError(f"{len(labels)} labels do not match probabilities of shape {probabilities.shape}.")
    n_classes = probabilities.shape[1]
    if labels.min() < 0 or labels.max() >= n_classes:
        raise InputError(f"Labels must be integers from 0 to {n_classes - 1}, got {labels.min()} to {labels.max()}.")
    absent = sorted(set(range(n_classes)) - set(labels.tolist()))
    if absent:
        raise InputError(f"Class {absent[0]} has no image, so its AUC is undefined; evaluate on images of every class.")
    if not np.isfinite(probabilities).all() or probabilities.min() < 0:
        raise InputError("Probabilities must be finite and not negative.")
    if not np.allclose(probabilities.sum(1), 1, atol=1e-5):
        raise InputError("Each image's probabilities must sum to one.")


def accuracy(labels: Labels, probabilities: Probabilities) -> float:
    """Return the fraction of images whose most probable class is the true one."""
    return float((probabilities.argmax(1) == labels).mean())


def log_loss(labels: Labels, probabilities: Probabilities) -> float:
    """Return the mean of -ln p(true class), in nats."""
    true = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(true.clip(SMALLEST_PROBABILITY)).mean())


def binary_auc(positive: np.ndarray, scores: np.ndarray) -> float:
    """Return P(a positive scores above a negative) + P(equal) / 2, the Mann-Whitney statistic, exactly.

    Args:
        positive: Boolean (n,), with at least one of each.
        scores: Real (n,).
    """
    return float(weighted_auc(positive, scores, np.ones((1, len(scores))))[0])


def weighted_auc(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the AUC with each image counted `weights` times, for many sets of weights at once.

    Args:
        positive: Boolean (n,).
        scores: Real (n,).
        weights: Multiplicities (r, n); every row needs a positive and a negative of non-zero weight.

    Returns:
        AUC (r,).
    """
    _, group = np.unique(scores, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    w = weights[:, order]
    is_positive = positive[order]
    # Weight of positives and of negatives at each distinct score, from the lowest score up.
    up = np.add.reduceat(w * is_positive, starts, axis=1)
    down = np.add.reduceat(w * ~is_positive, starts, axis=1)
    below = np.cumsum(down, axis=1) - down
    won = (up * (below + down / 2)).sum(1)
    return np.asarray(won / (up.sum(1) * down.sum(1)))


def class_auc(labels: Labels, probabilities: Probabilities) -> Float[np.ndarray, " c"]:
    """Return the one-vs-rest AUC of each class."""
    return np.array([binary_auc(labels == i, probabilities[:, i]) for i in range(probabilities.shape[1])])


def macro_auc(labels: Labels, probabilities: Probabilities) -> float:
    """Return the unweighted mean of the one-vs-rest AUCs."""
    return float(class_auc(labels, probabilities).mean())


def legacy_auc(labels: Labels, probabilities: Probabilities) -> list[float | None]:
    """Return the 2024 study's "AUC" of each class, for comparison with its table only.

    A member of class i counts as a positive only if it was also classified as i; a misclassified one counts as a
    negative. A chance classifier scores about 0.87. None where no member was classified correctly.
    """
    predicted = probabilities.argmax(1)
    values: list[float | None] = []
    for i in range(probabilities.shape[1]):
        positive = (labels == i) & (predicted == i)
        defined = positive.any() and not positive.all()
        values.append(binary_auc(positive, probabilities[:, i]) if defined else None)
    return values


def reliability(labels: Labels, probabilities: Probabilities, bins: int = ECE_BINS) -> Float[np.ndarray, "bins 3"]:
    """Return mean confidence, accuracy and number of images, in bins of equal numbers of images.

    Confidence is the probability of the predicted class.
    """
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    order = np.argsort(confidence, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return np.array([[confidence[part].mean(), right[part].mean(), len(part)] for part in parts])


def calibration_error(labels: Labels, probabilities: Probabilities, bins: int = ECE_BINS) -> float:
    """Return the expected calibration error of the top label with adaptive bins (Nixon et al. 2019)."""
    confidence, right, count = reliability(labels, probabilities, bins).T
    return float((count * np.abs(confidence - right)).sum() / count.sum())


def confusion(labels: Labels, probabilities: Probabilities) -> Int[np.ndarray, "c c"]:
    """Return counts with the true class in the rows and the predicted one in the columns."""
    n_classes = probabilities.shape[1]
    return np.bincount(labels * n_classes + probabilities.argmax(1), minlength=n_classes**2).reshape(n_classes, -1)


def roc_curve(positive: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return false- and true-positive rates at every distinct threshold, from (0, 0) to (1, 1)."""
    values, group = np.unique(-scores, return_inverse=True)
    up = np.bincount(group, weights=positive, minlength=len(values))
    down = np.bincount(group, weights=~positive, minlength=len(values))
    true_rate, false_rate = np.cumsum(up) / up.sum(), np.cumsum(down) / down.sum()
    return np.concatenate([[0.0], false_rate]), np.concatenate([[0.0], true_rate])
