"""Encoded examples to token batches, and what the records keep of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from winnow.data.encoding import Encoded
from winnow.data.example import Example
from winnow.lm.ignore import IGNORE


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id used for padding: the tokenizer's own, else its end-of-text, else 0.

    Args:
        tokenizer: the model's tokenizer.

    Returns:
        A token id; padding is masked, so the choice changes nothing.
    """
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0


def collate(rows: Sequence[Encoded], pad: int) -> dict[str, Int[Tensor, "batch tokens"]]:
    """Pad encoded examples on the right into one batch.

    Args:
        rows: at least one example.
        pad: id of the padding token.

    Returns:
        ``input_ids``, ``attention_mask`` and ``labels``.
    """
    length = max(1, max(len(row.input_ids) for row in rows))

    def stack(parts: list[list[int]], fill: int) -> Tensor:
        return torch.tensor([part + [fill] * (length - len(part)) for part in parts], dtype=torch.long)

    return {
        "input_ids": stack([row.input_ids for row in rows], pad),
        "attention_mask": stack([[1] * len(row.input_ids) for row in rows], 0),
        "labels": stack([row.labels for row in rows], IGNORE),
    }


def describe(examples: Sequence[Example]) -> dict[str, list[Any]]:
    """What the records keep of a pool beside its tokens, as lists of strings.

    Args:
        examples: the pool's examples.

    Returns:
        ids, sources, groups and noises (hidden labels, for analysis only), prompts and responses.
    """
    return {
        "id": [example.id for example in examples],
        "source": [example.source for example in examples],
        "group": [example.labels.get("group", "") for example in examples],
        "noise": [example.labels.get("noise", "") for example in examples],
        "prompt": [example.prompt for example in examples],
        "response": [example.response for example in examples],
    }
