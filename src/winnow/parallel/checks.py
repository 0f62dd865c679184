"""What is looked at in a first pool, of which several processes count no bytes."""

from __future__ import annotations

from typing import Any

from winnow.parallel.ranks import Ranks
from winnow.scorer.checks import Checks


class ParallelChecks(Checks):
    """As of one process; what FSDP2 sends meanwhile counts as little as the passes do.

    Args:
        *options: of :class:`winnow.scorer.checks.Checks`.
        ranks: the processes.
    """

    def __init__(self, *options: Any, ranks: Ranks) -> None:
        super().__init__(*options)
        self.ranks = ranks

    def __call__(self, *looked_at: Any) -> None:
        """Look at what a call computed.

        Args:
            *looked_at: as of one process.

        Raises:
            GradientMismatch: a captured gradient is not autograd's, and nothing can be done about it.
        """
        before = self.ranks.bytes
        super().__call__(*looked_at)
        self.ranks.bytes = before
