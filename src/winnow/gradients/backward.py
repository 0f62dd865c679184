"""One forward and one backward of a batch that hands over per-example gradients and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from winnow.gradients.capture import Capture, OnGradient
from winnow.lm.forward import Forward
from winnow.lm.layout import Batch, response_tokens, right_padded, weighed
from winnow.lm.packing import Packing
from winnow.lm.passes import CAPTURED


def backward_through(
    forward: Forward,
    parameters: Mapping[str, nn.Parameter],
    batch: Batch,
    on_gradient: OnGradient,
    *,
    counts: Callable[[Tensor], Tensor] = torch.isfinite,
    hold: bool = False,
) -> Float[Tensor, " batch"]:
    """Losses of a batch, and the gradients of those that are finite, each times its row's weight.

    A batch that is laid in rows goes padded after all where a loss is not finite, which may have spoilt its neighbours
    in the row, or where rows are as long as there are attention heads.

    Args:
        forward: the model.
        parameters: the parameters wanted, by name.
        batch: the examples, padded wherever.
        on_gradient: called with each parameter's gradients, on the way unless ``hold``.
        counts: called with the losses before the backward; says which examples' gradients count.
        hold: call ``on_gradient`` after the backward.

    Returns:
        The losses, detached and without weights.
    """
    batch = right_padded(batch)
    rows = forward.rows(batch)
    losses = None if rows is None else _through(forward, rows, parameters, batch, on_gradient, counts, hold)
    if losses is None:
        losses = _through(forward, None, parameters, batch, on_gradient, counts, hold)
    assert losses is not None
    return losses


def _through(
    forward: Forward,
    rows: Packing | None,
    parameters: Mapping[str, nn.Parameter],
    batch: Batch,
    on_gradient: OnGradient,
    counts: Callable[[Tensor], Tensor],
    hold: bool,
) -> Float[Tensor, " batch"] | None:
    size, tokens = batch["input_ids"].shape
    with torch.enable_grad(), Capture(forward.model, parameters, size, tokens, on_gradient, rows, hold) as capture:
        losses = forward.losses(batch, CAPTURED) if rows is None else forward.packed_losses(rows, CAPTURED)
        if rows is not None and (
            capture.ambiguous or not bool((losses.isfinite() | (response_tokens(batch) == 0)).all())
        ):
            return None
        valid = counts(losses.detach())
        if bool(valid.any()) or forward.together:
            capture.backward(weighed(torch.where(valid, losses, 0), batch).sum(), valid)
        return losses.detach()
