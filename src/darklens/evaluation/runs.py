"""Folders that `darklens evaluate` wrote, read back and grouped by system."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from darklens.errors import InputError
from darklens.evaluation.metrics import Labels, Probabilities
from darklens.files import read_json, require_regular


@dataclass(frozen=True)
class EvaluationRun:
    """The eval.json and the predictions of one training."""

    name: str
    evaluation: dict[str, Any]
    labels: Labels
    probabilities: Probabilities

    @property
    def seed(self) -> int | None:
        """The seed of the training, if it is known."""
        seed: int | None = self.evaluation["provenance"].get("seed")
        return seed


@dataclass(frozen=True)
class SystemRuns:
    """Trainings of one recipe that differ in their seeds, or a single training."""

    name: str
    trainings: tuple[EvaluationRun, ...]

    @property
    def seeds(self) -> tuple[int | None, ...]:
        """The seed of each training."""
        return tuple(t.seed for t in self.trainings)

    def is_paired_with(self, other: "SystemRuns") -> bool:
        """Return whether training k of both has the same known seed, or each has a single training."""
        single = len(self.trainings) == len(other.trainings) == 1
        return single or (None not in self.seeds and self.seeds == other.seeds)


def read_run(folder: Path) -> EvaluationRun:
    """Return what `darklens evaluate` wrote into a folder.

    Raises:
        InputError: If it is not the evaluation of a classifier, or damaged.
    """
    if not (folder / "eval.json").exists():
        raise InputError(f"{folder} holds no eval.json; name folders that `darklens evaluate` wrote.")
    evaluation = read_json(folder / "eval.json")
    if "classes" not in evaluation:
        raise InputError(f"{folder} is the evaluation of a system that does not classify; leave it out.")
    classes = evaluation["classes"]
    rows = read_csv(folder / "predictions.csv")
    try:
        labels = np.array([classes.index(row["label"]) for row in rows])
        probabilities = np.array([[float(row[f"p_{name}"]) for name in classes] for row in rows])
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{folder / 'predictions.csv'} is damaged; evaluate again.") from None
    return EvaluationRun(evaluation["model"]["recipe"], evaluation, labels, probabilities)


def group_runs(runs: Sequence[EvaluationRun], folders: Sequence[Path]) -> list[SystemRuns]:
    """Group trainings that differ only in their seed, in the order of the first of each group.

    If all runs fall into one group, each becomes a system, to be compared with the others. Systems of equal name have
    the name of their folder added.
    """
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i, run in enumerate(runs):
        model, data = run.evaluation["model"], run.evaluation.get("training_data", {})
        settings = (model["recipe"], model.get("recipe_sha256"), data.get("population"), data.get("n"))
        is_known = run.seed is not None and "recipe_sha256" in model
        key = (*settings, run.evaluation["provenance"].get("train_images")) if is_known else (i,)
        groups.setdefault(key, []).append(i)
    parts = []
    for rows in groups.values():
        seeds = [runs[i].seed for i in rows]
        distinct = len(set(seeds)) == len(seeds)
        parts += [sorted(rows, key=lambda i: runs[i].seed or 0)] if distinct else [[i] for i in rows]
    if len(parts) == 1:
        parts = [[i] for i in parts[0]]
    names = _disambiguated([runs[rows[0]].name for rows in parts], [folders[rows[0]] for rows in parts])
    return [SystemRuns(name, tuple(runs[i] for i in rows)) for name, rows in zip(names, parts, strict=True)]


def _disambiguated(names: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """Add to names that occur twice as many parts of the folder as make them distinct."""
    for depth in range(1, 5):
        ends = ["/".join(folder.absolute().parts[-depth:]) for folder in folders]
        distinct = [f"{name} ({end})" if names.count(name) > 1 else name for name, end in zip(names, ends, strict=True)]
        if len(set(distinct)) == len(distinct):
            break
    return distinct


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of a table by column.

    Raises:
        InputError: If there is no such file.
    """
    require_regular(path)
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as stream:
        return list(csv.DictReader(stream))
