"""The progress bar: losses, what was kept, and what selecting costs."""

from __future__ import annotations

import logging
import sys
from typing import Any

import lightning
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

log = logging.getLogger(__name__)

UNBOUNDED_EVERY = 100  # pools between two lines of a run whose end is not known


class Progress(TQDMProgressBar):
    """One bar for training in a terminal; a line now and then where the output is no terminal.

    Shown: ``loss`` of the kept examples, ``target`` batch loss, ``val`` target NLL when last measured,
    ``kept``/pool, ``ess`` (Kish's effective sample size of the weights), ``tok/s`` (response tokens of
    the pool over the seconds of the step), ``selecting`` (seconds so far, scoring included).

    Args:
        refresh_rate: pools between two drawings of the bar; ``callbacks.progress.refresh_rate``.
        lines: how many lines a run of known length prints where the output is no terminal;
            ``callbacks.progress.lines``. One per 100 pools where the length is not known.

    Raises:
        ValueError: a number is less than one.
    """

    BAR_FORMAT = "{l_bar}{bar:16}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"

    def __init__(self, refresh_rate: int = 1, lines: int = 10) -> None:
        for name, value in {"refresh_rate": refresh_rate, "lines": lines}.items():
            if value < 1:
                raise ValueError(f"callbacks.progress.{name} must be at least 1, got {value}")
        super().__init__(refresh_rate=refresh_rate)
        self.lines = lines
        self.terminal = sys.stdout is not None and sys.stdout.isatty()
        self._printed = 0

    @property
    def is_disabled(self) -> bool:
        """Whether no bar is drawn: switched off, or the output is no terminal."""
        return super().is_disabled or not self.terminal

    def get_metrics(
        self, trainer: lightning.Trainer, pl_module: Any
    ) -> dict[str, int | str | float | dict[str, float]]:
        """What stands beside the bar.

        Args:
            trainer: whose last measurement of the target is shown.
            pl_module: whose last step is shown.

        Returns:
            Texts by short name; empty before the first step.
        """
        record = pl_module.last_step
        if record is None:
            return {}
        metrics = record.metrics
        shown: dict[str, int | str | float | dict[str, float]] = {"loss": f"{metrics['train/loss']:.3f}"}
        if "target/loss" in metrics:
            shown["target"] = f"{metrics['target/loss']:.3f}"
        measured = trainer.callback_metrics.get("target/val_nll")
        if measured is not None:
            shown["val"] = f"{float(measured):.3f}"
        shown["kept"] = f"{int(metrics['select/kept'])}/{len(record.signals)}"
        shown["ess"] = f"{metrics['select/effective_size']:.1f}"
        shown["tok/s"] = f"{metrics['time/tokens_per_second']:.0f}"
        shown["selecting"] = f"{metrics['time/selecting']:.0f}s"
        return shown

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draw the bar, or print a line when one is due."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self.terminal or super().is_disabled:
            return
        done, total, unit = self._position(trainer, pl_module)
        every = max(1, round(total / self.lines)) if total else UNBOUNDED_EVERY
        if done != self._printed and done and (done // every > self._printed // every or done == total):
            self._printed = done
            texts = [f"{name} {text}" for name, text in self.get_metrics(trainer, pl_module).items()]
            log.info("%s %d%s: %s", unit, done, f" of {total}" if total else "", ", ".join(texts))

    def init_validation_tqdm(self) -> Tqdm:
        """No second bar: measuring the target takes moments, and its result stands beside the first one.

        Returns:
            A bar that is never drawn.
        """
        return Tqdm(disable=True)

    def _position(self, trainer: lightning.Trainer, pl_module: Any) -> tuple[int, int | None, str]:
        """How far the run is, how far it goes if that is known, and in what unit."""
        if pl_module.limits.any:
            return min(int(100 * pl_module.limits.share(pl_module.budget)), 100), 100, "percent of the budget"
        if trainer.max_steps > 0:
            return pl_module.budget.updates, trainer.max_steps, "update"
        pools = self.total_train_batches * (trainer.max_epochs or 0)
        return pl_module.budget.steps, int(pools) if 0 < pools < float("inf") else None, "pool"
