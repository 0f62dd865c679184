"""Signals that need no gradient, from one forward pass."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from winnow.lm.batch import concatenate, pieces, target_shares
from winnow.lm.hidden import LastHidden, nuclear_norms, pooled
from winnow.lm.layout import Batch, response_tokens, right_padded
from winnow.lm.losses import example_losses
from winnow.signals import Needs, Signals


def forward_signals(
    model: nn.Module,
    pool: Batch,
    target: Batch | None,
    needs: Needs,
    target_weight: Float[Tensor, " target"] | None,
    tokens: Int[Tensor, " pool"],
    reduction: str = "mean",
    micro_batch: int | None = None,
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
        micro_batch: examples that go through the model at a time; None for all.

    Returns:
        The signals asked for.

    Raises:
        ValueError: the target is needed and not given.
    """
    pool = right_padded(pool, "pool")
    size, batch = len(tokens), pool
    found: dict[str, Any] = {}
    if needs.target_hidden:
        if target is None:
            raise ValueError("the selector compares with hidden states of the target: give it a target batch")
        target = right_padded(target, "target")
        found["target_share"] = target_shares(target, target_weight)
        if micro_batch is None:
            batch = concatenate(pool, target)
    if micro_batch is not None:
        found |= _in_pieces(model, pool, target, needs, reduction, micro_batch)
        return Signals(tokens=tokens, **found)
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


def _in_pieces(
    model: nn.Module, pool: Batch, target: Batch | None, needs: Needs, reduction: str, micro_batch: int
) -> dict[str, Tensor]:
    def run(batch: Batch, wanted: Needs) -> list[Signals]:
        return [
            forward_signals(model, few, None, wanted, None, response_tokens(few), reduction)
            for _, few in pieces(batch, micro_batch)
        ]

    parts = run(pool, replace(needs, target_hidden=False))
    found = {"valid": torch.cat([part.valid for part in parts])}
    for name in ("losses", "hidden", "nuclear"):
        values = [value for part in parts if (value := getattr(part, name)) is not None]
        if values:
            found[name] = torch.cat(values)
    if needs.target_hidden:
        assert target is not None
        states = [part.hidden for part in run(target, Needs(hidden=needs.hidden))]
        found["target_hidden"] = torch.cat([state for state in states if state is not None])
    return found
