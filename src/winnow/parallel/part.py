"""A process's part of a batch, filled up so that all parts are of one size."""

from __future__ import annotations

import torch
from torch import nn

from winnow.evaluation.turns import Turns
from winnow.lm.batch import TargetBatch
from winnow.lm.layout import KEYS, Batch, weights_beside
from winnow.lm.losses import IGNORE
from winnow.parallel.base import in_shards
from winnow.parallel.ranks import Ranks


def part_of(batch: Batch, ranks: Ranks, only_blank: bool = False) -> Batch:
    """A process's rows of a batch.

    Args:
        batch: the whole, right-padded.
        ranks: the processes.
        only_blank: one row without a response token, for a process that has to run something.

    Returns:
        ``ranks.share`` rows; those that are missing are copies of the first one without a response token.
    """
    rows = slice(0, 0) if only_blank else ranks.rows(len(batch["labels"]))
    own = {key: batch[key][rows] for key in KEYS} | weights_beside(batch, rows)
    missing = 1 if only_blank else ranks.share(len(batch["labels"])) - len(own["labels"])
    if missing:
        blank = {key: batch[key][:1].expand(missing, -1) for key in KEYS}
        blank["labels"] = torch.full_like(blank["labels"], IGNORE)
        blank |= {key: value[:1].expand(missing) for key, value in weights_beside(batch).items()}
        own = {key: torch.cat([own[key], blank[key]]) for key in own}
    length = max(1, int(own["attention_mask"].sum(1).max()))
    return {key: value[:, :length] if key in KEYS else value for key, value in own.items()}


def target_part(target: TargetBatch, ranks: Ranks) -> TargetBatch:
    """A process's examples of the target, with their shares of the whole.

    Args:
        target: the whole.
        ranks: the processes.

    Returns:
        ``ranks.share`` examples; those that are missing have no share.
    """
    total = len(target.share)
    rows, missing = ranks.rows(total), ranks.share(total)
    missing -= rows.stop - rows.start
    share = torch.cat([target.share[rows], target.share.new_zeros(missing)])
    task = torch.cat([target.task[rows], target.task.new_zeros(missing)])
    return TargetBatch(part_of(target.tokens, ranks), share, task)


def turns_of(ranks: Ranks | None, model: nn.Module) -> Turns:
    """Who runs which batch of an evaluation.

    Args:
        ranks: the processes; None for one.
        model: whole in each of them, or in shards.

    Returns:
        Turns that begin with the first process.
    """
    return Turns() if ranks is None else Turns(ranks.rank, ranks.size, ranks.totals, in_shards(model))
