"""Examples to token batches: prompt masked, response trained on, truncation counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from winnow.data.example import Example
from winnow.losses import IGNORE


@dataclass(frozen=True)
class Encoded:
    """Token ids of one example.

    Args:
        input_ids: prompt, response and end-of-text.
        labels: the same ids over the response, -100 over the prompt.
        truncated: whether ``max_length`` cut something off.
    """

    input_ids: list[int]
    labels: list[int]
    truncated: bool


def encode_prompt(example: Example, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of the prompt, ready for the response to follow.

    Uses the tokenizer's chat template where it has one; otherwise the prompt and a line break.
    An empty prompt gives only what the tokenizer puts before any text.

    Args:
        example: the example.
        tokenizer: the model's tokenizer.

    Returns:
        The ids.
    """
    if tokenizer.chat_template and (example.messages or example.prompt):
        turns = example.messages[:-1] if example.messages else ({"role": "user", "content": example.prompt},)
        encoded = tokenizer.apply_chat_template(
            [dict(turn) for turn in turns], add_generation_prompt=True, tokenize=True, return_dict=True
        )
        return list(encoded["input_ids"])
    text = f"{example.prompt}\n" if example.prompt else ""
    return list(tokenizer(text)["input_ids"])


def encode(example: Example, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Encoded:
    """Tokenise one example, with loss on the response and the end-of-text token only.

    The end is cut where the example is longer than ``max_length``; a prompt that fills it leaves no
    response token, which makes the example invalid for selection.

    Args:
        example: the example.
        tokenizer: the model's tokenizer.
        max_length: longest sequence kept, in tokens.

    Returns:
        Ids, labels and whether anything was cut.
    """
    prompt = encode_prompt(example, tokenizer)
    response = list(tokenizer(example.response, add_special_tokens=False)["input_ids"])
    if tokenizer.eos_token_id is not None:
        response.append(tokenizer.eos_token_id)
    ids = prompt + response
    labels = [IGNORE] * len(prompt) + response
    return Encoded(ids[:max_length], labels[:max_length], len(ids) > max_length)


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


def take(batch: dict[str, Tensor], index: Int[Tensor, " kept"]) -> dict[str, Tensor]:
    """Rows of a batch, with the padding columns that no kept row needs cut off.

    Args:
        batch: ``input_ids``, ``attention_mask`` and ``labels``, right-padded.
        index: rows to take.

    Returns:
        The smaller batch.
    """
    rows = {name: batch[name][index] for name in ("input_ids", "attention_mask", "labels")}
    length = int(rows["attention_mask"].sum(1).max()) if len(index) else 0
    return {name: value[:, : max(length, 1)] for name, value in rows.items()}


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
