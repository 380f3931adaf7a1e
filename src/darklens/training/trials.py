"""The trials of a hyperparameter search: their table, and the best of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from darklens.files import csv_line, write_text

Metric = Literal["val_loss", "val_auc"]


@dataclass(frozen=True)
class Trial:
    """A trial that has ended.

    Attributes:
        number: Counted from 0.
        state: `complete`, `pruned` (stopped early because it was worse than others at that epoch), `failed` (killed and
            then repeated) or `refused` (its settings are not valid).
        value: The metric, for a pruned trial that of its last epoch. None if there is none.
        epochs: Epochs of the last stage.
        seconds: Wall time.
        settings: The suggested values by key.
        problem: The reason why it was refused or stopped.
    """

    number: int
    state: Literal["complete", "pruned", "failed", "refused"]
    value: float | None
    epochs: int
    seconds: float
    settings: dict[str, Any]
    problem: str


def best_of(trials: Sequence[Trial], metric: Metric) -> Trial | None:
    """Return the best complete trial; None if there is none."""
    complete = [trial for trial in trials if trial.state == "complete"]
    sign = 1 if metric == "val_loss" else -1
    return min(complete, key=lambda trial: sign * (trial.value or 0.0), default=None)


def write_table(path: Path, trials: Sequence[Trial], metric: Metric) -> None:
    """Write trials.csv."""
    keys = list(dict.fromkeys(key for trial in trials for key in trial.settings))
    lines = [csv_line(["trial", "state", metric, "epochs", "seconds", *keys, "problem"])]
    for trial in trials:
        value = "" if trial.value is None else f"{trial.value:.6g}"
        settings = [trial.settings.get(key, "") for key in keys]
        row = [trial.number, trial.state, value, trial.epochs, trial.seconds, *settings, trial.problem]
        lines.append(csv_line(row))
    write_text(path, "".join(lines))
