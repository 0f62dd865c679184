"""Signals that need no gradient, from one forward pass."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from winnow.batches import concatenate, target_shares
from winnow.hidden import LastHidden, nuclear_norms, pooled
from winnow.losses import Batch, example_losses
from winnow.signals import Needs, Signals


def forward_signals(
    model: nn.Module,
    pool: Batch,
    target: Batch | None,
    needs: Needs,
    target_weight: Float[Tensor, " target"] | None,
    tokens: Int[Tensor, " pool"],
    reduction: str = "mean",
) -> Signals:
    """Losses, pooled hidden states and nuclear norms of a pool.

    Args:
        model: a causal language model; call it under ``no_grad``.
        pool: the candidates.
        target: target examples; run only where ``needs.target_hidden``.
        needs: what to compute; nothing else is.
        target_weight: weight of each target example; equal weights when omitted.
        tokens: response tokens of each candidate.
        reduction: ``mean`` | ``sum`` over an example's response tokens.

    Returns:
        The signals asked for.

    Raises:
        ValueError: the target is needed and not given.
    """
    size, batch = len(tokens), pool
    found: dict[str, Any] = {}
    if needs.target_hidden:
        if target is None:
            raise ValueError("the selector compares with hidden states of the target: give it a target batch")
        batch = concatenate(pool, target)
        found["target_share"] = target_shares(target, target_weight)
    if needs.states:
        with LastHidden(model) as last:
            losses = example_losses(model, batch, reduction)[:size]
        assert last.states is not None
        if needs.hidden is not None:
            states = pooled(last.states, batch["attention_mask"], needs.hidden)
            found["hidden"] = states[:size]
            if needs.target_hidden:
                found["target_hidden"] = states[size:]
        if needs.nuclear:
            found["nuclear"] = nuclear_norms(model, last.states[:size, : pool["input_ids"].shape[1]], pool)
    else:
        losses = example_losses(model, batch, reduction)
    valid = (tokens > 0) & losses.isfinite()
    return Signals(valid=valid, tokens=tokens, losses=losses if needs.losses else None, **found)
