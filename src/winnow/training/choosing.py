"""From a step's pool to what is trained on: scored and chosen from, or taken as the gate gave it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from winnow.lm.layout import Batch, response_tokens
from winnow.scorer import Scorer, TargetNotFinite
from winnow.selection import Selection
from winnow.selectors import Selector
from winnow.signals import Needs, Signals
from winnow.training.chance import SELECTION, step_seed
from winnow.training.intake import Intake, Taken
from winnow.training.record import step_needs

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Chooser:
    """Scores pools and asks the selector.

    Args:
        selector: chooses.
        intake: says which pools are scored, and what the gate wants to know of them.
        seed: of selectors that draw at random, together with the step.
        record_tasks: score against every target task by itself too, for the records.
    """

    selector: Selector
    intake: Intake
    seed: int
    record_tasks: bool

    @property
    def needs(self) -> Needs:
        """What is computed of a scored pool."""
        return step_needs(self.intake.needs(self.selector.needs), self.record_tasks)

    def score(
        self, scorer: Scorer, taken: Taken, target: Mapping[str, Tensor] | None, check: Callable[[], None]
    ) -> Signals | TargetNotFinite:
        """Score a pool, where that is due.

        Args:
            scorer: scores it.
            taken: the pool.
            target: the step's target batch, with ``weight`` and ``task``.
            check: refuses a model that is beyond help.

        Returns:
            The signals, or that the target has no gradient at this step.

        Raises:
            ValueError: a target is needed and there is none.
        """
        if not taken.scored:
            scorer.forget()
            tokens = response_tokens(taken.pool)
            return self.intake.told(taken, Signals(valid=tokens > 0, tokens=tokens))
        needs = self.needs
        if needs.target and target is None:
            raise ValueError(f"{type(self.selector).__name__} needs a target task, and data.corpus has none")
        try:
            weight = None if target is None or not needs.target else target["weight"]
            task = None if target is None or weight is None else target["task"]
            signals = self.intake.cheaper.score(scorer, taken.pool, target, needs, weight, task, taken.meta)
        except TargetNotFinite as error:
            check()
            return error
        return self.intake.told(taken, signals)

    def __call__(
        self, scorer: Scorer, taken: Taken, signals: Signals | TargetNotFinite, step: int
    ) -> tuple[Signals, Selection]:
        """Choose from a pool.

        Args:
            scorer: has scored it.
            taken: the pool.
            signals: from :meth:`score`.
            step: pools seen.

        Returns:
            Signals and selection; an empty one where the target's gradient is not finite.
        """
        if isinstance(signals, TargetNotFinite):
            log.warning("pool %d: %s; no update (scoring.on_target_nan=skip)", step, signals)
            tokens = response_tokens(taken.pool)
            nothing = Selection(tokens.new_zeros(0), torch.zeros(0), {"target_not_finite": 1.0})
            return with_losses(scorer, Signals(valid=tokens > 0, tokens=tokens), taken.pool), nothing
        if not taken.scored:
            return signals, self.intake.unscored(signals)
        selection = self.selector(signals, torch.Generator().manual_seed(step_seed(self.seed, step, SELECTION)))
        if scorer.target_reused:
            log.warning("pool %d: target loss not finite; reusing the last target gradient", step)
            selection = replace(selection, diagnostics={**selection.diagnostics, "target_reused": 1.0})
        return signals, selection


def with_losses(scorer: Scorer, signals: Signals, pool: Batch) -> Signals:
    """Losses of the whole pool tell an odd batch from a model that is beyond help.

    Args:
        scorer: runs the pool.
        signals: of it, without losses.
        pool: the candidates.

    Returns:
        The signals with losses.
    """
    return replace(signals, losses=scorer(pool, None, Needs(losses=True)).losses)
