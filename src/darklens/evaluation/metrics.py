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
    return float(log_losses(labels, probabilities).mean())


def log_losses(labels: Labels, probabilities: Probabilities) -> Float[np.ndarray, " n"]:
    """Return each image's -ln p(true class), in nats."""
    true = probabilities[np.arange(len(labels)), labels]
    return np.asarray(-np.log(true.clip(SMALLEST_PROBABILITY)))


def brier_score(labels: Labels, probabilities: Probabilities) -> float:
    """Return the mean squared error of the probabilities, summed over classes: 0 to 2 (Brier 1950)."""
    return float(squared_error(labels, probabilities).mean())


def squared_error(labels: Labels, probabilities: Probabilities) -> Float[np.ndarray, " n"]:
    """Return each image's squared distance between its probabilities and certainty of its true class."""
    return np.asarray(((probabilities - np.eye(probabilities.shape[1])[labels]) ** 2).sum(1))


def recall(labels: Labels, probabilities: Probabilities) -> Float[np.ndarray, " c"]:
    """Return for each class the fraction of its images that are classified as it."""
    right = probabilities.argmax(1) == labels
    return np.array([right[labels == i].mean() for i in range(probabilities.shape[1])])


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
    up, down = _at_each_score(positive, scores, weights)
    below = np.cumsum(down, axis=1) - down
    won = (up * (below + down / 2)).sum(1)
    return np.asarray(won / (up.sum(1) * down.sum(1)))


def average_precision(positive: np.ndarray, scores: np.ndarray) -> float:
    """Return the precision at each distinct threshold, weighted by the recall that is gained there.

    Args:
        positive: Boolean (n,), with at least one of each.
        scores: Real (n,).
    """
    return float(weighted_average_precision(positive, scores, np.ones((1, len(scores))))[0])


def weighted_average_precision(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the average precision (r,) with each image counted `weights` (r, n) times; see `weighted_auc`."""
    up, down = (part[:, ::-1] for part in _at_each_score(positive, scores, weights))
    found = np.cumsum(up, axis=1)
    precision = found / np.maximum(found + np.cumsum(down, axis=1), np.finfo(float).tiny)
    return np.asarray((up * precision).sum(1) / found[:, -1])


def _at_each_score(
    positive: np.ndarray, scores: np.ndarray, weights: np.ndarray
) -> tuple[Float[np.ndarray, "r k"], Float[np.ndarray, "r k"]]:
    """Return the weight of positives and of negatives at each distinct score, from the lowest score up."""
    _, group = np.unique(scores, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    w = weights[:, order].astype(np.float64)
    up = np.add.reduceat(w * positive[order], starts, axis=1)
    return up, np.add.reduceat(w, starts, axis=1) - up


def class_auc(labels: Labels, probabilities: Probabilities) -> Float[np.ndarray, " c"]:
    """Return the one-vs-rest AUC of each class."""
    return np.array([binary_auc(labels == i, probabilities[:, i]) for i in range(probabilities.shape[1])])


def macro_auc(labels: Labels, probabilities: Probabilities) -> float:
    """Return the unweighted mean of the one-vs-rest AUCs."""
    return float(class_auc(labels, probabilities).mean())


def legacy_auc(labels: Labels, probabilities: Probabilities) -> list[float | None]:
    """Return the 2024 study's "AUC" of each class, for comparison with its table only.

    A member of class i counts as a positive only if it was also classified as i; a misclassified one counts as a
    negative. Probabilities drawn at random score 0.87. None where no member was classified correctly.
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
