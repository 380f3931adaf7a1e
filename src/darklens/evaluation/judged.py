"""Evaluations read back from the folders that `darklens evaluate` wrote, and put together by system."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from darklens.errors import InputError
from darklens.evaluation.metrics import Labels, Probabilities
from darklens.files import read_json


@dataclass(frozen=True)
class Judged:
    """One training's eval.json and predictions."""

    name: str
    evaluation: dict[str, Any]
    labels: Labels
    probabilities: Probabilities

    @property
    def seed(self) -> int | None:
        """The seed it was trained with, if that is known."""
        seed: int | None = self.evaluation["provenance"].get("seed")
        return seed


@dataclass(frozen=True)
class System:
    """Trainings of one recipe that differ in their seeds, or a single training."""

    name: str
    trainings: tuple[Judged, ...]

    @property
    def seeds(self) -> tuple[int | None, ...]:
        """The seed of each training."""
        return tuple(t.seed for t in self.trainings)

    def paired_with(self, other: "System") -> bool:
        """Whether training k of both has the same known seed, or each has just one training."""
        alone = len(self.trainings) == len(other.trainings) == 1
        return alone or (None not in self.seeds and self.seeds == other.seeds)


def read(folder: Path) -> Judged:
    """Return what `darklens evaluate` wrote into a folder.

    Raises:
        InputError: If it is not the evaluation of a classifier, or damaged.
    """
    if not (folder / "eval.json").exists():
        raise InputError(f"{folder} holds no eval.json; give folders that `darklens evaluate` wrote.")
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
    return Judged(evaluation["model"]["recipe"], evaluation, labels, probabilities)


def group(judged: Sequence[Judged], folders: Sequence[Path]) -> list[System]:
    """Put trainings that differ in nothing but their seed together, in the order of their first.

    If that leaves a single system, its trainings are kept apart, to be compared with each other. Systems of one recipe
    that stay apart have the name of their folder added.
    """
    found: dict[tuple[Any, ...], list[int]] = {}
    for i, own in enumerate(judged):
        model, data = own.evaluation["model"], own.evaluation.get("training_data", {})
        known = own.seed is not None and "recipe_sha256" in model
        alike = (model["recipe"], model.get("recipe_sha256"), data.get("population"), data.get("n"))
        key = (*alike, own.evaluation["provenance"].get("train_images")) if known else (i,)
        found.setdefault(key, []).append(i)
    parts = []
    for rows in found.values():
        seeds = [judged[i].seed for i in rows]
        distinct = len(set(seeds)) == len(seeds)
        parts += [sorted(rows, key=lambda i: judged[i].seed or 0)] if distinct else [[i] for i in rows]
    if len(parts) == 1:
        parts = [[i] for i in parts[0]]
    names = _told_apart([judged[rows[0]].name for rows in parts], [folders[rows[0]] for rows in parts])
    return [System(name, tuple(judged[i] for i in rows)) for name, rows in zip(names, parts, strict=True)]


def _told_apart(names: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """Add to names that occur twice as much of the folder as it takes."""
    for depth in range(1, 5):
        ends = ["/".join(folder.absolute().parts[-depth:]) for folder in folders]
        found = [f"{name} ({end})" if names.count(name) > 1 else name for name, end in zip(names, ends, strict=True)]
        if len(set(found)) == len(found):
            break
    return found


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of a table by column.

    Raises:
        InputError: If there is no such file.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist.")
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))
