"""Per-example gradients of one parameter, sent to the processes that hold its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from winnow.geometry.base import Preconditioner
from winnow.geometry.preconditioners import Diagonal, Identity, Multiple, OneSided, RankOne
from winnow.gradients.factors.base import Factor
from winnow.gradients.factors.dense import Dense
from winnow.lm.shards import in_rows
from winnow.parallel.ranks import Ranks
from winnow.products.parcel import Parcel, Tau


def axis_of(preconditioner: Preconditioner) -> int:
    """Along which of its sides a matrix can be cut, so that P acts on each piece by itself.

    Args:
        preconditioner: P of the parameter.

    Returns:
        0 for rows; 1 for columns, where P mixes rows.
    """
    while isinstance(preconditioner, Multiple):
        preconditioner = preconditioner.inner
    return int(isinstance(preconditioner, OneSided) and not preconditioner.right)


def cut(preconditioner: Preconditioner, piece: slice, axis: int) -> Preconditioner:
    """P on a piece of its parameter.

    Args:
        preconditioner: P of the whole.
        piece: rows, or columns.
        axis: 0 for rows.

    Returns:
        P of the piece.

    Raises:
        TypeError: nothing is known about this kind of P.
    """
    if isinstance(preconditioner, Identity):
        return preconditioner
    if isinstance(preconditioner, Diagonal):
        return Diagonal(piece_of(preconditioner.diagonal, piece, axis))
    if isinstance(preconditioner, RankOne):
        row, column = preconditioner.row, preconditioner.column
        return RankOne(row[piece], column) if axis == 0 else RankOne(row, column[piece])
    if isinstance(preconditioner, OneSided) and axis == int(not preconditioner.right):
        return preconditioner
    if isinstance(preconditioner, Multiple):
        return Multiple(cut(preconditioner.inner, piece, axis), preconditioner.scale)
    raise TypeError(
        "a pool over several processes needs a P that acts on parts of a parameter, and "
        f"{type(preconditioner).__name__} is unknown: set scoring.geometry=identity, or use one process"
    )


def spread(preconditioner: Preconditioner, joined: Callable[[Tensor], Tensor]) -> Preconditioner:
    """P of a parameter from P of its rows.

    Args:
        preconditioner: P, of which every process has its rows.
        joined: makes one tensor of the processes' rows.

    Returns:
        P of the whole.
    """
    if isinstance(preconditioner, Multiple):
        return Multiple(spread(preconditioner.inner, joined), preconditioner.scale)
    return Diagonal(joined(preconditioner.diagonal)) if isinstance(preconditioner, Diagonal) else preconditioner


def whole_parcel(parcel: Parcel, parameter: nn.Parameter, ranks: Ranks) -> Parcel:
    """What is compared where all rows of a parameter are needed; called by every process.

    Args:
        parcel: with gradients of the whole, and P and tau of the rows that are here.
        parameter: whose they are.
        ranks: the processes.

    Returns:
        The same, with P and tau of the whole; of a parameter that is whole everywhere, the parcel itself.
    """
    if not in_rows(parameter):
        return parcel
    joined = partial(ranks.join_rows, height=len(parameter))
    return replace(
        parcel,
        preconditioner=spread(parcel.preconditioner, joined),
        tau=None if parcel.tau is None else tau_of(joined(parcel.tau.tensor())),
        by_task=[joined(one) for one in parcel.by_task],
    )


def tau_of(tensor: Float[Tensor, "*shape"]) -> Tau:
    """A target gradient that is there, as a parcel has it.

    Args:
        tensor: it.

    Returns:
        What gives it.
    """
    return Tau(lambda: tensor)


def piece_of(tensor: Float[Tensor, "*shape"], piece: slice, axis: int) -> Float[Tensor, "*piece"]:
    """Rows or columns of a parameter-shaped tensor; a number counts as one row.

    Args:
        tensor: of the parameter's shape.
        piece: which.
        axis: 0 for rows, 1 for columns.

    Returns:
        A view.
    """
    tensor = tensor if tensor.ndim else tensor[None]
    return tensor[piece] if axis == 0 else tensor[:, piece]


def shards(
    factor: Factor, ranks: Ranks, total: int, elements: int, axis: int = 0
) -> Iterator[tuple[slice, Float[Tensor, " total *piece"]]]:
    """All candidates' gradients on the rows that this process holds, a few rows at a time.

    Row r belongs to process r // ceil(rows / processes), as torch's ``Shard(0)`` has it.

    Args:
        factor: gradients of this process's candidates, ``ranks.share(total)`` of them.
        ranks: the processes.
        total: candidates of the whole pool.
        elements: most numbers that are received at a time; a single row may have more.
        axis: 1 cuts columns in place of rows.

    Yields:
        Which rows (or columns), and the gradients there.
    """
    if axis == 1:
        factor = Dense(factor.block(slice(None)).transpose(1, 2))
    height = factor.shape[0] if factor.shape else 1
    width = max(1, factor.shape[1:].numel())
    most = ranks.share(height)
    step = min(most, max(1, elements // (max(1, total) * width)))
    for start in range(0, most, step):
        count = min(step, most - start)
        sent = _parts(factor, ranks.size, height, most, start, count)
        first = min(ranks.rank * most + start, height)
        mine = slice(first, min(first + count, (ranks.rank + 1) * most, height))
        got = ranks.exchange(sent).flatten(0, 1)[:total, : mine.stop - mine.start]
        if mine.stop > mine.start:
            yield mine, got.transpose(1, 2) if axis == 1 else got


def _parts(
    factor: Factor, size: int, height: int, most: int, start: int, count: int
) -> Float[Tensor, "ranks share count *rest"]:
    """What goes to each process: its rows from ``start`` on, zeros where it has no more."""
    first = torch.arange(size)[:, None] * most + start
    line = (first + torch.arange(count)).flatten()
    inside = line < height
    if bool(inside.all()) and count == most:
        formed = factor.block(slice(None))
    else:
        sample = factor.block(slice(0, 1))
        formed = sample.new_zeros(len(factor), size * count, *sample.shape[2:])
        formed[:, inside.to(sample.device)] = factor.rows(line[inside].to(sample.device))
    return formed.unflatten(1, (size, count)).transpose(0, 1)
