"""Inner products of a few very long rows."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from winnow.gradients.factors.base import Factor, Rows

PIECE = 2**13
"""Numbers of a row that one product takes; from 2^11 to 2^14 it makes no difference."""


def add_gram(total: Float[Tensor, "batch batch"], rows: Float[Tensor, "batch numbers"]) -> None:
    """Add rows @ rows.T, in place.

    In one product of 16 rows a quarter of a million long, a processor runs at a third of its speed. So the rows are
    cut, and the products of the pieces added up.

    Args:
        total: what to add to.
        rows: one row an example.
    """
    whole = rows.shape[1] - rows.shape[1] % PIECE
    if whole > PIECE:
        pieces = rows[:, :whole].unflatten(1, (-1, PIECE)).transpose(0, 1)
        total += (pieces @ pieces.mT).sum(0)
        rows = rows[:, whole:]
    total.addmm_(rows, rows.T)


def chunks(factor: Factor, elements: int, every_row: bool = True) -> list[Rows]:
    """Rows of a parameter in pieces of which all examples' gradients are no more than some numbers.

    Args:
        factor: the gradients.
        elements: the most numbers of a piece; a single row may have more.
        every_row: False leaves out the rows that no example touches.

    Returns:
        The pieces, in order.
    """
    rows = None if every_row else factor.support()
    total = (factor.shape[0] if factor.shape else 1) if rows is None else len(rows)
    step = max(1, elements // (len(factor) * max(1, factor.shape[1:].numel())))
    starts = range(0, total, step)
    return [slice(start, start + step) if rows is None else rows[start : start + step] for start in starts]
