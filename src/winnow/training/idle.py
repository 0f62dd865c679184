"""Pools in a row that led to no update, or to one that changed nothing, and why."""

from __future__ import annotations

import logging
from collections import Counter

from winnow.selection import Selection
from winnow.signals import Signals

log = logging.getLogger(__name__)

CUT = "every candidate was cut down to its prompt (raise data.max_length)"
TARGET = "the target's loss or gradient was not finite (look at the target's data, or scoring.on_target_nan)"
UPDATE = "the gradient of the update was not finite (lower optimizer.lr, or trainer.precision=32-true)"
CANDIDATES = "no loss or gradient of the candidates was finite (look at the stream's data)"
ZERO = "the gradient of the update was zero (the losses do not depend on what is trained: look at the model)"
UNRELATED = (
    "every inner product with the target was zero (its gradient is zero, or has nothing in common with the "
    "candidates': look at the target's data)"
)
NOTHING = "the selector kept nothing, as no candidate helps the target (selector.on_empty)"


class Idle:
    """Counts pools without an update until there are too many in a row.

    Args:
        limit: how many may follow one another.

    Raises:
        ValueError: ``limit`` is not a whole number above zero.
    """

    def __init__(self, limit: int) -> None:
        if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
            raise ValueError(f"max_idle_steps must be a whole number, at least 1, got {limit!r}")
        self.limit, self.pools = limit, 0
        self.causes: Counter[str] = Counter()
        self._warned = False

    def count(self, signals: Signals, selection: Selection, chosen: int) -> bool:
        """Take in a pool.

        Args:
            signals: of its candidates.
            selection: what was really trained on.
            chosen: how many had been chosen.

        Returns:
            Whether nothing moves, for which the model or the optimizer's state may be the cause.
        """
        unrelated, still = _unrelated(signals), "update_zero" in selection.diagnostics
        if unrelated and not self._warned:
            self._warned = True
            log.warning("%s; selectors that go by it have nothing to choose by (said once)", UNRELATED)
        if len(selection) and not still:
            self.pools, self.causes = 0, Counter()
        else:
            self.pools += 1
            self.causes[_cause(signals, selection, chosen)] += 1
        return unrelated or still

    def check(self) -> None:
        """Give up after too many.

        Raises:
            RuntimeError: names the causes, the commonest first.
        """
        if self.pools >= self.limit:
            causes = "; ".join(f"{count} times {cause}" for cause, count in self.causes.most_common())
            raise RuntimeError(f"{self.pools} pools in a row led to no update (max_idle_steps): {causes}")


def _cause(signals: Signals, selection: Selection, chosen: int) -> str:
    if not bool((signals.tokens > 0).any()):
        return CUT
    if "target_not_finite" in selection.diagnostics:
        return TARGET
    if "update_not_finite" in selection.diagnostics:
        return UPDATE
    if "update_zero" in selection.diagnostics:
        return ZERO
    if chosen or not bool(signals.valid.any()):
        return CANDIDATES
    return UNRELATED if _unrelated(signals) else NOTHING


def _unrelated(signals: Signals) -> bool:
    """Whether what a selector goes by is zero for all candidates."""
    aligned = signals.alignment
    return aligned is not None and bool(signals.valid.any()) and not bool(aligned[signals.valid].any())
