"""Embedding tables."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from winnow.gradients.factors.base import Factor
from winnow.gradients.factors.scatter import Scatter
from winnow.gradients.layers.call import Call, LayerRule, by_token


def embedding(module: nn.Module, call: Call, names: Iterable[str]) -> dict[str, Factor]:
    """``nn.Embedding``: output gradients scattered to their tokens; ``padding_idx`` gets none.

    Args:
        module: the table.
        call: token ids and output gradient.
        names: ``weight``.

    Returns:
        The gradient of ``weight``.
    """
    assert isinstance(module, nn.Embedding)
    tokens, values = call.input.flatten(1), by_token(call.grad)
    if module.padding_idx is not None:
        values = values.masked_fill((tokens == module.padding_idx)[:, :, None], 0)
    return {name: Scatter(tokens, values, module.num_embeddings) for name in names}


EMBEDDING = LayerRule(lambda module: type(module).forward is nn.Embedding.forward, embedding)
