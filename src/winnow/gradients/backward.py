"""One forward and one backward of a batch that hands over per-example gradients and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from winnow.gradients.capture import Capture, OnGradient
from winnow.lm.layout import Batch, response_tokens, right_padded
from winnow.lm.losses import example_losses
from winnow.lm.packing import Packing


def backward_through(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    batch: Batch,
    reduction: str,
    on_gradient: OnGradient,
    prepare: Callable[[Tensor], Tensor] | None = None,
    packing: Packing | None = None,
    hold: bool = False,
) -> Float[Tensor, " batch"]:
    """Losses of a batch, and the gradients of those that are finite.

    Args:
        model: the model.
        parameters: the parameters wanted, by name.
        batch: the examples, padded wherever.
        reduction: ``mean`` | ``sum`` over an example's response tokens.
        on_gradient: called with each parameter's gradients, on the way unless ``hold``.
        prepare: called with the losses before the backward; says which examples' gradients count.
            Those of finite loss, if omitted.
        packing: the batch in rows, to go through the model in place of its padding. The batch goes padded
            after all where a loss is not finite, which may have spoilt its neighbours in the row, or where
            rows are as long as there are attention heads.
        hold: call ``on_gradient`` when the backward is through.

    Returns:
        The losses, detached.
    """
    batch = right_padded(batch)
    size, tokens = batch["input_ids"].shape
    with torch.enable_grad(), Capture(model, parameters, size, tokens, on_gradient, packing, hold) as capture:
        losses = example_losses(model, batch, reduction) if packing is None else packing.losses(model, reduction)
        if packing is None or (
            not capture.ambiguous and bool((losses.isfinite() | (response_tokens(batch) == 0)).all())
        ):
            valid = losses.detach().isfinite() if prepare is None else prepare(losses.detach())
            if bool(valid.any()):
                capture.backward(torch.where(valid, losses, 0).sum(), valid)
            return losses.detach()
    return backward_through(model, parameters, batch, reduction, on_gradient, prepare, hold=hold)
