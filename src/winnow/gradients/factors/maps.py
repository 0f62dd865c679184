"""Linear maps of per-example gradients that keep them factorised."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from winnow.gradients.factors.base import Factor
from winnow.gradients.factors.dense import Dense
from winnow.gradients.factors.outer_product import OuterProduct
from winnow.gradients.factors.scaled import Scaled
from winnow.gradients.factors.scatter import Scatter
from winnow.gradients.factors.sum import Sum


def times(factor: Factor, scalar: float) -> Factor:
    """Every gradient times one number.

    Args:
        factor: the gradients.
        scalar: the number.

    Returns:
        scalar G_i, of the same kind.
    """
    if isinstance(factor, OuterProduct):
        return factor.scaled(scalar, None)
    if isinstance(factor, Scatter):
        return Scatter(factor.tokens, factor.values * scalar, factor.size)
    if isinstance(factor, Sum):
        return Sum([times(part, scalar) for part in factor.parts])
    if isinstance(factor, Scaled):
        return Scaled(times(factor.factor, scalar), factor.scale)
    return Dense(_block(factor) * scalar)


def scale_sides(factor: Factor, row: Float[Tensor, " rows"], column: Float[Tensor, " columns"]) -> Factor:
    """Multiply entry (r, c) of every gradient by row_r column_c.

    Args:
        factor: gradients of a matrix.
        row: multipliers of its rows.
        column: multipliers of its columns.

    Returns:
        diag(row) G_i diag(column); an outer product stays one, and a scatter.
    """
    if isinstance(factor, OuterProduct):
        return factor.scaled(row, column)
    if isinstance(factor, Scatter):
        return Scatter(factor.tokens, factor.values * row[factor.tokens][:, :, None] * column, factor.size)
    if isinstance(factor, Sum):
        return Sum([scale_sides(part, row, column) for part in factor.parts])
    if isinstance(factor, Scaled):
        return Scaled(scale_sides(factor.factor, row, column), factor.scale)
    return Scaled(factor, row[:, None] * column)


def multiply_left(factor: Factor, matrix: Float[Tensor, "rows rows"]) -> Factor:
    """A G_i for a symmetric matrix A.

    Args:
        factor: gradients of a matrix.
        matrix: A.

    Returns:
        The products; an outer product stays one, everything else becomes dense.
    """
    if isinstance(factor, OuterProduct):
        left, right = factor.sides()
        return OuterProduct(left @ matrix, right)
    if isinstance(factor, Sum):
        return Sum([multiply_left(part, matrix) for part in factor.parts])
    return Dense(matrix @ _block(factor))


def multiply_right(factor: Factor, matrix: Float[Tensor, "columns columns"]) -> Factor:
    """G_i A for a symmetric matrix A.

    Args:
        factor: gradients of a matrix.
        matrix: A.

    Returns:
        The products; outer products and scatters stay what they are.
    """
    if isinstance(factor, OuterProduct):
        left, right = factor.sides()
        return OuterProduct(left, right @ matrix)
    if isinstance(factor, Scatter):
        return Scatter(factor.tokens, factor.values @ matrix, factor.size)
    if isinstance(factor, Sum):
        return Sum([multiply_right(part, matrix) for part in factor.parts])
    return Dense(_block(factor) @ matrix)


def _block(factor: Factor) -> Tensor:
    return factor.values if isinstance(factor, Dense) else factor.rows(slice(None))
