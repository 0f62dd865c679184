"""What a run resumes from, and checkpoints that are whole or absent."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the final name and renames, so that a kill never leaves a broken checkpoint."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Save a checkpoint atomically.

        Args:
            checkpoint: what Lightning wants saved.
            path: final path.
            storage_options: as in Lightning.
        """
        temporary = f"{path}.tmp"
        super().save_checkpoint(checkpoint, temporary, storage_options)
        os.replace(temporary, path)


class LastCheckpoint(Checkpoint):
    """Saves what ``ckpt_path=`` resumes from, every n pools, into one file.

    Where the target is measured after the same pool, it saves after the measurement: Lightning does not
    measure again on resuming, so that a run killed in between would lose it.

    Args:
        dirpath: folder of ``last.ckpt``.
        every: pools between two saves.

    Raises:
        ValueError: ``every`` is less than one.
    """

    def __init__(self, dirpath: str, every: int = 50) -> None:
        if every < 1:
            raise ValueError(f"callbacks.last.every must be at least 1, got {every}")
        self.path, self.every = Path(dirpath) / "last.ckpt", every
        self._owed = False

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save now, or after the measurement that follows."""
        if pl_module.budget.steps % self.every:
            return
        loop = trainer.fit_loop
        assert loop._data_fetcher is not None
        self._owed = trainer.enable_validation and loop.epoch_loop._should_check_val_fx(loop._data_fetcher)
        if not self._owed:
            trainer.save_checkpoint(self.path)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Save what was put off."""
        if self._owed and not trainer.sanity_checking:
            self._owed = False
            trainer.save_checkpoint(self.path)
