"""Pools in a row that led to no update, and why."""

from __future__ import annotations

from collections import Counter

from winnow.selection import Selection
from winnow.signals import Signals

CUT = "every candidate was cut down to its prompt (raise data.max_length)"
TARGET = "the target's loss or gradient was not finite (look at the target's data, or scoring.on_target_nan)"
UPDATE = "the gradient of the update was not finite (lower optimizer.lr, or trainer.precision=32-true)"
CANDIDATES = "no loss or gradient of the candidates was finite (look at the stream's data)"
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

    def count(self, signals: Signals, selection: Selection, chosen: int) -> None:
        """Take in a pool.

        Args:
            signals: of its candidates.
            selection: what was really trained on.
            chosen: how many had been chosen.
        """
        if len(selection):
            self.pools, self.causes = 0, Counter()
            return
        self.pools += 1
        self.causes[_cause(signals, selection, chosen)] += 1

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
    return CANDIDATES if chosen or not bool(signals.valid.any()) else NOTHING
