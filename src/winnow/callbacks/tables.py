"""What a run keeps, shown in Weights & Biases: tables of examples, histograms, composition, own counters as axes."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import WandbLogger

from winnow.records.shown import shown
from winnow.tracking import forgiving, is_lost

COLUMNS = ("step", "id", "source", "weight", "alignment", "loss", "prompt", "response")
KINDS = ("source", "group", "noise")
COUNTERS = (
    "budget/examples_trained",
    "budget/tokens_trained",
    "budget/examples_seen",
    "budget/flops",
    "budget/tokens_forwarded",
    "time/seconds",
)


class WandbTables(Callback):
    """Logs what was kept to a run's :class:`WandbLogger`; does nothing where there is none.

    Every ``every`` pools one row of its own with the counters and

    * ``kept/examples``: a table of the latest kept examples;
    * ``kept/weight``, ``kept/alignment``, ``pool/alignment``: histograms over the pools since the last row;
    * ``kept_share/<kind>/<name>``, ``pool_share/<kind>/<name>``: what all examples kept, and all that could
      be chosen, so far are made of, by source and by the hidden labels group and noise. Shares of a kind
      sum to one; "-" stands for no label.

    Curves are drawn against one of the suite's counters instead of Lightning's step; every row holds all of them.

    Args:
        every: pools between two rows; ``callbacks.tables.every``.
        rows: most examples in one table; ``callbacks.tables.rows``.
        clip: characters of prompt and response that are shown; ``callbacks.tables.clip``.
        x_axis: counter that curves are drawn against by default; ``callbacks.tables.x_axis``.

    Raises:
        ValueError: a number is less than one, or ``x_axis`` is not a counter.
    """

    def __init__(
        self, every: int = 25, rows: int = 64, clip: int = 400, x_axis: str = "budget/examples_trained"
    ) -> None:
        for name, value in {"every": every, "rows": rows, "clip": clip}.items():
            if value < 1:
                raise ValueError(f"callbacks.tables.{name} must be at least 1, got {value}")
        if x_axis not in COUNTERS:
            raise ValueError(f"callbacks.tables.x_axis is one of {', '.join(COUNTERS)}; got {x_axis!r}")
        self.every, self.clip, self.x_axis = every, clip, x_axis
        self.kept: Counter[str] = Counter()
        self.pool: Counter[str] = Counter()
        self._examples: deque[list[Any]] = deque(maxlen=rows)
        self._numbers: dict[str, list[float]] = {}
        self._defined: set[str] = set()

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Draw the target's curves against the suite's counter."""
        run = _run(trainer)
        if run is None:
            return
        self._defined = set()
        targets = getattr(getattr(trainer, "datamodule", None), "corpus", None)
        names = [target.name for target in targets.targets] if targets is not None else []
        with forgiving(trainer.logger):
            for counter in COUNTERS:
                run.define_metric(counter)
            self._define(run, ["target/val_nll", *(f"target/{name}/val_nll" for name in names)])

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take in the step, and log a row now and then."""
        run = _run(trainer)
        if run is None:
            return
        record = pl_module.last_step
        self._take(record)
        with forgiving(trainer.logger):
            # Lightning logs the step's metrics after this hook, so their axis is known before their first value.
            self._define(run, record.metrics)
            if (record.step + 1) % self.every == 0:
                self._log(run, record.metrics)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Log what came after the last row."""
        run = _run(trainer)
        if run is not None and self._examples:
            with forgiving(trainer.logger):
                self._log(run, pl_module.last_step.metrics)

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Put the counters into the row of the target's NLL, which Lightning completes."""
        run = _run(trainer)
        if run is not None and not trainer.sanity_checking:
            with forgiving(trainer.logger):
                run.log(pl_module.budget.metrics(), commit=False)

    def state_dict(self) -> dict[str, Any]:
        """The counts behind the shares."""
        return {"kept": dict(self.kept), "pool": dict(self.pool)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from saved counts."""
        self.kept, self.pool = Counter(state_dict["kept"]), Counter(state_dict["pool"])

    def _take(self, record: Any) -> None:
        meta, signals, selection = record.meta, record.signals, record.selection
        index, weight = selection.index.tolist(), selection.weight.tolist()
        alignment = None if signals.alignment is None else signals.alignment.detach().float().cpu().tolist()
        usable = signals.valid.tolist()
        for kind in KINDS:
            names = [shown(value) or "-" for value in meta[kind]]
            self.pool.update(f"{kind}/{name}" for name, valid in zip(names, usable, strict=True) if valid)
            self.kept.update(f"{kind}/{names[at]}" for at in index)
        self._collect("kept/weight", weight)
        if alignment is not None:
            self._collect("pool/alignment", alignment)
            self._collect("kept/alignment", [alignment[at] for at in index])
        for at, value in zip(index, weight, strict=True):
            # A table's column of numbers has to stay one: what was not computed is None, not NaN.
            self._examples.append([
                record.step,
                shown(meta["id"][at]),
                shown(meta["source"][at]),
                value,
                None if alignment is None else alignment[at],
                _number(record.losses[at]),
                _clipped(meta["prompt"][at], self.clip),
                _clipped(meta["response"][at], self.clip),
            ])

    def _collect(self, name: str, values: Iterable[float]) -> None:
        finite = [value for value in values if np.isfinite(value)]
        self._numbers.setdefault(name, []).extend(finite)

    def _log(self, run: Any, metrics: dict[str, float]) -> None:
        import wandb

        row: dict[str, Any] = {name: metrics[name] for name in COUNTERS}
        row["kept/examples"] = wandb.Table(columns=list(COLUMNS), data=list(self._examples))
        row.update({name: wandb.Histogram(values) for name, values in self._numbers.items() if values})
        row.update(_shares("kept_share", self.kept))
        row.update(_shares("pool_share", self.pool))
        self._define(run, row)
        run.log(row)
        self._examples.clear()
        self._numbers = {}

    def _define(self, run: Any, names: Iterable[str]) -> None:
        for name in names:
            if name not in self._defined and name not in COUNTERS and name != "kept/examples":
                # By exact name: Lightning has defined "*", and which of two patterns wins is not documented.
                run.define_metric(name, step_metric=self.x_axis)
                self._defined.add(name)


def _run(trainer: lightning.Trainer) -> Any:
    usable = isinstance(trainer.logger, WandbLogger) and not is_lost(trainer.logger)
    return trainer.logger.experiment if usable else None  # type: ignore[union-attr]


def _number(value: torch.Tensor) -> float | None:
    number = float(value)
    return number if np.isfinite(number) else None


def _clipped(text: str, length: int) -> str:
    text = shown(text, keep="\n\t")  # `wandb leet` shows tables in a terminal
    return text if len(text) <= length else text[: length - 1] + "…"


def _shares(name: str, counts: Counter[str]) -> dict[str, float]:
    totals: Counter[str] = Counter()
    for key, count in counts.items():
        totals[key.split("/", 1)[0]] += count
    return {f"{name}/{key}": count / totals[key.split("/", 1)[0]] for key, count in counts.items()}
