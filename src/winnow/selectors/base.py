"""What a selector is, and the few steps all of them share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from winnow.choice.filters import top
from winnow.selection import Selection
from winnow.signals import Needs, Signals


@runtime_checkable
class Selector(Protocol):
    """Turns the signals of one pool into a selection.

    A selector is a small object without a model: it says what it needs, is given exactly that, and draws from
    no random generator but the one it is given. What else it may be able to do is in
    :mod:`winnow.selectors.abilities`.
    """

    @property
    def needs(self) -> Needs:
        """What the scorer has to compute."""

    def __call__(self, signals: Signals, generator: torch.Generator | None = None) -> Selection:
        """Choose from one pool.

        Args:
            signals: what ``needs`` asked for.
            generator: on the CPU; the only source of randomness.
        """


def check_filter_size(filter_size: int, pool_size: int | None = None) -> None:
    """Refuse a number of kept candidates that makes no sense.

    Args:
        filter_size: how many candidates to keep, k.
        pool_size: candidates in a pool, if that is known.

    Raises:
        ValueError: it is no whole number, below one, or more than a pool has.
    """
    if not isinstance(filter_size, int) or filter_size < 1:
        raise ValueError(f"filter_size must be a whole number, at least 1 (selector.filter_size), got {filter_size!r}")
    if pool_size is not None and filter_size > pool_size:
        raise ValueError(
            f"selector.filter_size={filter_size} is more than the pool's {pool_size} candidates: "
            f"lower selector.filter_size or raise data.pool_size to at least {filter_size}"
        )


AGGREGATES = ("max", "mean")


def check_aggregate(aggregate: str) -> None:
    """Refuse an unknown way of making one score of the tasks'.

    Args:
        aggregate: ``selector.aggregate``.

    Raises:
        ValueError: it is neither ``max`` nor ``mean``.
    """
    if aggregate not in AGGREGATES:
        raise ValueError(f"selector.aggregate must be one of {', '.join(AGGREGATES)}; got {aggregate!r}")


def by_task(scores: Float[Tensor, "tasks pool"], aggregate: str) -> Float[Tensor, " pool"]:
    """One score of those for every task.

    Args:
        scores: a row per target task.
        aggregate: ``max`` | ``mean``.

    Returns:
        A score per candidate.
    """
    return scores.max(0).values if aggregate == "max" else scores.mean(0)


def candidates(signals: Signals, filter_size: int, *scores: Float[Tensor, " pool"]) -> Int[Tensor, " usable"]:
    """Positions that may be chosen: valid, and with finite scores.

    Args:
        signals: the pool's signals.
        filter_size: how many candidates to keep; 0 for no such number.
        scores: what the choice will be made by.

    Returns:
        Increasing positions, on the CPU. There may be fewer than ``filter_size`` of them.

    Raises:
        ValueError: more are to be kept than the pool has.
    """
    if filter_size:
        check_filter_size(filter_size, len(signals))
    usable = signals.valid
    for score in scores:
        usable = usable & score.isfinite()
    return usable.nonzero().squeeze(1).cpu()


def coherent(gram: Float[Tensor, "pool pool"], usable: Int[Tensor, " usable"]) -> Int[Tensor, " left"]:
    """Of some positions those whose inner products with one another are finite.

    Args:
        gram: K of the whole pool.
        usable: positions.

    Returns:
        The positions left. One bad candidate spoils a column of K and must not take the others with it.
    """
    usable = usable[gram.diagonal()[usable].isfinite()]
    while True:
        bad = ~gram[usable][:, usable].isfinite()
        if not bool(bad.any()):
            return usable
        worst = bad.sum(1).argmax()
        usable = torch.cat([usable[:worst], usable[worst + 1 :]])


def given(value: Tensor | None, name: str) -> Tensor:
    """A signal that was asked for, on the CPU in float64: choosing is small, exact work.

    Args:
        value: the signal.
        name: its name in :class:`winnow.signals.Signals`.

    Returns:
        The tensor.

    Raises:
        ValueError: it was not computed.
    """
    if value is None:
        raise ValueError(f"the selector needs signals.{name}, which was not computed: score with its `needs`")
    return value.detach().cpu().double()


def facts(signals: Signals, name: str) -> Sequence[str]:
    """Facts about the candidates that were asked for.

    Args:
        signals: the pool's signals.
        name: ``id``, ``source``, ``group`` or ``noise``.

    Returns:
        A word per candidate, empty where there is none.

    Raises:
        ValueError: they were not given.
    """
    if name not in signals.meta:
        raise ValueError(f"the selector needs signals.meta[{name!r}], which was not given: score with its `needs`")
    return signals.meta[name]


def source_of_chance(generator: torch.Generator | None, name: str) -> torch.Generator:
    """The generator a selector that draws was given.

    Args:
        generator: the generator.
        name: the selector.

    Returns:
        The generator.

    Raises:
        ValueError: there is none.
    """
    if generator is None:
        raise ValueError(f"{name} draws from the generator it is given and never from a global one: pass one")
    return generator


def keep_best(signals: Signals, scores: Float[Tensor, " pool"], filter_size: int, name: str | None = None) -> Selection:
    """The candidates with the highest scores, weights of one.

    Args:
        signals: the pool's signals.
        scores: of the whole pool, on the CPU; a candidate whose score is not finite is no candidate.
        filter_size: how many to keep, k.
        name: of a diagnostic for the mean score of those kept; None for none.

    Returns:
        The selection; ``short`` in its diagnostics says that there were fewer than k.
    """
    usable = candidates(signals, filter_size, scores.to(signals.valid.device))
    chosen = usable[top(scores[usable], filter_size)]
    mean = {} if name is None else {name: float(scores[chosen].mean()) if len(chosen) else 0.0}
    return keep(signals, chosen, None, **mean, short=float(len(usable) < filter_size))


def keep(
    signals: Signals,
    index: Int[Tensor, " kept"],
    weight: Float[Tensor, " kept"] | None = None,
    **diagnostics: float,
) -> Selection:
    """A selection on the device of the pool.

    Args:
        signals: the pool's signals.
        index: distinct positions, in any order.
        weight: weight of each; ones when omitted.
        diagnostics: scalars worth logging.

    Returns:
        The selection, weights in float32, or float64 where the signals are.
    """
    found = [signals.losses, signals.alignment, signals.gram, signals.norms, signals.hidden, signals.nuclear]
    double = any(value is not None and value.dtype == torch.float64 for value in found)
    weight = torch.ones(len(index)) if weight is None else weight
    weight = weight.to(signals.valid.device, torch.float64 if double else torch.float32)
    return Selection.of(index.to(signals.valid.device), weight, diagnostics)
