"""Negative log-likelihood of tokens without a float32 copy of the logits, a block of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from winnow.lm.ignore import IGNORE

CPU_ELEMENTS = 2**18
"""Logits of a block on a CPU: 1 MiB in float32, so that what follows the first pass over them stays in the cache."""
GPU_ELEMENTS = 2**26


class TokenNLL(torch.autograd.Function):
    """-log softmax(logits)[label], differentiable twice.

    Forward keeps the logits and labels alone. Backward takes the softmax again, so that besides the
    gradient there is never more than a block of probabilities.
    """

    @staticmethod
    def forward(logits: Tensor, labels: Tensor) -> Tensor:
        """Losses of all rows.

        Args:
            logits: [rows, vocab], in any precision.
            labels: [rows]; ``IGNORE`` where there is no loss.

        Returns:
            [rows] in float32, or float64 for such logits; zero where there is no loss.
        """
        out = torch.zeros(len(labels), dtype=_wide(logits.dtype), device=logits.device)
        for rows, block, label in _blocks(logits, labels):
            out[rows] = -block.log_softmax(1).gather(1, label[:, None]).squeeze(1)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        """Keep what backward needs.

        Args:
            ctx: autograd's context.
            inputs: logits and labels.
            output: the losses.
        """
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """(softmax(logits) - onehot(label)) times the gradient of the row's loss.

        Args:
            ctx: autograd's context.
            grad: [rows], gradient of the losses.

        Returns:
            The gradient of the logits, in their precision.
        """
        logits, labels = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted: the graph has to hold everything
            return _differentiable(logits, labels, grad), None
        whole = bool((labels != IGNORE).all())
        out = torch.empty_like(logits) if whole else torch.zeros_like(logits)
        for rows, block, label in _blocks(logits, labels):
            share = grad[rows, None]
            chance = block.softmax(1).mul_(share)
            out[rows] = chance.scatter_add_(1, label[:, None], -share).to(out.dtype)
        return out, None


def token_nll(
    logits: Float[Tensor, "*positions vocab"], labels: Int[Tensor, "*positions"]
) -> Float[Tensor, "*positions"]:
    """Negative log-likelihood of every labelled position.

    Args:
        logits: of every position, in any precision.
        labels: the token to predict there; ``IGNORE`` where there is no loss.

    Returns:
        In nats, float32 (float64 for such logits); exactly zero where there is no loss, whatever the logits are.
    """
    found: Tensor = TokenNLL.apply(logits.flatten(0, -2), labels.flatten())
    return found.view(labels.shape)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _blocks(logits: Tensor, labels: Tensor) -> Iterator[tuple[slice | Tensor, Tensor, Tensor]]:
    """Labelled rows, their logits in the wide precision and their labels, a block at a time."""
    found = (labels != IGNORE).nonzero().squeeze(1)
    whole = len(found) == len(labels)
    step = max(1, (CPU_ELEMENTS if logits.device.type == "cpu" else GPU_ELEMENTS) // max(1, logits.shape[1]))
    for start in range(0, len(found), step):
        rows = slice(start, start + step) if whole else found[start : start + step]
        yield rows, logits[rows].to(_wide(logits.dtype)), labels[rows]


def _differentiable(logits: Tensor, labels: Tensor, grad: Tensor) -> Tensor:
    found = (labels != IGNORE).nonzero().squeeze(1)
    block, share = logits[found].to(_wide(logits.dtype)), grad[found, None]
    chance = (block.softmax(1) * share).scatter_add(1, labels[found, None], -share)
    return torch.zeros_like(logits).index_copy(0, found, chance.to(logits.dtype))
