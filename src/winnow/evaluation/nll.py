"""Answer NLL: mean over examples of the mean token loss over the response."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from winnow.lm.layout import response_tokens
from winnow.lm.losses import example_losses


@torch.no_grad()
def answer_nll(model: nn.Module, batches: Iterable[dict[str, Tensor]]) -> float:
    """Mean over examples of the response-token NLL, in nats per token.

    Examples without a response token do not count. The model is put in evaluation mode and back.

    Args:
        model: a Hugging Face causal language model.
        batches: token batches with ``input_ids``, ``attention_mask`` and ``labels``.

    Returns:
        The mean; NaN if no example has a response token.
    """
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    total, count = 0.0, 0
    try:
        for batch in batches:
            rows = {name: value.to(device) for name, value in batch.items()}
            losses = example_losses(model, rows)
            active = response_tokens(rows) > 0
            total += float(losses[active].double().sum())
            count += int(active.sum())
    finally:
        model.train(training)
    return total / count if count else float("nan")
