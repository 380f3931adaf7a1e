"""Metrics and curves of class probabilities, and metrics of reconstructed images: pure functions.

Labels have shape (n,), probabilities (n, c); a weighted metric counts image j of resample i `weights[i, j]` times.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from darklens.data.noise_estimate import noise_variance
from darklens.errors import InputError

Labels = Int[np.ndarray, " n"]
Probabilities = Float[np.ndarray, "n c"]
Curve = tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]

MIN_PROBABILITY = 1e-15  # keeps the logarithm of a confident mistake finite; the value scikit-learn used
ECE_BINS = 15
MAX_CURVE_POINTS = 200


def check(labels: np.ndarray, probabilities: np.ndarray) -> None:
    """Refuse input for which a metric would be undefined.

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
    return np.asarray(-np.log(true.clip(MIN_PROBABILITY)))


def brier_score(labels: Labels, probabilities: Probabilities) -> float:
    """Return the mean squared error of the probabilities, summed over classes: 0 to 2 (Brier 1950)."""
    return float(squared_errors(labels, probabilities).mean())


def squared_errors(labels: Labels, probabilities: Probabilities) -> Float[np.ndarray, " n"]:
    """Return each image's squared distance between its probabilities and its one-hot label."""
    return np.asarray(((probabilities - np.eye(probabilities.shape[1])[labels]) ** 2).sum(1))


def recall(labels: Labels, probabilities: Probabilities) -> Float[np.ndarray, " c"]:
    """Return the fraction of each class that is classified correctly."""
    correct = probabilities.argmax(1) == labels
    return np.array([correct[labels == i].mean() for i in range(probabilities.shape[1])])


def binary_auc(positive: np.ndarray, scores: np.ndarray) -> float:
    """Return P(a positive scores above a negative) + P(equal) / 2, the Mann-Whitney statistic, exactly.

    Args:
        positive: Boolean (n,), with at least one of each.
        scores: Real (n,).
    """
    return float(weighted_auc(positive, scores, np.ones((1, len(scores))))[0])


def weighted_auc(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the AUC of each set of weights.

    Args:
        positive: Boolean (n,).
        scores: Real (n,).
        weights: Multiplicities (r, n); every row needs a positive and a negative of non-zero weight.

    Returns:
        AUC (r,).
    """
    positives, negatives = _weight_at_each_score(positive, scores, weights)
    below = np.cumsum(negatives, axis=1) - negatives
    wins = (positives * (below + negatives / 2)).sum(1)
    return np.asarray(wins / (positives.sum(1) * negatives.sum(1)))


def average_precision(positive: np.ndarray, scores: np.ndarray) -> float:
    """Return the precision at each distinct threshold, weighted by the increase of recall there.

    Args:
        positive: Boolean (n,), with at least one of each.
        scores: Real (n,).
    """
    return float(weighted_average_precision(positive, scores, np.ones((1, len(scores))))[0])


def weighted_average_precision(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the average precision (r,) of each set of weights (r, n); see `weighted_auc`."""
    positives, negatives = (part[:, ::-1] for part in _weight_at_each_score(positive, scores, weights))
    accepted = np.cumsum(positives, axis=1)
    precision = accepted / np.maximum(accepted + np.cumsum(negatives, axis=1), np.finfo(float).tiny)
    return np.asarray((positives * precision).sum(1) / accepted[:, -1])


def _weight_at_each_score(
    positive: np.ndarray, scores: np.ndarray, weights: np.ndarray
) -> tuple[Float[np.ndarray, "r k"], Float[np.ndarray, "r k"]]:
    """Return the weight of positives and of negatives at each distinct score, from the lowest score up."""
    _, group = np.unique(scores, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    w = weights[:, order].astype(np.float64)
    positives = np.add.reduceat(w * positive[order], starts, axis=1)
    return positives, np.add.reduceat(w, starts, axis=1) - positives


def class_auc(labels: Labels, probabilities: Probabilities) -> Float[np.ndarray, " c"]:
    """Return the one-vs-rest AUC of each class."""
    return np.array([binary_auc(labels == i, probabilities[:, i]) for i in range(probabilities.shape[1])])


def macro_auc(labels: Labels, probabilities: Probabilities) -> float:
    """Return the unweighted mean of the one-vs-rest AUCs."""
    return float(class_auc(labels, probabilities).mean())


def legacy_auc(labels: Labels, probabilities: Probabilities) -> list[float | None]:
    """Return the 2024 study's "AUC" of each class, for comparison with its table only.

    A member of class i counts as a positive only if it was also classified as i; a misclassified one counts as a
    negative. Random probabilities score 0.87. None where no member was classified correctly.
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
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    order = np.argsort(confidence, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return np.array([[confidence[part].mean(), correct[part].mean(), len(part)] for part in parts])


def calibration_error(labels: Labels, probabilities: Probabilities, bins: int = ECE_BINS) -> float:
    """Return the expected calibration error of the top label with adaptive bins (Nixon et al. 2019)."""
    confidence, rate, count = reliability(labels, probabilities, bins).T
    return float((count * np.abs(confidence - rate)).sum() / count.sum())


def confusion(labels: Labels, probabilities: Probabilities) -> Int[np.ndarray, "c c"]:
    """Return counts with the true class in the rows and the predicted one in the columns."""
    n_classes = probabilities.shape[1]
    return np.bincount(labels * n_classes + probabilities.argmax(1), minlength=n_classes**2).reshape(n_classes, -1)


def roc_curve(positive: np.ndarray, scores: np.ndarray) -> Curve:
    """Return false- and true-positive rates at each distinct threshold, from (0, 0) to (1, 1)."""
    positives, negatives = _accepted_counts(positive, scores)
    return (
        np.concatenate([[0.0], negatives / negatives[-1]]),
        np.concatenate([[0.0], positives / positives[-1]]),
    )


def precision_recall_curve(positive: np.ndarray, scores: np.ndarray) -> Curve:
    """Return recall and precision at each distinct threshold, from the highest down, after the point (0, 1)."""
    positives, negatives = _accepted_counts(positive, scores)
    return (
        np.concatenate([[0.0], positives / positives[-1]]),
        np.concatenate([[1.0], positives / (positives + negatives)]),
    )


def risk_coverage_curve(correct: Bool[np.ndarray, " n"], confidence: Float[np.ndarray, " n"]) -> Curve:
    """Return the fraction of images classified (coverage) and the error rate among them (risk) at each threshold.

    Images of equal confidence are accepted together, so the curve does not depend on their order.
    """
    right, wrong = _accepted_counts(correct, confidence)
    return (right + wrong) / len(correct), wrong / (right + wrong)


class RiskCoverage(NamedTuple):
    """Area under the risk-coverage curve, and the risk at stated coverages, of r sets of weights."""

    area: Float[np.ndarray, " r"]
    risk_at: Float[np.ndarray, "coverages r"]


def weighted_risk_coverage(
    correct: Bool[np.ndarray, " n"],
    confidence: Float[np.ndarray, " n"],
    weights: np.ndarray,
    coverages: Sequence[float],
) -> RiskCoverage:
    """Return the area under the risk-coverage curve and points on it, for each set of weights.

    The area is the mean over images of the risk when only images of at least that image's confidence are classified
    (Geifman & El-Yaniv 2017, arXiv:1705.08500). The risk at a coverage is that of the fewest images that reach it.

    Args:
        correct: Whether each image (n,) is classified correctly.
        confidence: Probability of the predicted class (n,).
        weights: Multiplicities (r, n).
        coverages: Fractions of images that are classified.
    """
    order = np.argsort(-confidence, kind="stable")
    last = np.flatnonzero(np.diff(confidence[order], append=-1.0))
    w = weights[:, order].astype(np.float64)
    accepted = np.cumsum(w, axis=1)[:, last]
    wrong = np.cumsum(w * ~correct[order], axis=1)[:, last]
    risk = wrong / np.maximum(accepted, 1)
    coverage = accepted / accepted[:, -1:]
    rows = np.arange(len(w))
    return RiskCoverage(
        area=(np.diff(coverage, axis=1, prepend=0) * risk).sum(1),
        risk_at=np.array([risk[rows, (coverage >= level - 1e-12).argmax(1)] for level in coverages]),
    )


def thin_curve(curve: Curve, points: int = MAX_CURVE_POINTS) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Return at most `points` points of a curve, evenly spaced along its length, with both ends."""
    x, y = curve
    if len(x) <= points:
        return curve
    length = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
    kept = np.searchsorted(length, np.linspace(0, length[-1], points))
    kept = np.unique(np.concatenate([[0], kept[1:-1], [len(x) - 1]]))
    return x[kept], y[kept]


def curves(labels: Labels, probabilities: Probabilities, classes: Sequence[str]) -> dict[str, Any]:
    """Return the content of curves.json: ROC and precision-recall by class, risk-coverage, reliability; thinned."""
    correct, confidence = probabilities.argmax(1) == labels, probabilities.max(1)
    scores = [(name, labels == i, probabilities[:, i]) for i, name in enumerate(classes)]
    bins = reliability(labels, probabilities)
    return {
        "schema": 1,
        "roc": {
            name: _as_lists(("false_positive_rate", "true_positive_rate"), roc_curve(positive, score))
            for name, positive, score in scores
        },
        "precision_recall": {
            name: _as_lists(("recall", "precision"), precision_recall_curve(positive, score))
            for name, positive, score in scores
        },
        "risk_coverage": _as_lists(("coverage", "risk"), risk_coverage_curve(correct, confidence)),
        "reliability": dict(zip(("confidence", "accuracy", "n"), bins.T.tolist(), strict=True)),
    }


def _as_lists(names: tuple[str, str], curve: Curve) -> dict[str, list[float]]:
    return dict(zip(names, (values.tolist() for values in thin_curve(curve)), strict=True))


def _accepted_counts(positive: np.ndarray, scores: np.ndarray) -> Curve:
    """Return how many positives and negatives reach each distinct score, from the highest score down."""
    values, group = np.unique(-scores, return_inverse=True)
    positives = np.bincount(group, weights=positive, minlength=len(values))
    negatives = np.bincount(group, weights=~positive, minlength=len(values))
    return np.cumsum(positives), np.cumsum(negatives)


def reconstruction_metrics(
    output: Float[Tensor, "b 1 n n"], images: Float[Tensor, "b 1 n n"]
) -> dict[str, Float[np.ndarray, " b"]]:
    """Return `mse`, `psnr_db`, `ssim` and `chi2_per_pixel` of each reconstruction of an image in [0, 1].

    chi2 per pixel takes the noise of `noise_variance`: 1 for the noise-free image, less for a reconstruction that
    fits the noise.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    output, images = output.float(), images.float()
    mse = torch.mean((output - images) ** 2, dim=(1, 2, 3))
    ssim = structural_similarity_index_measure(output, images, data_range=1.0, reduction="none")
    assert isinstance(ssim, Tensor)
    chi2 = ((images - output) ** 2 / noise_variance(images)).mean((1, 2, 3))
    values = {"mse": mse, "psnr_db": -10 * torch.log10(mse), "ssim": ssim.reshape(-1), "chi2_per_pixel": chi2}
    return {name: value.double().cpu().numpy() for name, value in values.items()}
