"""The scorer of a pool that several processes share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from winnow.lm.layout import Batch
from winnow.lm.shards import in_rows
from winnow.parallel.base import check_elementwise, in_shards
from winnow.parallel.checks import ParallelChecks
from winnow.parallel.forward import gathered_signals
from winnow.parallel.part import part_of
from winnow.parallel.pool_pass import ParallelPass
from winnow.parallel.ranks import Ranks
from winnow.parallel.stratified import check_pool
from winnow.parallel.update import ParallelUpdate
from winnow.scorer import Scorer
from winnow.scorer.target import TASK


class ParallelScorer(Scorer):
    """As :class:`winnow.Scorer`, over all processes: each is given the whole pool and runs its own rows of it.

    Signals, selection and the update's gradient are the same everywhere, and those of one process to rounding; with
    ``mode=sketch`` b is exact, as it is of pools in pieces. Every method is called by all processes in the same order.
    ``backward`` sums gradients itself: the loss's own backward must not.

    ``pool="per_rank"`` compares no candidates of two processes, and sends none of their gradients: b is against the
    target gradient of all, and so are P and the update, but K is taken of each process's own candidates. Signals then
    have a K of one block for each process, with zeros between blocks that were never computed, and are for
    :class:`winnow.parallel.Stratified` alone.

    Args:
        model: this process's copy of the model.
        optimizer: this process's.
        ranks: the processes; the whole world if omitted.
        pool: ``global`` | ``per_rank``.
        **options: of :class:`winnow.Scorer`, the same everywhere.

    Raises:
        ValueError: as of :class:`winnow.Scorer`, an unknown ``pool``, ``pack`` with a model in shards, or an optimizer
            that looks at whole matrices with parameters in shards.
    """

    __signature__ = inspect.signature(Scorer)  # the options' kinds, for whoever checks them

    def __init__(
        self, model: nn.Module, optimizer: Any, *, ranks: Ranks | None = None, pool: str = "global", **options: Any
    ) -> None:
        check_pool(pool)
        self.ranks = ranks or Ranks()
        self._updating = partial(ParallelUpdate, ranks=self.ranks)
        self._passing = partial(ParallelPass, ranks=self.ranks, blocks=pool == "per_rank")
        self._checking = partial(ParallelChecks, ranks=self.ranks)
        self._forwarded = partial(gathered_signals, self.ranks)
        super().__init__(model, optimizer, **options)
        self._pass.scope.forward.together = in_shards(model)
        if in_shards(model) and self._pass.scope.forward.packed:
            raise ValueError(
                "scoring.pack=true may run a batch once more in one process, and parallel.base=sharded has all run "
                "together: set scoring.pack=false"
            )
        if any(map(in_rows, self._update.trainable.values())):
            check_elementwise(self.geometry)

    def state_dict(self) -> dict[str, Any]:
        """As of one process; called by all of them.

        Returns:
            The same everywhere.
        """
        state = super().state_dict()
        held = state["target"]["gradients"]
        whole = {name: self._of_rows(name, value, self.ranks.join_rows) for name, value in held.items()}
        return state | {"target": state["target"] | {"gradients": whole}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state of however many processes.

        Args:
            state: what ``state_dict`` gave.

        Raises:
            ValueError: the state belongs to other parameters.
        """
        held = state["target"]["gradients"]
        rows = {name: self._of_rows(name, value, self._mine) for name, value in held.items()}
        super().load_state_dict(state | {"target": state["target"] | {"gradients": rows}})

    def _mine(self, tensor: Tensor, height: int) -> Tensor:
        return tensor[self.ranks.rows(height)]

    def _of_rows(self, name: str, tensor: Tensor, change: Callable[[Tensor, int], Tensor]) -> Tensor:
        parameter = self.parameters.get(name.split(TASK)[0])
        return change(tensor, len(parameter)) if parameter is not None and in_rows(parameter) else tensor

    def _referred(self, pool: Batch, ids: Sequence[str] | None) -> Tensor:
        if self._reference.by_id:
            return super()._referred(pool, ids)
        return self.ranks.gather(super()._referred(part_of(pool, self.ranks), None), len(pool["labels"]))
