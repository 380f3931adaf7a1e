"""The figure of a hyperparameter search."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from darklens.report.figures import COLOURS, new_figure
from darklens.training.trials import Metric, Trial


def history(trials: Sequence[Trial], metric: Metric) -> Figure:
    """Return the metric of each trial with the running best, and the metric against each searched setting."""
    keys = list(dict.fromkeys(key for trial in trials for key in trial.settings))
    figure, first = new_figure(5.0, 2.7 * (1 + len(keys)), rows=1 + len(keys))
    axes = figure.axes or [first]
    states = {"complete": COLOURS[0], "pruned": "0.7"}
    by_state = {
        state: [trial for trial in trials if trial.state == state and trial.value is not None] for state in states
    }
    for state, members in by_state.items():
        axes[0].plot(
            [t.number for t in members], [t.value or 0.0 for t in members], "o", color=states[state], label=state
        )
        for axis, key in zip(axes[1:], keys, strict=True):
            varied = [t for t in members if key in t.settings]
            axis.plot([t.settings[key] for t in varied], [t.value or 0.0 for t in varied], "o", color=states[state])
    better = min if metric == "val_loss" else max
    best: list[float] = []
    for trial in by_state["complete"]:
        best.append(better([*best[-1:], trial.value or 0.0]))
    axes[0].step([t.number for t in by_state["complete"]], best, where="post", color=COLOURS[1], label="best so far")
    axes[0].set(xlabel="trial", ylabel=metric.replace("_", " "))
    axes[0].legend()
    for axis, key in zip(axes[1:], keys, strict=True):
        values = [t.settings[key] for t in trials if isinstance(t.settings.get(key), int | float)]
        wide = bool(values) and min(values) > 0 and max(values) > 30 * min(values)
        axis.set(xlabel=key, ylabel=metric.replace("_", " "), xscale="log" if wide else axis.get_xscale())
    return figure
