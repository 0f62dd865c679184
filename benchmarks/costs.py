"""The cost model of ``scoring.mode=auto`` against the clock, layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch

from winnow.gradients.factors.outer_product import OuterProduct
from winnow.products.cost import form_cost, token_cost
from winnow.products.gram import chunks
from winnow.products.token_products import token_gram

CHUNK = 2**23
SHAPES = [
    (batch, tokens, rows, columns)
    for batch in (4, 16)
    for tokens in (8, 16, 32, 64, 128, 256)
    for rows, columns in ((256, 256), (704, 256), (2048, 512))
]


def measured(rounds: int = 5) -> list[dict[str, Any]]:
    """Time K of a linear map both ways, over pools, lengths and widths.

    Args:
        rounds: measurements of each; the fastest counts.

    Returns:
        A row per shape: its sides, seconds of ``form`` and ``ghost``, and what the model expects of their ratio.
    """
    found = []
    for batch, tokens, rows, columns in SHAPES:
        factor = OuterProduct(torch.randn(batch, tokens, rows), torch.randn(batch, tokens, columns))
        form = _fastest(lambda factor=factor: _form(factor), rounds)
        ghost = _fastest(lambda factor=factor: token_gram(factor, CHUNK), rounds)
        sides = {"batch": batch, "tokens": tokens, "rows": rows, "columns": columns}
        shape = (batch, tokens, rows, columns, False)
        found.append({**sides, "form": form, "ghost": ghost, "expected": token_cost(*shape) / form_cost(*shape)})
    return found


def _form(factor: OuterProduct) -> torch.Tensor:
    gram = torch.zeros(len(factor), len(factor))
    for rows in chunks(factor, CHUNK):
        block = factor.rows(rows).flatten(1)
        gram.addmm_(block, block.T)
    return gram


def _fastest(run: Callable[[], object], rounds: int) -> float:
    run()
    seconds = []
    for _ in range(rounds):
        start = perf_counter()
        run()
        seconds.append(perf_counter() - start)
    return min(seconds)


def table(found: list[dict[str, Any]]) -> list[str]:
    """Lines to print: every shape, and how often the model's choice was the faster one and what it lost.

    Args:
        found: rows of :func:`measured`.

    Returns:
        The lines.
    """
    lines = [f"{'B':>4}{'T':>5}{'d':>6}{'p':>6}{'form ms':>9}{'ghost ms':>10}{'measured':>10}{'model':>8}"]
    chosen = best = 0.0
    right = 0
    for row in found:
        ratio = row["ghost"] / row["form"]
        right += (ratio < 1) == (row["expected"] < 1)
        chosen += row["ghost"] if row["expected"] < 1 else row["form"]
        best += min(row["ghost"], row["form"])
        lines.append(
            f"{row['batch']:4}{row['tokens']:5}{row['rows']:6}{row['columns']:6}{1000 * row['form']:9.2f}"
            f"{1000 * row['ghost']:10.2f}{ratio:10.2f}{row['expected']:8.2f}"
        )
    lines.append(
        f"the model takes the faster one in {right} of {len(found)}, and {chosen / best - 1:.0%} more time in all"
    )
    return lines
