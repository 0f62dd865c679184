"""Signals of a whole stream against one target gradient, so that candidates of different pools can be compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from winnow.gradients.weighted_sum import weighted_sum
from winnow.lm.batch import TargetBatch, pieces
from winnow.lm.forward import Forward
from winnow.lm.layout import Batch, take
from winnow.lm.quiet import quiet
from winnow.products.count_sketch import CountSketch
from winnow.scorer import Scorer, TargetNotFinite
from winnow.signals import Needs, Signals

Pools = Callable[[], Iterable[tuple[Batch, Mapping[str, Sequence[str]]]]]
"""Gives the stream's pools from its beginning at every call, each a token batch and its facts."""


def stream_needs(needs: Needs) -> Needs:
    """What ranking a whole stream needs of what choosing from a pool does.

    Args:
        needs: of a selector.

    Returns:
        The same without what stands between the candidates of one pool (gram, curvature, sketches); the norms
        that the Gram matrix would have given are asked for by themselves. Losses are always asked for.
    """
    norms = needs.gram if needs.norms is None else needs.norms
    return replace(needs, losses=True, gram=None, norms=norms, curvature=False, sketch=None)


def score_stream(
    scorer: Scorer,
    pools: Pools,
    needs: Needs,
    target: TargetBatch | None = None,
    *,
    projection: int | None = None,
    projection_seed: int = 0,
    micro_batch: int = 16,
) -> Signals:
    """Score every candidate of a stream with the model and optimizer as they are.

    The target's gradient, or its hidden states, are taken once, of all target examples given.

    Args:
        scorer: built with ``every=None`` and without ``target_ema``.
        pools: the stream.
        needs: what to compute, see :func:`stream_needs`.
        target: target examples; None where ``needs.target`` is false.
        projection: take alignments and norms from random projections of this size (CountSketch), a pass over the
            stream per task; None for exact ones.
        projection_seed: of the projections.
        micro_batch: target examples that go through the model at a time.

    Returns:
        Signals of the whole stream as if it were one pool, on the CPU.

    Raises:
        ValueError: a target is needed and not given, or the projection has no norm to go with ``needs``.
        TargetNotFinite: the target's loss or gradient is not finite.
    """
    if needs.target and target is None:
        raise ValueError("the selector needs a target task, and data.corpus has none")
    more: dict[str, Any] = {}
    gradients: list[dict[str, Tensor]] = []
    if needs.alignment is not None:
        assert target is not None
        gradients = hold_target(scorer, target, micro_batch, by_task=needs.per_task)
    if needs.target_hidden:
        assert target is not None
        more["target_hidden"] = torch.cat([
            _given(scorer(piece, None, Needs(hidden=needs.hidden)).hidden)
            for _, piece in pieces(target.tokens, micro_batch)
        ])
        more["target_share"] = target.share.cpu()
    own = replace(needs, target_hidden=False)
    if projection is None:
        return replace(Signals.joined([scorer(pool, None, own, meta=meta).cpu() for pool, meta in pools()]), **more)
    return _projected(scorer, pools, own, gradients, projection, projection_seed)


def hold_target(
    scorer: Scorer,
    target: TargetBatch,
    micro_batch: int,
    by_task: bool = False,
) -> list[dict[str, Tensor]]:
    """Compute the target gradient in pieces, and have the scorer use it from now on.

    Args:
        scorer: built with ``every=None``.
        target: target examples, of any number.
        micro_batch: examples that go through the model at a time.
        by_task: keep the tasks' own gradients too.

    Returns:
        The mean gradient of each task, by parameter.

    Raises:
        TargetNotFinite: a loss or gradient is not finite.
    """
    share, forward = target.share, Forward(scorer.model, scorer.reduction)
    means: list[dict[str, Tensor]] = []
    held: dict[str, Tensor] = {}
    for number in range(int(target.task.max()) + 1):
        rows = ((target.task == number) & (share > 0)).nonzero().squeeze(1)
        portion = float(share[rows].sum())
        own = share[rows] / max(portion, torch.finfo(share.dtype).tiny)
        with quiet(scorer.model):
            losses, mean = weighted_sum(forward, scorer.parameters, take(target.tokens, rows), micro_batch, own)
        if not bool(losses.isfinite().all()) or not all(bool(part.isfinite().all()) for part in mean.values()):
            raise TargetNotFinite("the loss or the gradient of the target examples is not finite")
        means.append(mean)
        for name, gradient in mean.items():
            held[name] = held[name] + portion * gradient if name in held else portion * gradient
    scorer.target.hold(held, means if by_task else ())
    return means


def _projected(
    scorer: Scorer, pools: Pools, needs: Needs, tasks: list[dict[str, Tensor]], size: int, seed: int
) -> Signals:
    """Alignments and norms by task from CountSketches of candidates and target, as LESS takes them."""
    if not needs.per_task or needs.alignment is None or 2 * needs.alignment != (needs.norms or 0):
        raise ValueError(
            f"projection={size} is of selectors that compare directions with every task's raw gradient, as "
            "selector=less; set projection=null"
        )
    power = needs.norms or 0
    sketched = Needs(losses=True, alignment=needs.alignment, gram=power, sketch=size, sketch_seed=seed, meta=needs.meta)
    found: list[Signals] = []
    lengths: list[Tensor] = []
    for gradients in tasks:
        scorer.target.hold(gradients)
        parts = []
        for pool, meta in pools():
            signals = scorer(pool, None, sketched, meta=meta)
            norms = _given(signals.gram).diagonal().clamp_min(0).sqrt()
            parts.append(replace(signals, gram=None, norms=norms).cpu())
        found.append(Signals.joined(parts))
        lengths.append(_sketch(gradients, size, seed).norm())
    return replace(
        found[0],
        alignment=None,
        task_alignment=torch.stack([_given(one.alignment) for one in found]),
        task_norms=torch.stack(lengths).cpu(),
    )


def _sketch(gradients: Mapping[str, Tensor], size: int, seed: int) -> Tensor:
    """The CountSketch of one gradient, with the candidates' own hash."""
    sketch = CountSketch(size, seed)
    first = next(iter(gradients.values()))
    found = torch.zeros(1, size, dtype=first.dtype, device=first.device)
    for name, gradient in gradients.items():
        sketch.add(found, name, torch.arange(gradient.numel(), device=first.device), gradient.reshape(1, -1))
    return found[0]


def _given(value: Tensor | None) -> Tensor:
    assert value is not None
    return value
