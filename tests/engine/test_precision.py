"""bf16 chooses and weighs as float32 does on the same weights, and numbers that cannot be right are said to be."""

import logging
from typing import Any

import pytest
import scipy.stats
import torch
import transformers
from torch import Tensor, nn

from tests import families
from tests.families import ragged
from tests.reference import relative
from winnow.gradients.factors.base import Factor
from winnow.gradients.factors.dense import Dense
from winnow.gradients.factors.outer_product import OuterProduct
from winnow.gradients.factors.scatter import Scatter
from winnow.scorer import Scorer
from winnow.scorer.doubts import doubts
from winnow.selection import Selection
from winnow.selectors import FilterWeight
from winnow.signals import Signals

POOL = ragged([17, 15, 19, 12, 20, 22, 9, 14, 18, 16, 21, 13])
TARGET = ragged([16, 14, 20, 18], seed=1)


def llama(dtype: torch.dtype) -> tuple[nn.Module, torch.optim.AdamW]:
    """A Llama whose weights and AdamW state are those of bf16, held in a precision."""
    torch.manual_seed(0)
    shape = {**families._SHAPE, "hidden_size": 48, "intermediate_size": 96, "head_dim": 12, "num_hidden_layers": 3}
    model: Any = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**shape)).bfloat16()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-6)
    for _ in range(3):
        for parameter in model.parameters():
            parameter.grad = 1e-2 * torch.randn_like(parameter)
        optimizer.step()
        optimizer.zero_grad()
    model.to(dtype)
    for state in optimizer.state.values():
        state.update({key: value.to(dtype) for key, value in state.items() if key != "step"})
    return model, optimizer


def scored(precision: str) -> tuple[Signals, Selection, dict[str, Tensor]]:
    """Scores, what ``FilterWeight`` makes of them, and the gradient of one and the same selection."""
    model, optimizer = llama(torch.bfloat16 if precision == "bf16-true" else torch.float32)
    selector = FilterWeight(filter_size=4)
    scorer = Scorer(model, optimizer, update="one_pass")
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16-mixed"):
        signals = scorer(POOL, TARGET, selector.needs)
    some = Selection(torch.tensor([1, 4, 7]), torch.tensor([0.3, 1.7, 1.0]))
    return signals, selector(signals), scorer.weighted_gradients(some)


def dense(selection: Selection) -> Tensor:
    return torch.zeros(12).index_copy(0, selection.index, selection.weight.float())


@pytest.fixture(scope="module")
def float32() -> tuple[Signals, Selection, dict[str, Tensor]]:
    return scored("32-true")


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_bf16_scores_as_float32_on_the_same_weights(
    precision: str, float32: tuple[Signals, Selection, dict[str, Tensor]], caplog: pytest.LogCaptureFixture
) -> None:
    whole, chosen, update = float32
    with caplog.at_level(logging.WARNING, logger="winnow.scorer"):
        half, chosen_half, update_half = scored(precision)
    assert not caplog.records, "good numbers raise no doubts"
    assert half.gram is not None and half.alignment is not None
    assert whole.gram is not None and whole.alignment is not None
    assert half.gram.dtype == half.alignment.dtype == torch.float32
    assert relative(half.gram, whole.gram) < 5e-3
    assert relative(half.alignment, whole.alignment) < 2e-2
    assert scipy.stats.spearmanr(half.alignment, whole.alignment).statistic > 0.98
    weights, weights_half = dense(chosen), dense(chosen_half)
    assert float((weights_half - weights).abs().sum()) < 0.02 * float(weights.sum())
    for name, gradient in update.items():
        assert relative(update_half[name].float(), gradient) < 0.03, name


@pytest.mark.parametrize("kind", ["scatter", "dense", "outer"])
def test_many_small_contributions_add_up_in_half_precision(kind: str) -> None:
    """4096 equal terms: added one by one in bf16 they stop at 256 of them; 0.3 is no number of bf16."""
    ones = torch.ones(2, 2048, 3, dtype=torch.bfloat16)
    factor: Factor = {
        "scatter": Scatter(torch.zeros(2, 2048, dtype=torch.long), ones, 5),
        "dense": Dense(ones[:, 0]),
        "outer": OuterProduct(ones, ones),
    }[kind]
    weight = torch.tensor([0.3, 0.3])
    got = factor.combine(weight)
    expected = torch.tensor(0.6 if kind == "dense" else 0.6 * 2048)
    assert got.dtype == torch.bfloat16
    assert abs(float(got.flatten()[0]) / float(expected) - 1) <= 2**-8


def good(size: int = 6, width: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    g, tau = torch.randn(size, width), torch.randn(width)
    return g @ g.T, g @ tau, tau @ tau


ALL = torch.ones(6, dtype=torch.bool)


def test_good_numbers_raise_no_doubts() -> None:
    gram, b, square = good()
    assert doubts(ALL, gram, b, square, torch.bfloat16) is None
    assert doubts(ALL, gram, b, torch.tensor(torch.nan), torch.bfloat16) is None, "the target's length is not known"
    assert doubts(ALL, gram, None, None, torch.bfloat16) is None
    assert doubts(ALL, None, b, None, torch.bfloat16) is None
    low = torch.randn(6, 2)
    assert doubts(ALL, low @ low.T, low[:, 0], torch.tensor(1.0), torch.float32) is None, "K of low rank is no error"
    gram[0], gram[:, 0], b[0] = 0, 0, 0
    assert doubts(ALL, gram, b, square, torch.float32) is None, "a gradient of zero is none either"
    b[1] = torch.nan
    finite = ALL.clone()
    finite[1] = False
    assert doubts(finite, gram, b, square, torch.float32) is None, "a loss that is not finite is known as such"


def test_broken_numbers_are_named() -> None:
    gram, b, square = good()
    spoilt = gram.clone()
    spoilt[0, 1] = spoilt[1, 0] = 1.5 * gram.diagonal()[:2].prod().sqrt()
    assert "negative eigenvalue" in str(doubts(ALL, spoilt, b, square, torch.float32))
    longer = b.clone()
    longer[2] = 1.01 * (gram[2, 2] * square).sqrt()
    assert "exceeds" in str(doubts(ALL, gram, longer, square, torch.float32))
    for lost in (torch.nan, torch.inf):
        for where in (gram, b):
            broken = where.clone()
            broken[3] = lost
            pair = (broken, b) if where is gram else (gram, broken)
            assert "1 of 6 candidates" in str(doubts(ALL, *pair, square, torch.float32))
    level = 1e-3 * (gram.diagonal() * square).sqrt()
    level[0] *= 1.5
    assert "order says nothing" in str(doubts(ALL, gram, level, square, torch.bfloat16))
    assert doubts(ALL, gram, level, square, torch.float32) is None, "float32 can tell them apart"


@pytest.mark.parametrize(
    ("match", "options"),
    [
        ("metric", {}),
        ("target", {}),
        ("update", {}),
        ("raw", {"mode": "auto"}),
        ("target", {"mode": "sketch"}),
        ("target", {"pool_micro_batch": 4}),
    ],
    ids=str,
)
def test_alignments_are_bounded_by_the_lengths_whatever_the_way_they_are_taken(
    match: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, optimizer = llama(torch.float32)
    seen: list[tuple[Any, ...]] = []

    def record(*given: Any) -> str | None:
        seen.append(given)
        return doubts(*given)

    monkeypatch.setattr("winnow.scorer.checks.doubts", record)
    pool = {key: value[:5] for key, value in POOL.items()}
    one = {key: torch.cat([value[:1]] * 4) for key, value in POOL.items()}
    scorer = Scorer(model, optimizer, layers="last:1", **options)
    needs = FilterWeight(filter_size=2, match=match).needs
    with caplog.at_level(logging.WARNING, logger="winnow.scorer"):
        # A target that is a candidate meets the bound itself.
        scorer(pool, {key: value[:1] for key, value in POOL.items()}, needs)
        _, gram, alignment, square, _ = seen[0]
        assert torch.isfinite(square), "known in every form that selectors ask for"
        if match in ("metric", "raw"):
            assert float(alignment[0] / (gram[0, 0] * square).sqrt()) == pytest.approx(1, abs=1e-4)
        assert not caplog.records
        for _ in range(2):  # equal candidates cannot be ranked: said once
            scorer(one, TARGET, needs)
        assert len(caplog.records) == 1 and "order says nothing" in caplog.text
