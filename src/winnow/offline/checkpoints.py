"""Checkpoints of a warm-up run: parameters and optimizer states to score with, learning rates, and what they cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from winnow.records.checkpoint import read_checkpoint
from winnow.records.preparation import Cost


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint to score with.

    Args:
        path: of the file.
        state: what is in it.
        rate: its weight: the mean learning rate of the steps since the checkpoint before it.
    """

    path: Path
    state: dict[str, Any]
    rate: float

    @property
    def budget(self) -> dict[str, Any]:
        """Counters of the run when it was saved."""
        budget: dict[str, Any] = self.state["winnow"]["budget"]
        return budget

    def load(self, module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Put parameters and optimizer state in place.

        Args:
            module: the run's LightningModule, with the same model.
            optimizer: of the same kind and parameters.

        Raises:
            ValueError: the checkpoint belongs to another model or optimizer.
        """
        trained = {name for name, held in module.named_parameters() if held.requires_grad}
        given = self.state["state_dict"]
        lost = sorted(trained - set(given))
        if lost:
            raise ValueError(
                f"ckpt_path={self.path} has no {len(lost)} of the {len(trained)} trained parameters ({lost[0]}): give "
                "the model= and model/lora= that it was trained with"
            )
        try:
            module.load_state_dict(given, strict=False)
            saved = self.state["optimizer_states"][0]
            strange = set(saved["param_groups"][0]) ^ set(optimizer.param_groups[0])
            if strange - {"params", "initial_lr"}:  # torch would take another optimizer's state without a word
                raise ValueError(f"its optimizer differs in {', '.join(sorted(strange))}")
            optimizer.load_state_dict(saved)
        except (RuntimeError, ValueError, KeyError) as error:
            first = str(error).splitlines()[-1].strip()
            raise ValueError(
                f"ckpt_path={self.path} is of another model or optimizer: give the model= and optimizer= it was "
                f"trained with ({first})"
            ) from error

    def facts(self) -> dict[str, Any]:
        """What the records keep of it.

        Returns:
            Its path, pools seen, and learning rate.
        """
        return {"path": str(self.path), "pools": self.budget["steps"], "learning_rate": self.rate}


def read_checkpoints(paths: str | Sequence[str] | None) -> list[Checkpoint]:
    """Read checkpoints and their learning rates.

    Args:
        paths: one or several; ``ckpt_path``.

    Returns:
        The checkpoints by run, and by pools seen within each.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file is no checkpoint with an optimizer state, or is given twice.
    """
    listed = [paths] if isinstance(paths, str) else list(paths or [])
    read: list[tuple[Path, int, dict[str, Any]]] = []
    for name in listed:
        state = read_checkpoint(name)
        read.append((Path(name).expanduser().resolve(), int(state["winnow"]["budget"]["steps"]), state))
    if len({path for path, _, _ in read}) < len(read):
        raise ValueError("ckpt_path names a checkpoint twice")
    found = []
    before: dict[Path, int] = {}
    for path, steps, state in sorted(read, key=lambda one: (str(one[0].parent), one[1])):
        rate = _rate(path.parent.parent / "metrics.csv", before.get(path.parent, 0), steps)
        rate = float(state["optimizer_states"][0]["param_groups"][0]["lr"]) if rate is None else rate
        before[path.parent] = steps
        found.append(Checkpoint(path, state, rate))
    if found and not sum(one.rate for one in found) > 0:
        raise ValueError("the checkpoints' learning rates are all zero, and they weigh the scores")
    return found


def _rate(metrics: Path, start: int, stop: int) -> float | None:
    """Mean learning rate of the pools from start to stop, of a run's metrics.csv; None where it is not recorded."""
    if not metrics.is_file():
        return None
    rows = pd.read_csv(metrics)
    if "optimizer/lr" not in rows:
        return None
    rates = rows["optimizer/lr"][(rows["step"] >= start) & (rows["step"] < stop)].dropna()
    return float(rates.mean()) if len(rates) else None


def warm_up(checkpoints: Sequence[Checkpoint]) -> Iterator[Cost]:
    """What the runs behind some checkpoints took until the last of them.

    Args:
        checkpoints: from :func:`read_checkpoints`.

    Yields:
        A cost per run.
    """
    last = {one.path.parent: one for one in checkpoints}
    for one in last.values():
        budget = one.budget
        yield Cost("warm-up training", budget["examples_trained"], budget["tokens_trained"], budget["seconds"])
