"""RUN/metrics.csv, with one row per epoch."""

import csv
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from rich.console import Console

from darklens.files import write_text
from darklens.training.recipe import Stage

_COLUMNS = ["stage", "task", "epoch", "train_loss", "val_loss", "val_auc", "lr", "seconds"]


class EpochMetrics(NamedTuple):
    """The metrics of one epoch. Stage and epoch count from 0, and `val_auc` is NaN unless the stage classifies."""

    stage: int
    epoch: int
    train_loss: float
    val_loss: float
    val_auc: float

    @classmethod
    def from_row(cls, row: Mapping[str, str]) -> "EpochMetrics":
        """Return the metrics in a row of metrics.csv."""
        losses = (float(row[name] or "nan") for name in ("train_loss", "val_loss", "val_auc"))
        return cls(int(row["stage"]), int(row["epoch"]), *losses)


class MetricsWriter(Callback):
    """Appends a row to metrics.csv after each epoch, and prints it if there is no progress bar.

    Args:
        path: The metrics.csv of the run.
        stage: The stage that is trained.
        stage_index: Its index in the recipe.
        on_epoch: Called with the metrics of each epoch.
        enabled: Whether this process writes and prints.
    """

    def __init__(
        self, path: Path, stage: Stage, stage_index: int, on_epoch: Callable[[EpochMetrics], None], *, enabled: bool
    ) -> None:
        self._path, self._stage, self._stage_index = path, stage, stage_index
        self._on_epoch, self._enabled = on_epoch, enabled
        self._started = 0.0

    def drop_from(self, epoch: int) -> None:
        """Drop the rows of this stage from `epoch` on, which a resumed run repeats."""
        rows = read_rows(self._path)
        self._write([r for r in rows if int(r["stage"]) != self._stage_index or int(r["epoch"]) < epoch])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock of the first epoch."""
        self._started = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the row of the epoch, whose validation has run."""
        metrics = trainer.callback_metrics
        row = {
            "stage": str(self._stage_index),
            "task": self._stage.task,
            "epoch": str(trainer.current_epoch),
            **{name: f"{float(metrics[name]):.6g}" if name in metrics else "" for name in _COLUMNS[3:6]},
            "lr": f"{trainer.optimizers[0].param_groups[0]['lr']:.4g}",
            "seconds": f"{time.perf_counter() - self._started:.2f}",
        }
        self._started = time.perf_counter()
        self._write([*read_rows(self._path), row])
        if self._enabled and not Console().is_terminal:
            auc = f", validation AUC {float(row['val_auc']):.4f}" if row["val_auc"] else ""
            print(
                f"{self._stage.task}: epoch {trainer.current_epoch + 1}/{self._stage.epochs}, "
                f"loss {float(row['train_loss']):.4f}, validation loss {float(row['val_loss']):.4f}{auc}",
                flush=True,
            )
        self._on_epoch(EpochMetrics.from_row(row))

    def _write(self, rows: list[dict[str, str]]) -> None:
        if not self._enabled:
            return
        lines = [",".join(_COLUMNS), *(",".join(row[name] for name in _COLUMNS) for row in rows)]
        write_text(self._path, "\n".join(lines) + "\n")


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a metrics.csv, or none if there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))
