"""Token batches put together, and what share each target example has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from winnow.lm.layout import KEYS, WEIGHT, Batch, response_tokens, right_padded, weights_beside
from winnow.lm.losses import IGNORE


def concatenate(first: Batch, second: Batch) -> dict[str, Tensor]:
    """Two batches as one, padded on the right to the longer of the two.

    Args:
        first: a batch.
        second: another.

    Returns:
        ``input_ids``, ``attention_mask`` and ``labels`` of both, and ``row_weight`` where one of them has it.
    """
    length = max(first["input_ids"].shape[1], second["input_ids"].shape[1])
    fill = {"input_ids": 0, "attention_mask": 0, "labels": IGNORE}
    both = (first, second)
    joined = {
        key: torch.cat([F.pad(batch[key], (0, length - batch[key].shape[1]), value=value) for batch in both])
        for key, value in fill.items()
    }
    if WEIGHT in first or WEIGHT in second:
        like = first[WEIGHT] if WEIGHT in first else second[WEIGHT]
        joined[WEIGHT] = torch.cat([batch.get(WEIGHT, like.new_ones(len(batch["labels"]))) for batch in both])
    return joined


@dataclass(frozen=True)
class TargetBatch:
    """Examples of the target tasks, and how much each counts.

    Args:
        tokens: the examples.
        share: of each in the target loss, summing to one; zero for those without a response token.
        task: number of each example's task, from 0.
    """

    tokens: Batch
    share: Float[Tensor, " target"]
    task: Int[Tensor, " target"]

    @classmethod
    def of(
        cls,
        tokens: Batch,
        weight: Float[Tensor, " target"] | None = None,
        task: Int[Tensor, " target"] | None = None,
    ) -> TargetBatch:
        """Weigh a batch.

        Args:
            tokens: the examples, padded wherever.
            weight: weight of each, >= 0; equal weights when omitted.
            task: number of each one's task; one task when omitted.

        Returns:
            The batch with its shares.

        Raises:
            ValueError: the weights do not fit the batch, or leave nothing.
        """
        share = target_shares(tokens, weight)
        return cls(tokens, share, torch.zeros_like(share, dtype=torch.long) if task is None else task.to(share.device))


def target_shares(target: Batch, weight: Float[Tensor, " target"] | None) -> Float[Tensor, " target"]:
    """Shares of the target examples, those without a response token having none.

    Args:
        target: the target batch.
        weight: weight of each example, >= 0; equal weights when omitted.

    Returns:
        Shares in float64 that sum to one.

    Raises:
        ValueError: the weights do not fit the batch, or leave nothing.
    """
    present = response_tokens(target) > 0
    if weight is None:
        weight = torch.ones(len(present), device=present.device)
    if weight.shape != present.shape or not bool((weight >= 0).all()):
        raise ValueError(
            f"target_weight must be one weight >= 0 for each of the {len(present)} target examples, "
            f"got {weight.tolist()}"
        )
    weight = torch.where(present, weight, 0).double()
    if not bool(weight.sum() > 0):
        raise ValueError("no example of the target batch has a response token and a positive weight")
    return weight / weight.sum()


def pieces(batch: Batch, size: int | None) -> Iterator[tuple[slice, Batch]]:
    """A batch a few rows at a time, each piece right-padded to its longest.

    Args:
        batch: the examples, padded wherever.
        size: rows at a time; None for the whole batch as it is.

    Yields:
        Which rows, and the smaller batch.
    """
    total = len(batch["labels"])
    if size is None:
        yield slice(0, total), batch
        return
    batch = right_padded(batch)
    for start in range(0, total, size):
        rows = slice(start, min(start + size, total))
        length = max(1, int(batch["attention_mask"][rows].sum(1).max()))
        yield rows, {key: batch[key][rows, :length] for key in KEYS} | weights_beside(batch, rows)
