"""An evaluation whose batches several processes take in turn measures what one process measures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch

from tests import runs
from tests.families import double
from winnow.data.batch import collate
from winnow.data.encode import encode
from winnow.evaluation import evaluate
from winnow.evaluation.turns import Turns
from winnow.lm.passes import Pass
from winnow.parallel import Ranks
from winnow.scorer import Scorer
from winnow.training.budget import Budget
from winnow.training.validation import TargetNLL


class One(Ranks):
    """One of several processes, the sums of which are told from outside."""

    def __init__(self, rank: int, size: int, told: Callable[[Sequence[float]], list[float]]) -> None:
        self.rank, self.size, self.told = rank, size, told

    def totals(self, numbers: Sequence[float]) -> list[float]:
        return self.told(numbers)


def summed(size: int, work: Callable[[int, Callable[[Sequence[float]], list[float]]], object]) -> object:
    """What the last process finds, once what each of them would send is known."""
    sent: list[list[float]] = []
    for rank in range(size):
        work(rank, lambda numbers: sent.append(list(numbers)) or list(numbers))  # type: ignore[func-returns-value]
    return work(size - 1, lambda numbers: [sum(column) for column in zip(*sent, strict=True)])


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("size", [2, 3, 8])
def test_processes_measure_what_one_does(size: int, together: bool) -> None:
    with double():
        model = runs.model().double()
    score = lambda text, one: len(text) / 7  # noqa: E731
    targets = [replace(target, max_new_tokens=4, score=score) for target in runs.corpus(targets=2).targets]
    passes: dict[int, list[Pass]] = {}

    def measure(rank: int, told: Callable[[Sequence[float]], list[float]]) -> dict[str, float]:
        passes[rank] = []
        turns = Turns(rank, size, told, together)
        return evaluate(
            model, runs.tokenizer(), targets, max_length=64, batch_size=2, nll_limit=5, passes=passes[rank], turns=turns
        )

    alone: list[Pass] = []
    expected = evaluate(
        model, runs.tokenizer(), targets, max_length=64, batch_size=2, nll_limit=5, passes=alone
    )  # three batches of NLL and two of prompts each
    found = summed(size, measure)
    assert found == pytest.approx(expected, rel=1e-9) and len(expected) == 4
    assert list(found) == list(expected)  # type: ignore[call-overload]
    losses = [sum(one.pairs is None for one in ran) for ran in passes.values()]
    if together:  # the same number of calls, and every generation
        assert losses == [-(-6 // size)] * size and {len(ran) - losses[0] for ran in passes.values()} == {4}
    else:
        assert sorted(str(one) for ran in passes.values() for one in ran) == sorted(map(str, alone))


@pytest.mark.parametrize("size", [2, 3, 8])
def test_validation_between_updates_is_that_of_one_process(size: int) -> None:
    with double():
        model = runs.model().double()
    scorer, targets = Scorer(model, torch.optim.SGD(model.parameters(), lr=0.1)), runs.corpus(targets=2).targets
    rows = [[encode(one, runs.tokenizer(), 64) for one in target.val] for target in targets]
    batches = [(0, rows[0][:4]), (0, rows[0][4:8]), (0, rows[0][8:]), (1, rows[1][:3])]

    def watch(rank: int, told: Callable[[Sequence[float]], list[float]], many: int = size) -> object:
        watched, budget, ranks = TargetNLL(), Budget(), None if many == 1 else One(rank, many, told)
        with torch.no_grad():
            for number, batch in batches:
                watched.add(number, collate(batch, 0), scorer, ranks)
            found = watched.take(targets, scorer, budget)
            assert watched.take(targets, scorer, budget) == (None, {})
        return *found, budget.flops_evaluation

    mean, each, spent = watch(0, list, 1)  # type: ignore[misc]
    found = summed(size, watch)
    assert found == (pytest.approx(mean, rel=1e-9), pytest.approx(each, rel=1e-9), pytest.approx(spent, rel=1e-9))
    assert len(each) == 2 and spent > 0
