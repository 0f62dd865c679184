"""Writes the run's own records: metrics.csv and the ledger, exact across a kill and a resume."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from winnow.records.history import History
from winnow.records.ledger import Ledger

log = logging.getLogger(__name__)


class Records(Callback):
    """Keeps ``metrics.csv`` and ``ledger.parquet`` in the run's folder.

    Rows reach the disk before the checkpoint of the same step, so a run that is killed and resumed
    ends with the rows of one that never stopped.

    Args:
        folder: the run's folder.
        every: write a metrics row every n pools.
        ledger: keep the ledger, a row per candidate and step.
    """

    def __init__(self, folder: str, every: int = 1, ledger: bool = True) -> None:
        if every < 1:
            raise ValueError(f"callbacks.records.every must be at least 1, got {every}")
        self.folder, self.every = Path(folder), every
        self.history = History(self.folder / "metrics.csv")
        self.ledger = Ledger(self.folder) if ledger else None

    def resume(self, run: Path, step: int) -> None:
        """Take over the rows of an earlier run up to a checkpoint.

        Args:
            run: the earlier run's folder.
            step: pools it had seen at the checkpoint; rows of later pools are left behind.
        """
        self.history.resume(run / "metrics.csv", step - 1)
        if self.ledger is None:
            return
        try:
            self.ledger.resume(run, step - 1)
        except FileNotFoundError:
            log.warning(
                "beside the checkpoint there is no ledger in %s (was it copied alone?): this run's records begin at "
                "pool %d; for those of before, resume from the whole folder",
                run,
                step,
            )

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the step's rows."""
        record = pl_module.last_step
        if record.step % self.every == 0:
            self.history.append(record.step, record.metrics)
        if self.ledger is not None:
            self.ledger.append(
                step=record.step,
                meta=record.meta,
                losses=record.losses,
                alignment=record.signals.alignment,
                selection=record.selection,
                task_alignment=record.signals.task_alignment,
                valid=record.signals.valid,
                gated=record.gated,
            )

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Write the target's NLL beside the counters it belongs to."""
        if trainer.sanity_checking:
            return
        watched = {name: float(v) for name, v in trainer.callback_metrics.items() if name.endswith("val_nll")}
        self.history.append(max(pl_module.budget.steps - 1, 0), {**watched, **pl_module.budget.metrics()})

    def on_save_checkpoint(self, trainer: lightning.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Bring all rows to disk before the checkpoint exists."""
        self.history.sync()
        if self.ledger is not None:
            self.ledger.flush()

    def close(self) -> None:
        """Merge the ledger; also after a failure, so that nothing recorded is lost."""
        if self.ledger is not None:
            self.ledger.close()
