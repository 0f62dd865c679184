"""A row's own weight multiplies its loss wherever a gradient is taken of it, and nothing that is reported."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.engine.test_packing import left
from tests.engine.test_scorer_one_pass import without_dropout
from tests.families import build, double, ragged
from tests.reference import relative, warmed_up
from winnow.lm.batch import concatenate, pieces
from winnow.lm.crop import cropped
from winnow.lm.layout import WEIGHT, right_padded, take
from winnow.lm.losses import example_losses
from winnow.scorer import Scorer
from winnow.selection import Selection
from winnow.signals import Needs, Signals

# One without a response token.
POOL, TARGET = ragged([9, 5, 7, 6, 4], [2, 4, 3, 6, 1]), ragged([8, 4], [2, 2], seed=1)
R = torch.tensor([0.5, 2.0, 1.0, 3.0, 0.125], dtype=torch.float64)
WEIGHED = {**POOL, WEIGHT: R}
ALL = Needs(losses=True, alignment=1, gram=1, norms=2)
CHOSEN = Selection(torch.tensor([0, 1, 4]), torch.tensor([0.25, 1.75, 1.0]))


def model_of(family: str = "llama", **options: Any) -> nn.Module:
    return without_dropout(build(family, **options))


def same(got: Signals, plain: Signals) -> None:
    """Scores of weighted rows are those of plain ones, times the weights; losses are as they were."""
    assert torch.equal(got.valid, plain.valid)
    assert torch.allclose(got.losses, plain.losses, rtol=1e-12, equal_nan=True)  # type: ignore[arg-type]
    expected = {"alignment": R * plain.alignment, "norms": R * plain.norms}  # type: ignore[operator]
    expected["gram"] = R[:, None] * R * plain.gram  # type: ignore[operator]
    for name, value in expected.items():
        assert relative(getattr(got, name), value) < 1e-9, name


@pytest.mark.parametrize(
    "options", [{}, {"pack": True}, {"pool_micro_batch": 2}, {"mode": "ghost"}, {"update": "one_pass"}], ids=str
)
def test_scores_are_of_the_weighted_loss(options: dict[str, Any]) -> None:
    with double():
        model = model_of("gpt2" if "update" in options else "llama")
        optimizer = warmed_up(model)
        padded = {key: left(value, POOL["attention_mask"], -100 * (key == "labels")) for key, value in POOL.items()}
        few: dict[str, Any] = {"verify": False, "layers": "last:1"}
        plain = Scorer(model, optimizer, **few)(POOL, TARGET, ALL)
        same(Scorer(model, optimizer, **few, **options)({**padded, WEIGHT: R}, TARGET, ALL), plain)


def gradients(model: nn.Module, pool: dict[str, Tensor], chosen: Selection, **options: Any) -> dict[str, Tensor]:
    model.zero_grad()
    scorer = Scorer(model, torch.optim.SGD(model.parameters(), lr=0.1), **options)
    if options.get("update") == "one_pass":
        scorer(pool, TARGET, ALL)
    trained, losses = scorer.backward(pool, chosen)
    assert len(trained) == len(chosen)
    if scorer.update == "two_pass":
        alone = example_losses(model, POOL).detach()
        assert torch.allclose(losses[chosen.index].double(), alone[chosen.index], rtol=1e-6), "reported as they are"
    return {name: held.grad.clone() for name, held in model.named_parameters() if held.grad is not None}


@pytest.mark.parametrize(
    "options", [{}, {"pack": True}, {"pool_micro_batch": 2, "reduction": "mean"}, {"update": "one_pass"}], ids=str
)
def test_an_update_is_of_the_weighted_loss(options: dict[str, Any]) -> None:
    with double():
        model = model_of(lora=True)
        scaled = Selection(CHOSEN.index, CHOSEN.weight.double() * R[CHOSEN.index])
        expected, got = gradients(model, POOL, scaled), gradients(model, WEIGHED, CHOSEN, **options)
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        assert float((got[name] - gradient).norm()) < 1e-9 * max(float(gradient.norm()), 1e-3), name


def test_p_of_the_first_pool_and_curvature_go_by_the_weighted_gradients() -> None:
    """Adam's first step does not know the size of a gradient: with all weights 2, P is half and K twice as large."""
    twice = {**POOL, WEIGHT: torch.full((5,), 2.0)}
    both = Needs(alignment=1, gram=1)
    with double():
        model = model_of(attention="sdpa")
        options: dict[str, Any] = {"verify": False, "layers": "last:1"}
        for pieces_of in (None, 2):
            plain, got = (
                Scorer(model, torch.optim.Adam(model.parameters(), eps=1e-12), pool_micro_batch=pieces_of, **options)(
                    pool, TARGET, both
                )
                for pool in (POOL, twice)
            )
            assert relative(got.gram, 2 * plain.gram) < 1e-6  # type: ignore[operator, arg-type]
            assert relative(got.alignment, plain.alignment) < 1e-6  # type: ignore[arg-type]
        bent = Needs(alignment=0, curvature=True)
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        plain, got = (Scorer(model, sgd, **options)(pool, TARGET, bent) for pool in (POOL, twice))
        assert relative(got.curvature, 4 * plain.curvature) < 1e-9  # type: ignore[operator, arg-type]


def test_weights_go_with_their_rows() -> None:
    moved = {**POOL, "attention_mask": POOL["attention_mask"].flip(1), WEIGHT: R}
    moved |= {key: POOL[key].flip(1) for key in ("input_ids", "labels")}
    assert torch.equal(right_padded(moved)[WEIGHT], R)
    assert torch.equal(take(WEIGHED, torch.tensor([3, 0]))[WEIGHT], R[[3, 0]])
    assert torch.equal(cropped(WEIGHED, 3)[WEIGHT], R) and WEIGHT not in cropped(POOL, 3)
    assert torch.equal(torch.cat([piece[WEIGHT] for _, piece in pieces(WEIGHED, 2)]), R)
    assert concatenate(WEIGHED, TARGET)[WEIGHT].tolist() == [*R.tolist(), 1.0, 1.0]
    assert WEIGHT not in concatenate(POOL, TARGET) | take(POOL, torch.tensor([0]))


@pytest.mark.parametrize(
    ("weight", "said"),
    [
        (torch.tensor([1.0, -1.0, 1.0, 1.0, 1.0]), r"row_weight of the pool must be finite numbers of 0 or more"),
        (torch.tensor([1.0, torch.nan, 1.0, 1.0, 1.0]), r"must be finite numbers of 0 or more"),
        (torch.ones(4), r"row_weight of the pool must be a number for each of its 5 rows"),
        (torch.ones(5, dtype=torch.long), r"must be a number for each"),
    ],
)
def test_weights_that_are_none_are_refused(weight: Tensor, said: str) -> None:
    model = model_of()
    with pytest.raises(ValueError, match=said):
        Scorer(model, torch.optim.SGD(model.parameters()))({**POOL, WEIGHT: weight}, TARGET, ALL)
