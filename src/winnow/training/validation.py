"""The target's negative log-likelihood, watched while training goes on."""

from __future__ import annotations

from collections.abc import Sequence

from winnow.data import Target
from winnow.evaluation.turns import Turns, blank
from winnow.lm.layout import Batch, response_tokens
from winnow.parallel import Ranks
from winnow.parallel.part import turns_of
from winnow.scorer import Scorer
from winnow.training.budget import Budget


class TargetNLL:
    """Mean NLL of every target's validation examples, a batch at a time; several processes take batches in turn."""

    def __init__(self) -> None:
        self._sums: dict[int, tuple[float, int]] = {}
        self._turns, self._spent = Turns(), 0.0
        self._last: Batch = {}

    def add(self, target: int, batch: Batch, scorer: Scorer, ranks: Ranks | None) -> None:
        """Add a batch, if it is this process's turn; every process is given all of them.

        Args:
            target: number of the target.
            batch: its examples.
            scorer: runs them.
            ranks: the processes; None for one.
        """
        if not self._sums:
            self._turns = turns_of(ranks, scorer.model)
        total, count = self._sums.get(target, (0.0, 0))
        if self._turns.mine():
            losses, spent = scorer.meter.evaluated(batch)
            active = response_tokens(batch) > 0
            total, count = total + float(losses[active].double().sum()), count + int(active.sum())
            self._spent += spent
        self._sums[target], self._last = (total, count), batch

    def take(self, targets: Sequence[Target], scorer: Scorer, budget: Budget) -> tuple[float | None, dict[str, float]]:
        """The means since the last call; every process calls this.

        Args:
            targets: for their names and weights.
            scorer: as of :meth:`add`.
            budget: counts what all processes have spent.

        Returns:
            The weighted mean over targets, None without examples, and each target's metric where there are several.
        """
        if not self._sums:
            return None, {}
        if self._turns.owes:
            self._spent += scorer.meter.evaluated(blank(self._last))[1]
        own = [float(number) for pair in self._sums.values() for number in pair]
        spent, *numbers = self._turns.totals([self._spent, *own])
        means = {
            number: total / max(count, 1)
            for number, total, count in zip(self._sums, numbers[::2], numbers[1::2], strict=True)
        }
        self._sums, self._spent, self._last = {}, 0.0, {}
        budget.flops_evaluation += spent
        weights = {number: targets[number].weight if number < len(targets) else 1.0 for number in means}
        mean = sum(weights[number] * means[number] for number in means) / sum(weights.values())
        if len(means) == 1:
            return mean, {}
        return mean, {f"target/{targets[number].name}/val_nll": means[number] for number in means}
