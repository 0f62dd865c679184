"""Signals that need no gradient, from one forward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from winnow.lm.batch import TargetBatch, concatenate, pieces
from winnow.lm.forward import Forward
from winnow.lm.hidden import LastHidden, nuclear_norms, pooled
from winnow.lm.layout import Batch, response_tokens, right_padded
from winnow.signals import Needs, Signals


def facts(needs: Needs, meta: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """What is known of the candidates before any model is run.

    Args:
        needs: names the facts.
        meta: facts by name.

    Returns:
        Those that are asked for.

    Raises:
        ValueError: one is not given.
    """
    missing = [name for name in needs.meta if name not in meta]
    if missing:
        raise ValueError(f"the selector needs {', '.join(missing)} of every candidate, which the stream does not give")
    return {name: list(meta[name]) for name in needs.meta}


def forward_signals(
    forward: Forward,
    pool: Batch,
    target: TargetBatch | None,
    needs: Needs,
    micro_batch: int | None = None,
) -> Signals:
    """Losses, pooled hidden states and nuclear norms of a pool.

    Args:
        forward: the model; call it under ``no_grad``.
        pool: the candidates.
        target: target examples; run only where ``needs.target_hidden``.
        needs: what to compute; nothing else is.
        micro_batch: examples that go through the model at a time; None for all.

    Returns:
        The signals asked for.

    Raises:
        ValueError: the target is needed and not given.
    """
    pool = right_padded(pool, "pool")
    tokens = response_tokens(pool)
    size, batch = len(tokens), pool
    found: dict[str, Any] = {}
    if needs.target_hidden:
        if target is None:
            raise ValueError("the selector compares with hidden states of the target: give it a target batch")
        found["target_share"] = target.share
        if micro_batch is None:
            batch = concatenate(pool, target.tokens)
    if micro_batch is not None:
        found |= _in_pieces(forward, pool, target, needs, micro_batch)
        return Signals(tokens=tokens, **found)
    if needs.states:
        with LastHidden(forward.model) as last:
            losses = forward.losses(batch)[:size]
        assert last.states is not None
        if needs.hidden is not None:
            states = pooled(last.states, batch["attention_mask"], needs.hidden)
            found["hidden"] = states[:size]
            if needs.target_hidden:
                found["target_hidden"] = states[size:]
        if needs.nuclear:
            found["nuclear"] = nuclear_norms(forward.model, last.states[:size, : pool["input_ids"].shape[1]], pool)
    else:
        losses = forward.laid_losses(batch)
    valid = (tokens > 0) & losses.isfinite()
    return Signals(valid=valid, tokens=tokens, losses=losses if needs.losses else None, **found)


def _in_pieces(
    forward: Forward, pool: Batch, target: TargetBatch | None, needs: Needs, micro_batch: int
) -> dict[str, Tensor]:
    def run(batch: Batch, wanted: Needs) -> list[Signals]:
        return [forward_signals(forward, piece, None, wanted) for _, piece in pieces(batch, micro_batch)]

    parts = run(pool, replace(needs, target_hidden=False))
    found = {"valid": torch.cat([part.valid for part in parts])}
    for name in ("losses", "hidden", "nuclear"):
        values = [value for part in parts if (value := getattr(part, name)) is not None]
        if values:
            found[name] = torch.cat(values)
    if needs.target_hidden:
        assert target is not None
        states = [part.hidden for part in run(target.tokens, Needs(hidden=needs.hidden))]
        found["target_hidden"] = torch.cat([state for state in states if state is not None])
    return found
