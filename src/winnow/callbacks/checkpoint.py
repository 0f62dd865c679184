"""What a run resumes from, and checkpoints that are whole or absent."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

import lightning
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from winnow.lm.finite import NotFinite, check_state
from winnow.records.checkpoint import DIGEST, digest
from winnow.records.status import Terminated
from winnow.records.whole import replacing

log = logging.getLogger(__name__)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the final name and renames, with a digest, so that a kill or a bad disk is never resumed from."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Save a checkpoint atomically.

        Args:
            checkpoint: what Lightning wants saved.
            path: final path.
            storage_options: as in Lightning.
        """
        if "winnow" in checkpoint:
            checkpoint[DIGEST] = digest(checkpoint)
        with replacing(Path(path)) as temporary:
            super().save_checkpoint(checkpoint, temporary, storage_options)


class LastCheckpoint(Checkpoint):
    """Saves what ``ckpt_path=`` resumes from, every n pools and when training ends, however it ends, into one file.

    An error in the middle of a pool leaves the checkpoint that is there, where no whole state is at hand.

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
        self._owed, self._saved = False, 0

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save now, or after the measurement that follows."""
        if not pl_module.stop.due() and pl_module.budget.steps % self.every:
            return
        loop = trainer.fit_loop
        assert loop._data_fetcher is not None
        self._owed = trainer.enable_validation and loop.epoch_loop._should_check_val_fx(loop._data_fetcher)
        if not self._owed:
            self._save(trainer, pl_module)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Save the end, unless it is saved already."""
        if self._saved != pl_module.budget.steps:
            self._save(trainer, pl_module)

    def on_exception(self, trainer: lightning.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Save what was reached, where that is whole and good, and the disk is not what failed.

        Not in the middle of a measurement, which would not be made again.
        """
        done = trainer.fit_loop.epoch_loop.batch_progress.current.completed
        spoilt = isinstance(exception, OSError | NotFinite) or trainer.validating or not pl_module.resumable
        if spoilt or not done or self._saved == pl_module.budget.steps:
            return
        _rewind(trainer)
        try:
            if trainer.world_size > 1 and not isinstance(exception, Terminated | KeyboardInterrupt):
                # The others have not come here with this one, and may be gone: nobody is waited for.
                if pl_module.together.in_rows:
                    return
                trainer.strategy.save_checkpoint(trainer._checkpoint_connector.dump_checkpoint(), self.path)
                return
            self._save(trainer, pl_module)
        except Exception as second:  # the first error is the one to raise
            log.error("%s could not be written: %s", self.path, second)

    def _save(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        for optimizer in trainer.optimizers:  # what is beyond help does not take the place of what is good
            pl_module.together.sound(partial(check_state, pl_module, optimizer, pl_module.budget.steps))
        trainer.save_checkpoint(self.path)
        self._saved = pl_module.budget.steps

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Save what was put off."""
        if self._owed and not trainer.sanity_checking:
            self._owed = False
            self._save(trainer, pl_module)


def _rewind(trainer: lightning.Trainer) -> None:
    """Put Lightning's counters where they are at the end of a pool, which it resumes from exactly."""
    loop: Any = trainer.fit_loop.epoch_loop
    for counts in (loop.batch_progress.total, loop.batch_progress.current):
        counts.ready = counts.started = counts.processed = counts.completed
        counts.completed -= 1
    loop._batches_that_stepped -= 1
