"""Per-example losses of a causal language model."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from winnow.lm.layout import Batch, positions, response_mask, response_tokens, right_padded, take
from winnow.lm.nll import IGNORE, token_nll

__all__ = [
    "IGNORE",
    "Batch",
    "example_losses",
    "forward_parameters",
    "positions",
    "response_mask",
    "response_tokens",
    "take",
]


def forward_parameters(model: nn.Module) -> set[str]:
    """Names that the model's own forward accepts, seen through peft's and torch.compile's wrappers.

    Args:
        model: a causal language model, possibly wrapped.

    Returns:
        The names of its explicit arguments.
    """
    inner: Any = getattr(model, "_orig_mod", model)
    if hasattr(inner, "get_base_model"):
        inner = inner.get_base_model()
    return set(inspect.signature(inner.forward).parameters)


def example_losses(model: nn.Module, batch: Batch, reduction: str = "mean") -> Float[Tensor, " batch"]:
    """Negative log-likelihood of each example's response tokens.

    Logits are computed at the columns where some example has a label (if the model takes
    ``logits_to_keep``), and are raised to float32 only where there is one and a block at a time.

    Args:
        model: a causal language model that returns an object with ``logits``.
        batch: ``input_ids``, ``attention_mask`` and ``labels``, padded wherever; the shift to the next token is made
            here.
        reduction: ``mean`` over the response tokens of the example, or their ``sum``; in nats.

    Returns:
        One loss per example; NaN for a row without response tokens, whose gradient is exactly zero.

    Raises:
        ValueError: the reduction is neither ``mean`` nor ``sum``, or the batch is not one.
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f"loss reduction must be 'mean' or 'sum' (scoring.reduction), got {reduction!r}")
    batch = right_padded(batch)
    mask = response_mask(batch["labels"])
    accepted = forward_parameters(model)
    inputs: dict[str, Any] = {key: batch[key] for key in ("input_ids", "attention_mask")}
    if "position_ids" in accepted:
        # One row of positions per example: a learned position table then has per-example gradients.
        inputs["position_ids"] = positions(batch["attention_mask"])
    if "use_cache" in accepted:
        inputs["use_cache"] = False
    columns = mask.any(0).nonzero().squeeze(1)
    if len(columns) == 0:
        columns = columns.new_zeros(1)
    if "logits_to_keep" in accepted:
        logits = model(**inputs, logits_to_keep=columns).logits
    else:
        logits = model(**inputs).logits[:, columns]
    following = F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORE)  # of a batch of one column, too
    sums = token_nll(logits, following[:, columns]).sum(1)
    count = mask.sum(1)
    losses = sums / count.clamp_min(1) if reduction == "mean" else sums
    return torch.where(count > 0, losses, torch.nan)
