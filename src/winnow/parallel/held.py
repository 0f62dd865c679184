"""The update's gradient, summed over the processes that hold the candidates it is made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from winnow.gradients.factors.precision import accumulation_dtype
from winnow.lm.layout import Batch
from winnow.lm.shards import from_rows, here, in_rows
from winnow.parallel.ranks import Ranks
from winnow.scorer.held import HeldFactors
from winnow.selection import Selection

BUCKET = 2**22
"""Numbers that are summed over the processes in one go."""


def own_of(selection: Selection, ranks: Ranks, total: int) -> Selection:
    """What this process trains on, so that its mean gradient is its part of the whole one.

    Args:
        selection: of the whole pool.
        ranks: the processes.
        total: candidates of the pool.

    Returns:
        Its candidates by their places in the pool, weights times (its number / the whole number).
    """
    rows = ranks.rows(total)
    mine = (selection.index >= rows.start) & (selection.index < rows.stop)
    share = int(mine.sum()) / max(1, len(selection))
    return Selection(selection.index[mine], selection.weight[mine] * share, selection.diagnostics)


def reduced(
    gradients: Iterable[tuple[str, Tensor | None]], parameters: Mapping[str, nn.Parameter], ranks: Ranks
) -> Iterator[tuple[str, Tensor]]:
    """Sums of gradients over the processes, in buckets; of parameters in rows, each process gets its own.

    Args:
        gradients: of every parameter, in one order everywhere; None counts as zeros.
        parameters: by name, for shape and precision.
        ranks: the processes.

    Yields:
        Names and sums.
    """
    bucket: dict[str, Tensor] = {}

    def summed() -> Iterator[tuple[str, Tensor]]:
        yield from zip(bucket, ranks.sums(list(bucket.values())), strict=True)
        bucket.clear()

    for name, gradient in gradients:
        parameter = parameters[name]
        held = gradient
        if held is None:
            held = torch.zeros(parameter.shape, dtype=parameter.dtype, device=parameter.device)
        if in_rows(parameter):
            yield name, from_rows(ranks.sum_rows(held), parameter)
            continue
        if bucket and next(iter(bucket.values())).dtype != held.dtype:
            yield from summed()
        bucket[name] = held
        if sum(one.numel() for one in bucket.values()) >= BUCKET:
            yield from summed()
    yield from summed()


def reached(own: Iterable[str], parameters: Mapping[str, nn.Parameter], ranks: Ranks) -> list[str]:
    """Parameters that have a gradient in some process, in one order everywhere.

    Args:
        own: those of this process.
        parameters: all trained ones, by name.
        ranks: the processes.

    Returns:
        Their names.
    """
    known = set(own)
    mask = torch.tensor([float(name in known) for name in parameters], device=ranks.device)
    return [name for name, found in zip(parameters, ranks.sum(mask).tolist(), strict=True) if found]


def summed(own: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter], ranks: Ranks) -> dict[str, Tensor]:
    """Sums over the processes of what each has by parameter, in the precision of sums.

    Args:
        own: of this process; a parameter that is missing counts as zeros.
        parameters: all of them, by name.
        ranks: the processes.

    Returns:
        Of every parameter that some process has; of one in rows, those that are here.
    """

    def parts() -> Iterator[tuple[str, Tensor]]:
        for name in reached(own, parameters, ranks):
            parameter, found = parameters[name], own.get(name)
            dtype = accumulation_dtype(parameter.dtype)
            if found is None:
                found = torch.zeros(parameter.shape, dtype=dtype, device=parameter.device)
            yield name, found.to(dtype)

    return {name: here(value) for name, value in reduced(parts(), parameters, ranks)}


class ParallelHeld(HeldFactors):
    """Factors of this process's candidates, from which all processes together make the update.

    Args:
        model: the model.
        parameters: the trainable parameters, by name.
        pool: the whole pool that is about to be scored.
        ranks: the processes.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, nn.Parameter], pool: Batch, ranks: Ranks) -> None:
        super().__init__(model, parameters, pool)
        self.ranks = ranks

    def weighted(self, selection: Selection) -> dict[str, Tensor]:
        """The update's gradient (1/k) sum_i w_i g_i over the candidates of all processes.

        Args:
            selection: of the whole pool.

        Returns:
            Gradients by name, the same everywhere; empty for an empty selection.
        """
        return dict(self._summed(selection)) if len(selection) else {}

    def assign(self, selection: Selection, accumulate: bool = False) -> None:
        """Write the update's gradient to ``.grad`` and let go of the factors.

        Args:
            selection: of the whole pool; nothing is written if it is empty.
            accumulate: add to a gradient that is there, instead of replacing it.
        """
        if not accumulate:
            for parameter in self.parameters.values():
                parameter.grad = None
        if len(selection):
            for name, gradient in self._summed(selection):
                parameter = self.parameters[name]
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        self.factors.clear()

    def cost(self, selection: Selection) -> float:
        """Multiplications that this process's part of the update's gradient takes.

        Args:
            selection: of the whole pool.

        Returns:
            As of one process, of its own candidates.
        """
        return super().cost(own_of(selection, self.ranks, len(self._pool["labels"])))

    def _summed(self, selection: Selection) -> Iterator[tuple[str, Tensor]]:
        total = len(self._pool["labels"])
        own = own_of(selection, self.ranks, total)
        local = Selection(own.index - self.ranks.rows(total).start, own.weight)
        share = local.weight.double() / max(1, len(local))

        def parts() -> Iterator[tuple[str, Tensor | None]]:
            for name in reached(self.factors, self.parameters, self.ranks):
                there = len(local) and name in self.factors
                yield name, self._combine(name, share, local) if there else None

        return reduced(parts(), self.parameters, self.ranks)
