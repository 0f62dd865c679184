"""What several processes agree on between two pools."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from winnow.lm.finite import RATE, NotFinite
from winnow.lm.passes import FORWARD
from winnow.parallel import Ranks, check_same
from winnow.parallel.same import due
from winnow.scorer.flops import Flops
from winnow.scorer.meter import Meter
from winnow.training.budget import Budget

log = logging.getLogger(__name__)


@dataclass
class Together:
    """Agreement of the processes of a run; of a single one, nothing but its own word.

    Args:
        ranks: the processes; None for one.
        in_rows: whether each holds rows of its own of what is trained.
    """

    ranks: Ranks | None = None
    in_rows: bool = False
    _read: int = 0

    def strangers(self, processes: int) -> int:
        """Processes that nobody has arranged for.

        Args:
            processes: that the trainer runs in.

        Returns:
            One, where these are they.
        """
        return processes if self.ranks is None else 1

    def begin(self) -> None:
        """A pool begins: what was sent since the last one, for a measurement, is none of its bytes."""
        self._read = 0 if self.ranks is None else self.ranks.bytes

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process.

        Args:
            flag: whether it is in this one.

        Returns:
            The same everywhere.
        """
        return flag if self.ranks is None else self.ranks.anywhere(flag)

    def sound(self, check: Callable[[], None]) -> None:
        """Make a check of parameters or optimizer state, which of rows one process alone may fail.

        Args:
            check: raises NotFinite.

        Raises:
            NotFinite: in any process.
        """
        broken: NotFinite | None = None
        try:
            check()
        except NotFinite as error:
            if not self.in_rows:
                raise
            broken = error
        if self.in_rows and self.any(broken is not None):
            raise broken or NotFinite(f"parameters or optimizer state of another process's rows are not finite: {RATE}")

    def spend(self, budget: Budget, meter: Meter, stepped: bool) -> None:
        """Count what went through the model, in all processes.

        Args:
            budget: the counters.
            meter: of what went through it in this one.
            stepped: whether the optimizer has made a step.
        """
        before = 0 if self.ranks is None else self.ranks.bytes
        flops, passes = meter.take(stepped)
        # What the first pass of each kind costs is found by running a few tokens, which a run that goes on does again.
        self._read += 0 if self.ranks is None else self.ranks.bytes - before
        forwarded = sum(one.tokens for one in passes)
        backwarded = sum(one.tokens for one in passes if one.kind != FORWARD)
        if self.ranks is not None:
            names = [part.name for part in fields(Flops)]
            own = [*(getattr(flops, name) for name in names), forwarded, backwarded]
            whole = self.ranks.totals([float(one) for one in own])
            flops = Flops(**dict(zip(names, whole[:-2], strict=True)))
            forwarded, backwarded = int(whole[-2]), int(whole[-1])
            budget.bytes += self.ranks.bytes - self._read
            self._read = self.ranks.bytes
        budget.spend(flops, forwarded, backwarded)

    def check(self, parameters: Mapping[str, nn.Parameter], budget: Budget) -> None:
        """Stop where processes have come apart, after an update at which that is looked at.

        Args:
            parameters: the trained ones, by name.
            budget: the counters, without this update.
        """
        updates = budget.updates + 1
        if self.ranks is not None and updates == 1:
            sent = budget.bytes + self.ranks.bytes - self._read
            numbers = sum(parameter.numel() for parameter in parameters.values())
            plain = 2 * (self.ranks.size - 1) / self.ranks.size * numbers * 4
            log.info(
                "%d processes: this one has sent %.1f MB up to the first update (budget/bytes; what FSDP2 sends of a "
                "model in shards is in it); plain DDP sends %.1f MB an update, its gradient in float32",
                self.ranks.size, sent / 1e6, plain / 1e6,
            )  # fmt: skip
        if self.ranks is not None and due(updates):
            check_same(parameters, self.ranks, updates)

    def backward(self, manual: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
        """What a second pass calls with its loss.

        Args:
            manual: Lightning's, which over several processes would average gradients that are summed already.

        Returns:
            It, or autograd's own.
        """
        return manual if self.ranks is None else torch.Tensor.backward
