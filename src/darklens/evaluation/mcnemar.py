"""McNemar's test: whether two classifiers are right on the same images equally often."""

from typing import Any

from darklens.evaluation.metrics import Labels, Probabilities

FEW = 25  # discordant images below which the exact test is taken


def mcnemar(labels: Labels, first: Probabilities, second: Probabilities) -> dict[str, Any]:
    """Test the difference in accuracy by the images on which just one of the two is right.

    Source: McNemar 1947, Psychometrika 12, 153, with the continuity correction of Edwards 1948, Psychometrika 13, 185.

    Returns:
        `first_only` and `second_only`, the images that only one has right, the two-sided `p`, and `method`: "exact"
        (binomial) with fewer than 25 such images, else "chi2".
    """
    from scipy.stats import binomtest, chi2

    a, b = first.argmax(1) == labels, second.argmax(1) == labels
    first_only, second_only = int((a & ~b).sum()), int((b & ~a).sum())
    n = first_only + second_only
    if n < FEW:
        p = float(binomtest(first_only, n).pvalue) if n else 1.0
    else:
        p = float(chi2.sf(max(abs(first_only - second_only) - 1, 0) ** 2 / n, 1))
    return {
        "first_only": first_only,
        "second_only": second_only,
        "p": p,
        "method": "exact" if n < FEW else "chi2",
    }
