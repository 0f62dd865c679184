"""Answer NLL: mean over examples of the mean token loss over the response."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from winnow.evaluation.turns import Turns
from winnow.lm.forward import Forward
from winnow.lm.layout import response_tokens
from winnow.lm.passes import FORWARD, Pass


def answer_nll(
    model: nn.Module, batches: Iterable[dict[str, Tensor]], pack: bool = False, passes: list[Pass] | None = None
) -> float:
    """Mean over examples of the response-token NLL, in nats per token.

    Examples without a response token do not count. The model is put in evaluation mode and back.

    Args:
        model: a Hugging Face causal language model.
        batches: token batches with ``input_ids``, ``attention_mask`` and ``labels``.
        pack: lay the examples end to end in rows in place of padding; the same mean.
        passes: takes what goes through the model.

    Returns:
        The mean; NaN if no example has a response token.
    """
    total, count = summed_nll(model, batches, pack, passes)
    return total / count if count else float("nan")


@torch.no_grad()
def summed_nll(
    model: nn.Module,
    batches: Iterable[dict[str, Tensor]],
    pack: bool = False,
    passes: list[Pass] | None = None,
    turns: Turns | None = None,
) -> tuple[float, int]:
    """What :func:`answer_nll` is made of, of the batches that are this process's.

    Args:
        model: a Hugging Face causal language model.
        batches: token batches.
        pack: lay the examples end to end in rows in place of padding.
        passes: takes what goes through the model.
        turns: which batches are this process's; all of them by default.

    Returns:
        The sum over examples, and their number.
    """
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    forward, total, count = Forward(model, packed=pack), 0.0, 0
    try:
        for batch in batches:
            if turns is not None and not turns.mine():
                continue
            rows = {name: value.to(device) for name, value in batch.items()}
            losses = forward.laid_losses(rows, FORWARD)
            active = response_tokens(rows) > 0
            total += float(losses[active].double().sum())
            count += int(active.sum())
    finally:
        model.train(training)
        if passes is not None:
            passes += forward.passes
    return total, count
