"""What the choice of layers and mode costs is counted, and said once."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from tests.families import build, ragged
from winnow.gradients.factors.dense import Dense
from winnow.gradients.factors.outer_product import OuterProduct
from winnow.gradients.factors.sum import Sum
from winnow.products.cost import Work, form_cost, plain_cost, sketch_cost
from winnow.scorer import Scorer
from winnow.signals import Needs

POOL, TARGET = ragged([6, 6, 6]), ragged([6, 6], seed=1)


def spoken(caplog: pytest.LogCaptureFixture, **options: object) -> list[str]:
    model = build("llama")
    scorer = Scorer(model, torch.optim.SGD(model.parameters()), **options)  # type: ignore[arg-type]
    with caplog.at_level(logging.INFO, "winnow.scorer"):
        for _ in range(2):
            scorer(POOL, TARGET, Needs(alignment=0, gram=0))
    return [record.getMessage() for record in caplog.records if "K and b of linear maps" in record.getMessage()]


def test_the_choice_of_layers_is_said_once_with_its_cost(caplog: pytest.LogCaptureFixture) -> None:
    (everything,) = spoken(caplog)
    assert everything.startswith("scoring.layers=all: K and b of linear maps: 15 formed; of 6 other parameters; ")
    caplog.clear()
    (last,) = spoken(caplog, layers="last:1")
    share = [int(text.split("; ")[-1].split("%")[0]) for text in (everything, last)]
    assert "7 formed" in last and 0 < share[1] < share[0]


@pytest.mark.parametrize(("mode", "kind"), [("ghost", "token products"), ("sketch", "sketched")])
def test_how_linear_maps_were_taken(mode: str, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    (text,) = spoken(caplog, mode=mode, sketch_dim=4, layers=r".*mlp.*")
    assert kind in text


def test_multiplications_are_those_of_the_shapes() -> None:
    factor = OuterProduct(torch.zeros(3, 5, 7), torch.zeros(3, 5, 11))
    work = Work(dim=4)
    work.note("formed", Sum([factor, Dense(torch.zeros(3, 7, 11))]), targets=2)
    assert work.multiplications == form_cost(3, 5, 7, 11, True) + 2 * 5 * 7 * 11 == 3 * 77 * (5 + 3 + 1) + 2 * 5 * 77
    work.note("sketched", factor, targets=2)
    assert work.multiplications == 3 * 77 * 9 + 770 + sketch_cost(5, 5, 7, 11, 4)
    assert sketch_cost(5, 5, 7, 11, 4) == 5 * (5 + 5) * 16
    model = nn.Sequential(nn.Linear(3, 5, bias=False), nn.Linear(5, 2))
    model[0].weight.requires_grad_(False)
    assert plain_cost(model, tokens=10) == 10 * (2 * 15 + 3 * 10)
