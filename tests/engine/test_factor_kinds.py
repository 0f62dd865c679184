"""Every kind of gradients says the same as the gradients themselves, written out: one table, no kind without a row."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import winnow.gradients.factors as folder
from tests.reference import normal
from winnow.gradients.factors.base import Factor
from winnow.gradients.factors.dense import Dense, Formed, Scaled
from winnow.gradients.factors.outer_product import OuterProduct
from winnow.gradients.factors.routed import Routed
from winnow.gradients.factors.scatter import Scatter
from winnow.gradients.factors.sum import Sum

SIDE, WIDTH = 5, 4


def outer(batch: int) -> OuterProduct:
    return OuterProduct(normal(batch, 3, SIDE), normal(batch, 3, WIDTH, seed=1), normal(SIDE, seed=2), normal(WIDTH))


def scatter(batch: int) -> Scatter:
    return Scatter(torch.arange(3 * batch).reshape(batch, 3) % 4, normal(batch, 3, WIDTH, seed=3), SIDE)


def dense(batch: int) -> Dense:
    return Dense(normal(batch, SIDE, WIDTH, seed=4))


KINDS: dict[str, Callable[[int], Factor]] = {
    "Dense": dense,
    "Scaled": lambda batch: Scaled(outer(batch), normal(SIDE, WIDTH, seed=5)),
    "OuterProduct": outer,
    "Scatter": scatter,
    "Sum": lambda batch: Sum([outer(batch), scatter(batch), dense(batch)]),
    "Routed": lambda batch: Routed(
        normal(batch, 6, 3, seed=6), normal(batch, 3, WIDTH, seed=7), torch.arange(6 * batch).reshape(batch, 6) % 3, 2
    ),
}
every_kind = pytest.mark.parametrize("kind", KINDS)
BATCHES = pytest.mark.parametrize("batch", [0, 1, 3])


def written_out(factor: Factor) -> Tensor:
    return factor.rows(slice(None))


def close(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-11, atol=1e-11)


def test_every_kind_has_a_row() -> None:
    for path in Path(folder.__path__[0]).glob("[a-z]*.py"):
        importlib.import_module(f"winnow.gradients.factors.{path.stem}")
    assert {kind.__name__ for kind in Formed.__subclasses__()} == set(KINDS)


@every_kind
@BATCHES
def test_it_says_what_its_gradients_say(kind: str, batch: int) -> None:
    factor = KINDS[kind](batch)
    g = written_out(factor)
    assert len(factor) == batch and g.shape[1:] == factor.shape and factor.dtype == torch.float64
    weight, direction = normal(batch, seed=8), normal(*factor.shape, seed=9)
    assert close(factor.combine(weight), torch.tensordot(weight, g, 1))
    assert close(factor.inner(direction), (g * direction).flatten(1).sum(1))
    some = torch.arange(batch)[: max(0, batch - 1)]
    assert close(written_out(factor.examples(some)), g[some])
    assert close(factor.combine(weight[some], some), torch.tensordot(weight[some], g[some], 1))
    rows = torch.tensor([0, factor.shape[0] - 1])
    assert close(factor.rows(rows), g[:, rows]) and close(factor.block(rows), g[:, rows])
    assert factor.to(torch.float32).dtype == torch.float32
    support = factor.support()
    if support is not None:
        silent = [row for row in range(factor.shape[0]) if row not in support.tolist()]
        assert not g[:, silent].any()


@every_kind
@BATCHES
def test_maps_of_it_are_maps_of_its_gradients(kind: str, batch: int) -> None:
    factor = KINDS[kind](batch)
    g, scale = written_out(factor), normal(*factor.shape, seed=10)
    assert close(written_out(factor.times(-1.5)), -1.5 * g)
    assert close(written_out(factor.scaled(scale)), g * scale)
    if len(factor.shape) != 2:
        assert kind == "Routed", "matrices alone have sides"
        return
    row, column = normal(SIDE, seed=11), normal(WIDTH, seed=12)
    left, right = normal(SIDE, SIDE, seed=13), normal(WIDTH, WIDTH, seed=14)
    left, right = left + left.T, right + right.T
    assert close(written_out(factor.scale_sides(row, column)), row[:, None] * g * column)
    assert close(written_out(factor.multiply_left(left)), left @ g)
    assert close(written_out(factor.multiply_right(right)), g @ right)


@every_kind
def test_what_it_says_of_its_form_is_so(kind: str) -> None:
    factor = KINDS[kind](3)
    g, sides = written_out(factor), factor.sides()
    assert factor.paired == (sides is not None)
    if sides is not None:
        assert close(sides[0].mT @ sides[1], g) and factor.length == sides[0].shape[1]
    folded = factor.folded_columns(lambda values: values @ normal(WIDTH, 2, seed=15))
    if folded is not None:
        assert close(written_out(folded), g @ normal(WIDTH, 2, seed=15))
    scale = normal(*factor.shape, seed=16)
    assert factor.scaled(scale).elementwise_of(factor) or factor.scaled(scale).over(factor) is None or kind == "Scatter"
    over = factor.over(Dense(torch.ones_like(g)))
    if over is not None:
        assert close(written_out(over), written_out(Scaled(Dense(torch.ones_like(g)), factor.scale)))  # type: ignore[attr-defined]
