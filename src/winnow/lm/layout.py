"""Where the tokens of a batch lie: checked at the door, and moved to the front of every row."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from winnow.lm.nll import IGNORE

KEYS = ("input_ids", "attention_mask", "labels")
WEIGHT = "row_weight"
"""Key that a batch may have beside these: what each example's loss is multiplied by, [batch], >= 0; else one."""


def positions(
    attention_mask: Int[Tensor, "batch tokens"],
) -> Int[Tensor, "batch tokens"]:
    """Position of every token within its example, wherever the padding is.

    Args:
        attention_mask: 1 for tokens, 0 for padding.

    Returns:
        Positions from 0; those of padding are arbitrary but in range.
    """
    return (attention_mask.long().cumsum(1) - 1).clamp_min(0)


def right_padded(batch: Mapping[str, Tensor], name: str = "batch") -> Mapping[str, Tensor]:
    """A batch with the tokens of every row first and its padding behind them, in the same order.

    A model reads it as it reads each example alone: no token is predicted from padding, and models that take no
    ``position_ids`` count right.

    Args:
        batch: ``input_ids``, ``attention_mask`` and ``labels``, with padding on the left, on the right, on both sides
            or between tokens; ``position_ids``, if given, must be those the mask says. ``row_weight`` goes with it.
        name: what to call the batch in messages.

    Returns:
        The batch itself where nothing has to move; else the three tensors, as wide as the longest row.

    Raises:
        ValueError: a key is missing, shapes differ, there is no row, the mask is not of zeros and ones, a label
            stands on padding, or ``position_ids`` count otherwise than the mask.
    """
    _check_shapes(batch, name)
    mask, labelled = batch["attention_mask"] != 0, batch["labels"] != IGNORE
    behind = mask[:, 1:] & ~mask[:, :-1]
    odd = (batch["attention_mask"] > 1) | (batch["attention_mask"] < 0) | (labelled & ~mask)
    odd = odd.any() if "position_ids" not in batch else odd.any() | _miscounted(batch, mask)
    if WEIGHT in batch:
        odd = odd | ~((batch[WEIGHT] >= 0) & batch[WEIGHT].isfinite()).all()
    apart = bool(behind.any() | odd)  # one wait for a GPU in the usual case
    if apart and bool(odd):
        raise ValueError(_complaint(batch, mask, labelled, name))
    if batch["attention_mask"].dtype == torch.bool:
        batch = {**batch, "attention_mask": mask.long()}
    if not apart:
        return batch
    order = (~mask).long().argsort(dim=1, stable=True)[:, : max(1, int(mask.sum(1).max()))]
    return {key: batch[key].gather(1, order) for key in KEYS} | weights_beside(batch)


def take(batch: Mapping[str, Tensor], index: Int[Tensor, " kept"]) -> dict[str, Tensor]:
    """Rows of a batch, right-padded to the longest of them.

    Args:
        batch: ``input_ids``, ``attention_mask`` and ``labels``, padded wherever.
        index: rows to take.

    Returns:
        The smaller batch.
    """
    batch = right_padded(batch)
    rows = {key: batch[key][index] for key in KEYS}
    length = int(rows["attention_mask"].sum(1).max()) if len(index) else 0
    return {key: value[:, : max(length, 1)] for key, value in rows.items()} | weights_beside(batch, index)


def weights_beside(batch: Mapping[str, Tensor], rows: Tensor | slice = slice(None)) -> dict[str, Tensor]:
    """The weights of some rows, for another batch of them.

    Args:
        batch: a batch.
        rows: which of its rows.

    Returns:
        ``row_weight``; nothing where the batch has none.
    """
    return {WEIGHT: batch[WEIGHT][rows]} if WEIGHT in batch else {}


def weighed(losses: Float[Tensor, " batch"], batch: Mapping[str, Tensor]) -> Float[Tensor, " batch"]:
    """Losses as gradients are taken of them: each times its row's weight.

    Args:
        losses: one per example.
        batch: the examples.

    Returns:
        The losses themselves where the batch has no weights.
    """
    return losses * batch[WEIGHT].to(losses) if WEIGHT in batch else losses


def _check_shapes(batch: Mapping[str, Tensor], name: str) -> None:
    missing = [key for key in KEYS if key not in batch]
    if missing:
        raise ValueError(f"the {name} has no {' and no '.join(missing)}: give {', '.join(KEYS)}, each [batch, tokens]")
    for key in KEYS:
        value = batch[key]
        if not isinstance(value, Tensor) or value.ndim != 2 or value.is_floating_point():
            got = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{key} of the {name} must be a tensor of integers [batch, tokens], got {got}")
    shapes = {key: list(batch[key].shape) for key in KEYS}
    if len({tuple(shape) for shape in shapes.values()}) > 1:
        raise ValueError(
            f"the {name}'s tensors differ in shape: {shapes}; labels are as long as input_ids, not shifted"
        )
    if 0 in shapes["input_ids"]:
        raise ValueError(f"the {name} is empty: input_ids is {shapes['input_ids']}")
    weight = batch.get(WEIGHT)
    if weight is not None and (weight.shape != (shapes["labels"][0],) or not weight.is_floating_point()):
        raise ValueError(f"{WEIGHT} of the {name} must be a number for each of its {shapes['labels'][0]} rows")


def _miscounted(batch: Mapping[str, Tensor], mask: Tensor) -> Tensor:
    given = batch["position_ids"]
    if given.shape not in (mask.shape, mask[:1].shape):
        return torch.ones((), dtype=torch.bool, device=mask.device)
    return (mask & (given != positions(batch["attention_mask"]))).any()


def _complaint(batch: Mapping[str, Tensor], mask: Tensor, labelled: Tensor, name: str) -> str:
    hidden = (labelled & ~mask).any(1).nonzero().squeeze(1).tolist()
    if hidden:
        return (
            f"{len(hidden)} rows of the {name} have labels where attention_mask is 0 (row {hidden[0]} first): set "
            f"labels to {IGNORE} there, or attention_mask to 1"
        )
    if WEIGHT in batch and not bool(((batch[WEIGHT] >= 0) & batch[WEIGHT].isfinite()).all()):
        return f"{WEIGHT} of the {name} must be finite numbers of 0 or more, got {batch[WEIGHT].tolist()[:5]}"
    mask_values = batch["attention_mask"].unique().tolist()
    if not set(mask_values) <= {0, 1}:
        return f"attention_mask of the {name} must be of zeros and ones, got {mask_values[:5]}"
    return (
        f"position_ids of the {name} count otherwise than its attention_mask: a row is one example, its tokens at "
        "0, 1, 2, ...; leave position_ids out, and give packed examples a row each"
    )


Batch = Mapping[str, Tensor]
"""``input_ids``, ``attention_mask``, ``labels``: each Int[batch tokens]; labels are -100 where there is no loss.
``row_weight``, where there is one, is Float[batch]."""


def response_mask(
    labels: Int[Tensor, "batch tokens"],
) -> Bool[Tensor, "batch positions"]:
    """Positions whose next token is a response token.

    Args:
        labels: token ids, -100 where no loss is wanted; not shifted.

    Returns:
        One column fewer than ``labels``: entry t says whether position t predicts a response token.
    """
    return labels[:, 1:] != IGNORE


def response_tokens(batch: Batch) -> Int[Tensor, " batch"]:
    """How many response tokens the loss of each example covers: a row's first token is predicted from nothing.

    Args:
        batch: the examples, padded wherever.

    Returns:
        Counts; 0 for a row without any.
    """
    return response_mask(right_padded(batch)["labels"]).sum(1)
