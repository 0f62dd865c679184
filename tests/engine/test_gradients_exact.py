"""K and b equal those of slow per-example gradients, for every family, layer kind and power."""

import itertools

import pytest
import torch

from tests.families import FAMILIES, build, double, ragged
from tests.reference import diagonal, normal, relative, slow_matrix, warmed_up
from winnow.gradients.factors.outer_product import LONG, OuterProduct
from winnow.products.gram import PIECE, add_gram
from winnow.scorer import Scorer
from winnow.signals import Needs

TOLERANCE = 1e-9


QUICK = ("llama", "gpt2", "qwen3")
"""Families that make test-quick looks at; the others take up to three seconds each."""


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in FAMILIES]
)
def test_gram_and_alignment_equal_slow_gradients(family: str, lora: bool) -> None:
    with double():
        model = build(family, lora)
        optimizer = warmed_up(model)
        # Ragged, one row without a response token, more than one target example, dropout in the model.
        pool, target = ragged([7, 5, 9, 6], [2, 4, 3, 6]), ragged([10, 4, 6], seed=1)
        scorer = Scorer(model, optimizer, chunk_elements=500)
        names = list(scorer.parameters)
        p = diagonal(optimizer, model, names)
        g = slow_matrix(model, pool, names)
        tau = slow_matrix(model, target, names).mean(0)
        for alignment, gram in itertools.product((0, 1, 2), (0, 1, 2)):
            signals = scorer(
                pool,
                target,
                Needs(losses=True, alignment=alignment, gram=gram, norms=gram),
            )
            assert signals.valid.tolist() == [True, True, True, False]
            assert signals.gram is not None and signals.alignment is not None and signals.norms is not None
            assert relative(signals.gram, (g * p**gram) @ g.T) < TOLERANCE
            assert relative(signals.alignment, (g * p**alignment) @ tau) < TOLERANCE
            assert relative(signals.norms, (g * p ** (gram / 2)).norm(dim=1)) < TOLERANCE


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_alone_and_with_other_attention(family: str, attention: str) -> None:
    """A pool of one, a target of one, alignment alone (no per-example gradient is formed), norms alone."""
    with double():
        model = build(family, attention=attention)
        optimizer = warmed_up(model)
        pool, target = ragged([7], [3]), ragged([5], seed=1)
        scorer = Scorer(model, optimizer)
        names = list(scorer.parameters)
        p = diagonal(optimizer, model, names)
        g = slow_matrix(model, pool, names)
        tau = slow_matrix(model, target, names)[0]
        alignment = scorer(pool, target, Needs(alignment=1)).alignment
        norms = scorer(pool, None, Needs(norms=1)).norms
        assert alignment is not None and relative(alignment, (g * p) @ tau) < TOLERANCE
        assert norms is not None and relative(norms, (g * p.sqrt()).norm(dim=1)) < TOLERANCE


@pytest.mark.parametrize("family", ["qwen3", "gpt2", "gemma", "opt"])
def test_tied_embedding_counts_both_uses_when_a_regex_names_it(family: str) -> None:
    with double():
        model = build(family)
        optimizer = warmed_up(model)
        pool, target = ragged([7, 5, 9]), ragged([6, 4], seed=1)
        assert not any("embed_tokens" in name or "wte" in name for name in Scorer(model, optimizer).parameters)
        scorer = Scorer(model, optimizer, layers="embed_tokens|wte|norm|ln_", chunk_elements=50)
        names = list(scorer.parameters)
        assert any("embed_tokens" in name or "wte" in name for name in names)
        p = diagonal(optimizer, model, names)
        g = slow_matrix(model, pool, names)
        tau = slow_matrix(model, target, names).mean(0)
        signals = scorer(pool, target, Needs(alignment=1, gram=1))
        assert signals.gram is not None and signals.alignment is not None
        assert relative(signals.gram, (g * p) @ g.T) < TOLERANCE
        assert relative(signals.alignment, (g * p) @ tau) < TOLERANCE


@pytest.mark.parametrize("tokens", [LONG, LONG - 1])
@pytest.mark.parametrize(
    ("shares", "index"),
    [
        ([0.5, 0.5, 0.5, 0.5, 0.5], None),
        ([0.5, 0.5, 0.25, 1.0, 1.0], None),
        ([0.5, 0.5, 0.5, 1.0], [0, 1, 3, 4]),
        ([0.5, 0.5, 0.5], [4, 3, 3]),
        ([0.5], [2]),
        ([], []),
    ],
)
def test_weighted_sums_of_neighbours_and_others(tokens: int, shares: list[float], index: list[int] | None) -> None:
    """Neighbours of one weight go into one matmul where examples are long."""
    row, column = normal(6, seed=2).exp(), normal(4, seed=3).exp()
    factor = OuterProduct(normal(5, tokens, 6), normal(5, tokens, 4, seed=1), row, column)
    weight = torch.tensor(shares, dtype=torch.float64)
    chosen = list(range(5)) if index is None else index
    expected = torch.tensordot(weight, factor.rows(slice(None))[chosen], dims=1)
    found = factor.combine(weight, None if index is None else torch.tensor(index, dtype=torch.long))
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("numbers", [0, 5, PIECE, PIECE + 1, 2 * PIECE, 3 * PIECE + 7])
def test_a_gram_of_long_rows_is_that_of_one_product(numbers: int) -> None:
    rows = normal(3, numbers + 2)[:, 2:]
    start = normal(3, 3, seed=1)
    total = start.clone()
    add_gram(total, rows)
    assert relative(total, start + rows @ rows.T) < 1e-12
