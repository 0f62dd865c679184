"""Signals of a forward pass whose rows several processes run."""

from __future__ import annotations

from typing import Any

from winnow.lm.batch import TargetBatch
from winnow.lm.forward import Forward
from winnow.lm.layout import Batch, response_tokens
from winnow.parallel.part import part_of, target_part
from winnow.parallel.ranks import Ranks
from winnow.scorer.forward import forward_signals
from winnow.signals import Needs, Signals

ROWS = ("valid", "losses", "hidden", "nuclear")


def gathered_signals(
    ranks: Ranks, forward: Forward, pool: Batch, target: TargetBatch | None, needs: Needs, micro_batch: int | None
) -> Signals:
    """Losses, pooled hidden states and nuclear norms of a pool, each of the process that ran the candidate.

    Args:
        ranks: the processes.
        forward: the model; call it under ``no_grad``.
        pool: all candidates, right-padded.
        target: all target examples.
        needs: what to compute; nothing else is.
        micro_batch: examples that go through the model at a time; None for all.

    Returns:
        The signals asked for, the same everywhere.
    """
    total, run = len(pool["labels"]), target if needs.target_hidden else None
    own = None if run is None else target_part(run, ranks)
    part = forward_signals(forward, part_of(pool, ranks), own, needs, micro_batch)
    found: dict[str, Any] = {name: getattr(part, name) for name in ROWS}
    found = {name: None if value is None else ranks.gather(value, total) for name, value in found.items()}
    if run is not None and part.target_hidden is not None:
        found["target_hidden"] = ranks.gather(part.target_hidden, len(run.share))
        found["target_share"] = run.share
    return Signals(tokens=response_tokens(pool), **found)
