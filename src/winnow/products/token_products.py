"""Inner products of per-example gradients of a linear map without forming any of them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from winnow.gradients.factors.base import Factor
from winnow.products.cost import form_cost, token_cost


def token_gram(factor: Factor, chunk_elements: int) -> Float[Tensor, "batch batch"]:
    """<G_i, G_j> = sum_{t,s} (left_i[t] . left_j[s]) (right_i[t] . right_j[s]), i and j over the batch.

    Args:
        factor: gradients that are ``paired``.
        chunk_elements: the products of tokens are held at most this many at a time, however long T is.

    Returns:
        The Gram of the batch.

    Raises:
        ValueError: the gradients are no outer products.
    """
    sides = factor.sides()
    if sides is None:
        raise ValueError("token products are of gradients that are outer products")
    lefts, rights = sides
    size, length = lefts.shape[:2]
    out = lefts.new_empty(size, size)
    for i in range(size):
        others = size - i
        left, right = lefts[i:].flatten(0, 1), rights[i:].flatten(0, 1)
        step = max(1, chunk_elements // (others * length))
        row = lefts.new_zeros(others)
        for start in range(0, length, step):
            product = lefts[i, start : start + step] @ left.T
            product *= rights[i, start : start + step] @ right.T
            row += product.view(-1, others, length).sum((0, 2))
        out[i, i:] = out[i:, i] = row
    return out


def tokens_are_cheaper(size: int, length: int, shape: torch.Size, alignment: bool) -> bool:
    """Whether the cost model prefers token products for a layer.

    Args:
        size: examples B.
        length: tokens T.
        shape: of the parameter.
        alignment: whether b is wanted too.

    Returns:
        True if they take fewer multiplications than forming the gradients.
    """
    rows, columns = shape
    return token_cost(size, length, rows, columns, alignment) < form_cost(size, length, rows, columns, alignment)


def fits_token_products(length: int, shape: torch.Size) -> bool:
    """METHOD's rule of thumb: two token products are no larger than the parameter, 2 T^2 <= d p.

    Args:
        length: tokens T.
        shape: of the parameter.

    Returns:
        True where a pair's T x T products are smaller than its gradients.
    """
    return 2 * length**2 <= shape.numel()
