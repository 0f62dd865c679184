"""The update after a pool that several processes scored: each adds its candidates' part of the gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from winnow.lm.forward import Forward
from winnow.lm.layout import Batch, take, weighed
from winnow.lm.passes import TRAINED
from winnow.lm.shards import in_rows
from winnow.parallel.held import ParallelHeld, own_of, reached, reduced
from winnow.parallel.part import part_of
from winnow.parallel.ranks import Ranks
from winnow.scorer.held import HeldFactors
from winnow.scorer.one_pass import Update
from winnow.selection import Selection


class ParallelUpdate(Update):
    """Makes updates of what several processes hold, or run a second time.

    Args:
        forward: the model as pools are scored.
        how: ``one_pass`` | ``two_pass`` | ``auto``.
        micro_batch: candidates that go through the model at a time; None for all.
        ranks: the processes.
    """

    def __init__(self, forward: Forward, how: str, micro_batch: int | None, ranks: Ranks) -> None:
        super().__init__(forward, how, micro_batch)
        self.ranks = ranks

    def holding(self, pool: Batch) -> HeldFactors:
        """What holds the factors of a pool.

        Args:
            pool: the whole pool.

        Returns:
            A holder of this process's part.
        """
        return ParallelHeld(self.forward.model, self.trainable, pool, self.ranks)

    def second_pass(
        self, pool: Batch, selection: Selection, backward: Callable[[Tensor], None]
    ) -> tuple[Selection, Float[Tensor, " pool"]]:
        """Run this process's kept candidates again, and sum the gradients of all.

        A process that keeps nothing adds zeros, so that no other one waits for it.

        Args:
            pool: the whole pool.
            selection: of the whole pool.
            backward: what to call with the loss; it must reduce nothing by itself.

        Returns:
            What all processes together have trained on, and the losses they saw.

        Raises:
            RuntimeError: FSDP2 has mixed up gradients, see :func:`check_reached`.
        """
        total = len(pool["labels"])
        before = {name: parameter.grad for name, parameter in self.trainable.items()}
        for parameter in self.trainable.values():
            parameter.grad = None
        own = own_of(selection, self.ranks, total)
        if self.forward.together:
            trained, found = self._in_steps(pool, own, backward)
        else:
            trained, found = super().second_pass(pool, own, backward)
        known = torch.zeros(total, dtype=torch.bool)
        known[trained.index.cpu()] = True
        report = torch.stack([found.nan_to_num(), found.isfinite().float(), known.float()]).to(self.ranks.device)
        losses, seen, kept = self.ranks.sum(report).cpu()
        whole = selection
        if int(kept.sum()) < len(selection):  # losses that were not finite
            there = kept.bool()[selection.index.cpu()].to(selection.index.device)
            whole = Selection(selection.index[there], selection.weight[there], selection.diagnostics)
        scale = 1.0
        if self.micro_batch is None and not self.forward.together:  # their share goes to all the others
            scale = len(trained) * len(selection) / (max(1, len(own)) * max(1, len(whole)))
        self._reduce(scale)
        for name, earlier in before.items():
            if earlier is not None:
                now = self.trainable[name].grad
                self.trainable[name].grad = earlier if now is None else earlier + now
        return whole, torch.where(seen > 0, losses, torch.nan).to(found.dtype)

    def _reduce(self, scale: float) -> None:
        """Sum what backwards have left in ``.grad``; gradients in rows FSDP2 has averaged over the processes."""
        copies = {name: held for name, held in self.trainable.items() if not in_rows(held)}
        names = reached((name for name, held in copies.items() if held.grad is not None), copies, self.ranks)
        parts = ((name, _times(copies[name].grad, scale)) for name in names)
        for name, gradient in reduced(parts, copies, self.ranks):
            copies[name].grad = gradient
        rows = {name: held for name, held in self.trainable.items() if name not in copies}
        if rows:
            check_reached(rows, self.ranks)
        for held in rows.values():
            held.grad = _times(held.grad, self.ranks.size)

    def _in_steps(
        self, pool: Batch, own: Selection, backward: Callable[[Tensor], None]
    ) -> tuple[Selection, Float[Tensor, " pool"]]:
        """As of one process, of a model that all have to run at the same time, whether they keep anything or not."""
        found = torch.full((len(pool["labels"]),), torch.nan, dtype=torch.float32)
        portion = 1 / max(1, len(own))  # what each weight was multiplied by, times those chosen, turned round
        most = int(self.ranks.gather(torch.tensor([len(own)], device=self.ranks.device), self.ranks.size).max())
        size, trained = self.micro_batch or max(1, most), list[Selection]()
        for start in range(0, most, size):
            part = slice(start, start + size)
            piece = Selection(own.index[part], own.weight[part] * portion, own.diagnostics)
            trained.append(self._in_step(pool, piece, found, backward))
        kept = torch.cat([own.index[:0], *(one.index for one in trained)])
        weight = torch.cat([own.weight[:0], *(one.weight / portion for one in trained)])
        return Selection(kept, weight, own.diagnostics), found

    def _in_step(
        self, pool: Batch, own: Selection, found: Float[Tensor, " pool"], backward: Callable[[Tensor], None]
    ) -> Selection:
        """One piece of every process at the same time; ``found`` takes the losses."""
        begun = kept_by_all = self._count(len(own))
        while kept_by_all:
            some, device = len(own) > 0, pool["labels"].device
            kept = take(pool, own.index.to(device)) if some else part_of(pool, self.ranks, only_blank=True)
            losses = self.forward.losses(kept, TRAINED)
            finite = losses.detach().isfinite() if some else torch.ones(len(losses), dtype=torch.bool)
            found[own.index.cpu()] = losses.detach().cpu().type(found.dtype)[: len(own)]
            if not self.ranks.anywhere(not bool(finite.all())):
                share = torch.zeros(len(losses), device=device)
                share = own.weight.to(device) * (begun / kept_by_all) if some else share
                backward((weighed(torch.where(losses.isfinite(), losses, 0), kept) * share).sum())
                break
            there = finite[: len(own)].to(own.index.device)
            own = Selection(own.index[there], own.weight[there], own.diagnostics)
            kept_by_all = self._count(len(own))
        return own

    def _count(self, own: int) -> int:
        return int(self.ranks.sum(torch.tensor([float(own)], device=self.ranks.device)))


def check_reached(parameters: Mapping[str, nn.Parameter], ranks: Ranks) -> None:
    """Refuse gradients of a backward through FSDP2 in which processes had gradients of different parameters.

    It reduces what each of them has, one after another and without a name: the gradient of one expert goes to another.

    Args:
        parameters: those in rows, by name, with what the backward has left in ``.grad``.
        ranks: the processes.

    Raises:
        RuntimeError: some processes' losses reached a parameter, and others' did not.
    """
    mask = torch.tensor([float(held.grad is not None) for held in parameters.values()], device=ranks.device)
    found = zip(parameters, ranks.sum(mask).tolist(), strict=True)
    partly = [name for name, count in found if 0 < count < ranks.size]
    if partly:
        raise RuntimeError(
            f"the loss of some processes reached {partly[0]} and that of others did not ({len(partly)} parameters), "
            "and FSDP2 takes the gradient of one for that of another: with experts that are modules of their own, set "
            "scoring.update=one_pass, or parallel.base=whole"
        )


def _times(gradient: Tensor | None, scale: float) -> Tensor | None:
    return gradient if gradient is None or scale == 1 else gradient * scale
