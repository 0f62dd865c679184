"""What a forward pass alone says about examples: pooled hidden states, and nuclear norms of their logits."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from winnow.lm.layout import Batch, positions, response_mask

ROWS = 8192
"""Rows of the output layer raised to float64 at a time."""


class LastHidden:
    """Context in which a forward leaves the backbone's last hidden states in ``states``.

    They are what the output layer is applied to, for Hugging Face causal language models, wrapped by peft or not.

    Args:
        model: the model to be called inside the context.

    Raises:
        ValueError: the model has no backbone of its own.
    """

    def __init__(self, model: nn.Module) -> None:
        inner = unwrapped(model)
        # The decoder, not `base_model`: some families call it past the module that holds it.
        backbone = inner.get_decoder() if hasattr(inner, "get_decoder") else None
        if not isinstance(backbone, nn.Module) or backbone is inner:
            raise ValueError(
                f"{type(inner).__name__} has no backbone (`get_decoder`) to read hidden states from: use a selector "
                "that needs none, or a Hugging Face causal language model"
            )
        self.backbone: nn.Module = backbone
        self.states: Float[Tensor, "batch tokens width"] | None = None
        self._handle: torch.utils.hooks.RemovableHandle | None = None

    def __enter__(self) -> LastHidden:
        """Put the hook on."""
        self._handle = self.backbone.register_forward_hook(self._hook)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the hook off."""
        if self._handle is not None:
            self._handle.remove()

    def _hook(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.states = output.last_hidden_state if hasattr(output, "last_hidden_state") else output[0]


def unwrapped(model: nn.Module) -> Any:
    """The Hugging Face model inside peft's and torch.compile's wrappers.

    Args:
        model: a causal language model, possibly wrapped.

    Returns:
        The model itself.
    """
    inner: Any = getattr(model, "_orig_mod", model)
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


def pooled(
    states: Float[Tensor, "batch tokens width"], attention_mask: Int[Tensor, "batch tokens"], pooling: str
) -> Float[Tensor, "batch width"]:
    """Mean of the states of an example's tokens, prompt and response.

    Args:
        states: hidden states.
        attention_mask: 1 for tokens, 0 for padding.
        pooling: ``mean``, or ``position`` for weights 1, 2, 3, ... along the tokens (Muennighoff 2022).

    Returns:
        One vector per example, in float32 at least; zero for one without tokens.
    """
    mask = attention_mask.bool()
    weight = positions(attention_mask) + 1 if pooling == "position" else torch.ones_like(attention_mask)
    weight = torch.where(mask, weight, 0)
    wide = torch.promote_types(states.dtype, torch.float32)
    states = torch.where(mask[:, :, None], states.to(wide), 0)  # padding may hold anything, NaN included
    share = weight.to(wide) / weight.sum(1, keepdim=True).clamp_min(1)
    return torch.einsum("btw,bt->bw", states, share)


def nuclear_norms(
    model: nn.Module, states: Float[Tensor, "batch tokens width"], batch: Batch
) -> Float[Tensor, " batch"]:
    """Sums of the singular values of each example's logits at its response positions.

    With logits H W^T, their squared singular values are the eigenvalues of H (W^T W) H^T, a matrix of the size of the
    response; of a response longer than H is wide, the triangular factor of H stands for H. No matrix of the
    vocabulary's size is decomposed, and the logits are not needed. Work is in float64.

    Args:
        model: its output layer gives W, and a bias if it has one.
        states: last hidden states H.
        batch: right-padded as the states are; ``labels`` say which positions are a response's.

    Returns:
        The norms of the logits as the output layer gives them, before any scale or cap the model puts on them; zero
        for an example without response tokens.

    Raises:
        ValueError: the model has no linear output layer.
    """
    head = unwrapped(model).get_output_embeddings()
    if head is None or not hasattr(head, "weight"):
        raise ValueError(f"{type(unwrapped(model)).__name__} has no output layer whose logits could be measured")
    product = _head_product(head)
    mask = response_mask(batch["labels"])
    norms = []
    for row, chosen in zip(states[:, :-1], mask, strict=True):
        matrix = row[chosen].double()
        if getattr(head, "bias", None) is not None:
            matrix = torch.cat([matrix, matrix.new_ones(len(matrix), 1)], dim=1)
        if not bool(matrix.isfinite().all()):
            norms.append(product.new_tensor(torch.nan))
            continue
        if len(matrix) > matrix.shape[1]:
            matrix = torch.linalg.qr(matrix, mode="r").R
        small = matrix @ product @ matrix.T
        norms.append(torch.linalg.eigvalsh((small + small.T) / 2).clamp_min(0).sqrt().sum())
    return torch.stack(norms).to(torch.promote_types(states.dtype, torch.float32))


def _head_product(head: nn.Module) -> Float[Tensor, "width width"]:
    """W^T W of the output layer, W with its bias as one more column."""
    weight: Any = head.weight
    bias: Any = getattr(head, "bias", None)
    width = weight.shape[1] + (bias is not None)
    product = torch.zeros(width, width, dtype=torch.float64, device=weight.device)
    for start in range(0, len(weight), ROWS):
        part = weight[start : start + ROWS].double()
        if bias is not None:
            part = torch.cat([part, bias[start : start + ROWS, None].double()], dim=1)
        product.addmm_(part.T, part)
    return product
