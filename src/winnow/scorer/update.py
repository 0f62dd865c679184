"""The weighted gradient of a selection by a second forward and backward, for any training loop."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from winnow.lm.forward import Forward
from winnow.lm.layout import Batch, take, weighed
from winnow.lm.passes import TRAINED, Pass
from winnow.selection import Selection

log = logging.getLogger(__name__)


def weighted_backward(
    model: nn.Module,
    pool: Batch,
    selection: Selection,
    reduction: str = "mean",
    backward: Callable[[Tensor], None] = torch.Tensor.backward,
    micro_batch: int | None = None,
    passes: list[Pass] | None = None,
) -> tuple[Selection, Float[Tensor, " pool"]]:
    """Add the gradient of (1/k) sum_i w_i r_i l_i over the kept candidates to ``.grad``, r the rows' own weights.

    A kept candidate whose loss turns out not to be finite is left out, and the rest goes again.

    Args:
        model: a causal language model, in the state it is trained in (dropout on).
        pool: the B candidates that the selection was made from; ``row_weight`` is one where it has none.
        selection: kept candidates and their weights.
        reduction: an example's loss is the ``mean`` or the ``sum`` of its response tokens' losses.
        backward: what to call with the loss; Lightning's ``manual_backward``, for example.
        micro_batch: kept candidates that go through the model at a time, None for all; the share of one
            that is left out then goes to the others of its micro-batch.
        passes: takes what goes through the model.

    Returns:
        What was really trained on (empty if nothing was), and the losses of the pool in float32 on the
        CPU, NaN where they were not computed.
    """
    forward = Forward(model, reduction)
    found = backward_of(forward, pool, selection, backward, micro_batch)
    if passes is not None:
        passes += forward.passes
    return found


def backward_of(
    forward: Forward, pool: Batch, selection: Selection, backward: Callable[[Tensor], None], micro_batch: int | None
) -> tuple[Selection, Float[Tensor, " pool"]]:
    """:func:`weighted_backward` of a model whose batches are laid as ``forward`` says; it notes the passes."""
    if micro_batch is not None and len(selection) > micro_batch:
        return _in_pieces(forward, pool, selection, backward, micro_batch)
    device = pool["labels"].device
    found = torch.full((len(pool["labels"]),), torch.nan, dtype=torch.float32)  # bf16-true changes the default
    while len(selection):
        kept = take(pool, selection.index.to(device))
        losses = forward.laid_losses(kept, TRAINED)
        found[selection.index.cpu()] = losses.detach().cpu().type(found.dtype)
        finite = losses.detach().isfinite()
        if bool(finite.all()):
            backward((weighed(losses, kept) * selection.weight.to(device)).sum() / len(selection))
            break
        log.warning("%d kept candidates without a finite loss left out of the update", int((~finite).sum()))
        finite = finite.to(selection.index.device)
        selection = Selection(selection.index[finite], selection.weight[finite], selection.diagnostics)
    return selection, found


def _in_pieces(
    forward: Forward, pool: Batch, selection: Selection, backward: Callable[[Tensor], None], micro_batch: int
) -> tuple[Selection, Float[Tensor, " pool"]]:
    found = torch.full((len(pool["labels"]),), torch.nan, dtype=torch.float32)
    kept: list[Selection] = []
    for start in range(0, len(selection), micro_batch):
        part = slice(start, start + micro_batch)
        index, weight = selection.index[part], selection.weight[part]
        share = len(index) / len(selection)  # a piece's gradient is divided by its own size

        def scaled(loss: Tensor, share: float = share) -> None:
            backward(loss * share)

        trained, losses = backward_of(forward, pool, Selection(index, weight), scaled, None)
        kept.append(trained)
        found = torch.where(losses.isnan(), found, losses)
    index, weight = torch.cat([part.index for part in kept]), torch.cat([part.weight for part in kept])
    return Selection(index, weight, selection.diagnostics), found
