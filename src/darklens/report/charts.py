"""Figures of metrics and curves."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from matplotlib.figure import Figure

from darklens.evaluation import metrics
from darklens.evaluation.metrics import Labels, Probabilities
from darklens.report.figures import COLOURS, new_figure


def roc(labels: Labels, probabilities: Probabilities, classes: Sequence[str]) -> Figure:
    """Return the one-vs-rest ROC curves."""
    figure, axes = new_figure(4.3, 4.1)
    for i, name in enumerate(classes):
        false_rate, true_rate = metrics.roc_curve(labels == i, probabilities[:, i])
        area = metrics.binary_auc(labels == i, probabilities[:, i])
        axes.plot(false_rate, true_rate, color=COLOURS[i], label=f"{name}: AUC {area:.3f}")
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle=":")
    axes.set(xlabel="false positive rate", ylabel="true positive rate", aspect="equal")
    axes.legend(loc="lower right")
    return figure


def calibration(bins: Float[np.ndarray, "bins 3"]) -> Figure:
    """Return the reliability diagram of the bins of `metrics.reliability`."""
    figure, axes = new_figure(4.3, 4.1)
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle=":", label="perfect calibration")
    axes.plot(bins[:, 0], bins[:, 1], "o-", color=COLOURS[0], label="this system")
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.legend(loc="upper left")
    return figure


def confusion(counts: Int[np.ndarray, "c c"], classes: Sequence[str]) -> Figure:
    """Return the confusion matrix: counts, shaded by their fraction of the true class."""
    figure, axes = new_figure(4.1, 3.9)
    fraction = counts / counts.sum(1, keepdims=True)
    axes.imshow(fraction, cmap="Blues", vmin=0, vmax=1)
    for (i, j), n in np.ndenumerate(counts):
        axes.text(j, i, str(n), ha="center", va="center", color="white" if fraction[i, j] > 0.5 else "black")
    ticks = range(len(classes))
    axes.set(xlabel="predicted", ylabel="true", xticks=ticks, yticks=ticks, xticklabels=classes, yticklabels=classes)
    return figure


def learning_curves(rows: Sequence[Mapping[str, str]]) -> Figure:
    """Return the losses of each stage of a run against the epoch, from the rows of metrics.csv."""
    stages = sorted({int(row["stage"]) for row in rows})
    figure, first = new_figure(5.0, 3.2 * len(stages), rows=len(stages))
    for axes, stage in zip(figure.axes or [first], stages, strict=True):
        stage_rows = [row for row in rows if int(row["stage"]) == stage]
        epochs = [int(row["epoch"]) + 1 for row in stage_rows]
        for name, colour in (("train_loss", COLOURS[0]), ("val_loss", COLOURS[1])):
            axes.plot(epochs, [float(row[name]) for row in stage_rows], color=colour, label=name.replace("_", " "))
        axes.set(xlabel="epoch", ylabel="loss", title=stage_rows[0]["task"], yscale="log")
        axes.legend()
    return figure


def auc_bars(systems: Sequence[Mapping[str, Any]]) -> Figure:
    """Return the macro and class AUCs of several systems with their 95 % intervals."""
    names = list(systems[0]["auc"])
    figure, axes = new_figure(6.4, 1.4 + 0.42 * len(systems) * len(names) / 2)
    height = 0.8 / len(systems)
    for k, system in enumerate(systems):
        y = np.arange(len(names)) + (k - (len(systems) - 1) / 2) * height
        values = np.array([system["auc"][name]["value"] for name in names])
        errors = _error_bars(values, [system["auc"][name]["ci95"] for name in names])
        label = system["name"].replace("$", r"\$")  # no formula
        axes.errorbar(values, y, xerr=errors, fmt="o", color=COLOURS[k % len(COLOURS)], capsize=3, label=label)
    axes.set(yticks=range(len(names)), yticklabels=names, xlabel="one-vs-rest AUC")
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def precision_recall(labels: Labels, probabilities: Probabilities, classes: Sequence[str]) -> Figure:
    """Return the one-vs-rest precision-recall curves, as steps between thresholds."""
    figure, axes = new_figure(4.3, 4.1)
    for i, name in enumerate(classes):
        recall, precision = metrics.precision_recall_curve(labels == i, probabilities[:, i])
        area = metrics.average_precision(labels == i, probabilities[:, i])
        axes.step(recall, precision, where="pre", color=COLOURS[i], label=f"{name}: AP {area:.3f}")
    axes.set(xlabel="recall", ylabel="precision", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axes.legend(loc="lower left")
    return figure


def risk_coverage(correct: Bool[np.ndarray, " n"], confidence: Float[np.ndarray, " n"]) -> Figure:
    """Return the error rate among the most confident images against the fraction of images that are classified."""
    figure, axes = new_figure(4.3, 4.1)
    coverage, risk = metrics.risk_coverage_curve(correct, confidence)
    axes.step(coverage, risk, where="post", color=COLOURS[0], label="this system")
    axes.axhline(float((~correct).mean()), color="0.6", linewidth=1, linestyle=":", label="all images")
    axes.set(xlabel="coverage", ylabel="risk (error rate)", xlim=(0, 1))
    axes.set_ylim(bottom=0)
    axes.legend(loc="best")
    return figure


def stratum(entry: Mapping[str, Any], classes: Sequence[str]) -> Figure:
    """Return recall against a true parameter with 95 % intervals, and the detection limits at 50 and 90 %.

    Args:
        entry: One entry of `darklens.evaluation.strata.stratify`.
        classes: All classes; their order gives the colours.
    """
    figure, axes = new_figure(4.3, 3.3)
    median = np.array([row["median"] for row in entry["bins"]])
    for name in entry["bins"][0]["recall"]:
        rates = [row["recall"][name] for row in entry["bins"]]
        filled = [k for k, rate in enumerate(rates) if rate]
        values = np.array([rates[k]["value"] for k in filled])
        errors = _error_bars(values, [rates[k]["ci95"] for k in filled])
        colour = COLOURS[list(classes).index(name)]
        axes.errorbar(median[filled], values, yerr=errors, fmt="o-", color=colour, capsize=2, markersize=4, label=name)
    for limit in entry.get("limits", []):
        if limit["value"] is not None:
            axes.plot([limit["value"]] * 2, [0, limit["recall"]], color="0.5", linewidth=1, linestyle=":")
    axes.set(xlabel=f"{entry['parameter']}, {entry['unit']}" if entry["unit"] else entry["parameter"], ylabel="recall")
    if entry.get("limits") and median.min() > 0 and median.max() > 5 * median.min():
        axes.set_xscale("log")
    axes.set_ylim(min(0.5, axes.get_ylim()[0]) if axes.get_ylim()[0] > 0.5 else 0, 1.02)
    axes.legend(loc="lower right")
    return figure


def differences(pairs: Sequence[Mapping[str, Any]]) -> Figure:
    """Return the differences in accuracy and in macro and class AUC of pairs of systems, with 95 % intervals."""
    figure, axes = new_figure(6.4, 1.5 + 0.5 * len(pairs) * 2)
    names = ["accuracy", *(f"AUC {name}" for name in pairs[0]["auc"])]
    height = 0.8 / len(names)
    for k, name in enumerate(names):
        compared = [d["accuracy"] if name == "accuracy" else d["auc"][name.removeprefix("AUC ")] for d in pairs]
        values = np.array([m["value"] for m in compared])
        errors = _error_bars(values, [m["ci95"] for m in compared])
        y = np.arange(len(pairs)) + (k - (len(names) - 1) / 2) * height
        axes.errorbar(values, y, xerr=errors, fmt="o", color=COLOURS[k % len(COLOURS)], capsize=3, label=name)
    axes.axvline(0, color="0.6", linewidth=1, linestyle=":")
    labels = [f"{d['first']}\n- {d['second']}" for d in pairs]
    axes.set(yticks=range(len(pairs)), yticklabels=labels, xlabel="first - second")
    axes.tick_params(axis="y", labelsize=9)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def _error_bars(values: Float[np.ndarray, " k"], intervals: Sequence[Sequence[float]]) -> Float[np.ndarray, "2 k"]:
    """Return the lengths of error bars below and above, never negative."""
    low, high = np.array(intervals).reshape(-1, 2).T
    return np.asarray(np.clip([values - low, high - values], 0, None))
