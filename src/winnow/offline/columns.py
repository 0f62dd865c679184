"""A pass's scores as columns of a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from winnow.selectors.abilities import Ranking, RankingByTask
from winnow.selectors.base import by_task
from winnow.signals import Signals


def columns(
    found: Sequence[tuple[float, Signals]], selector: Any, names: Sequence[str], reduction: str
) -> dict[str, np.ndarray]:
    """Columns of the last checkpoint's signals, and the scores of all of them added up."""
    last = found[-1][1]
    valid = torch.stack([signals.valid for _, signals in found]).all(0)
    columns: dict[str, Tensor] = {"valid": valid, "tokens": last.tokens}
    assert last.losses is not None
    losses = last.losses.double()
    columns["loss"] = losses / last.tokens.clamp_min(1) if reduction == "sum" else losses
    for name, values in (
        ("reference_loss", last.reference),
        ("alignment", last.alignment),
        ("norm", last.norms),
        ("nuclear", last.nuclear),
    ):
        if values is not None:
            columns[name] = values.double()
    scores: Tensor | None = None
    if isinstance(selector, RankingByTask) and last.task_alignment is not None:
        by_tasks = torch.stack([rate * selector.task_scores(signals) for rate, signals in found]).sum(0)
        columns.update({f"score/{name}": row for name, row in zip(names, by_tasks, strict=True)})
        scores = by_task(by_tasks, selector.aggregate)
    elif isinstance(selector, Ranking):
        parts = [selector.scores(signals) for _, signals in found]
        known = [rate * part for (rate, _), part in zip(found, parts, strict=True) if part is not None]
        scores = torch.stack(known).sum(0) if len(known) == len(parts) else None
    if scores is not None:
        columns["score"] = scores
    gone = {
        name: torch.where(valid, column, torch.nan) for name, column in columns.items() if column.is_floating_point()
    }
    return {name: column.numpy() for name, column in {**columns, **gone}.items()}
