"""RUN/metrics.csv: a row for each epoch."""

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
    """What an epoch came to; stage and epoch are counted from 0, `val_auc` is NaN where nothing is classified."""

    stage: int
    epoch: int
    train_loss: float
    val_loss: float
    val_auc: float

    @classmethod
    def of(cls, row: Mapping[str, str]) -> "EpochMetrics":
        """Return those of a row of metrics.csv."""
        losses = (float(row[name] or "nan") for name in ("train_loss", "val_loss", "val_auc"))
        return cls(int(row["stage"]), int(row["epoch"]), *losses)


class EpochRows(Callback):
    """Appends a row to metrics.csv after each epoch, and prints it where there is no progress bar."""

    def __init__(
        self, path: Path, stage: Stage, number: int, watch: Callable[[EpochMetrics], None], *, writes: bool
    ) -> None:
        self._path, self._stage, self._number = path, stage, number
        self._watch, self._writes = watch, writes
        self._started = 0.0

    def forget_from(self, epoch: int) -> None:
        """Drop this stage's rows from `epoch` on: a resumed run repeats those epochs."""
        self._write([r for r in read_rows(self._path) if int(r["stage"]) != self._number or int(r["epoch"]) < epoch])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the first epoch's clock."""
        self._started = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the epoch's row; validation has run by now."""
        metrics = trainer.callback_metrics
        row = {
            "stage": str(self._number),
            "task": self._stage.task,
            "epoch": str(trainer.current_epoch),
            **{name: f"{float(metrics[name]):.6g}" if name in metrics else "" for name in _COLUMNS[3:6]},
            "lr": f"{trainer.optimizers[0].param_groups[0]['lr']:.4g}",
            "seconds": f"{time.perf_counter() - self._started:.2f}",
        }
        self._started = time.perf_counter()
        self._write([*read_rows(self._path), row])
        if self._writes and not Console().is_terminal:
            auc = f", validation AUC {float(row['val_auc']):.4f}" if row["val_auc"] else ""
            print(
                f"{self._stage.task}: epoch {trainer.current_epoch + 1}/{self._stage.epochs}, "
                f"loss {float(row['train_loss']):.4f}, validation loss {float(row['val_loss']):.4f}{auc}",
                flush=True,
            )
        self._watch(EpochMetrics.of(row))

    def _write(self, rows: list[dict[str, str]]) -> None:
        if not self._writes:
            return
        lines = [",".join(_COLUMNS), *(",".join(row[name] for name in _COLUMNS) for row in rows)]
        write_text(self._path, "\n".join(lines) + "\n")


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a metrics.csv; none where there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))
