"""Examples to token batches: prompt masked, response trained on, truncation counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Int
from jinja2.exceptions import TemplateError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from winnow.data.example import Example
from winnow.lm.losses import IGNORE
from winnow.records.shown import shown


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

    Raises:
        ValueError: the chat template refuses the example's turns.
    """
    return _prompt_ids(_render(example, tokenizer)[0], tokenizer, _templated(example, tokenizer))


def encode(example: Example, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Encoded:
    """Tokenise one example, with loss on the response and on what ends it, and on nothing else.

    With a chat template the ids are those of ``apply_chat_template`` on the whole conversation, up to
    and including the token that ends the assistant's turn; the loss begins where a generation would.
    Without one, or where the template ends turns with plain text, the end-of-text token ends the response.

    The end is cut where the example is longer than ``max_length``; a prompt that fills it leaves no
    response token, which makes the example invalid for selection.

    Args:
        example: the example.
        tokenizer: the model's tokenizer.
        max_length: longest sequence kept, in tokens.

    Returns:
        Ids, labels and whether anything was cut.

    Raises:
        ValueError: the chat template refuses the example's turns.
    """
    templated = _templated(example, tokenizer)
    prompt, completion = _render(example, tokenizer)
    before = _prompt_ids(prompt, tokenizer, templated)
    # In one piece where that leaves the prompt's tokens as a generation meets them: a SentencePiece
    # tokenizer would put a space before a response on its own.
    whole = _ids(prompt + completion, tokenizer, special=not templated)
    after = whole[len(before) :] if whole[: len(before)] == before else _ids(completion, tokenizer, special=False)
    if tokenizer.eos_token_id is not None and not (after and _ends(after[-1], tokenizer, templated)):
        after.append(tokenizer.eos_token_id)
    ids, labels = before + after, [IGNORE] * len(before) + after
    return Encoded(ids[:max_length], labels[:max_length], len(ids) > max_length)


def stop_token_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens that end a response, as this module trains them: generation stops there.

    Args:
        tokenizer: the model's tokenizer.

    Returns:
        End-of-text, and the chat template's end of turn where that is another token.
    """
    last = encode(Example("", "", "a", "b"), tokenizer, 2**31).input_ids[-1]
    stops = {last} if _ends(last, tokenizer, templated=True) else set()
    return stops | ({tokenizer.eos_token_id} - {None})


def _templated(example: Example, tokenizer: PreTrainedTokenizerBase) -> bool:
    return bool(tokenizer.chat_template) and bool(example.messages or example.prompt)


def _render(example: Example, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """Prompt and completion as text; the completion includes the end of the turn where a template writes one."""
    if not _templated(example, tokenizer):
        return (f"{example.prompt}\n" if example.prompt else ""), example.response
    asked = ({"role": "user", "content": example.prompt},)
    answered = {"role": "assistant", "content": example.response}
    turns = [dict(turn) for turn in (example.messages or (*asked, answered))]
    try:
        prompt = str(tokenizer.apply_chat_template(turns[:-1], add_generation_prompt=True, tokenize=False))
        whole = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except TemplateError as error:
        raise ValueError(
            f"example {shown(example.id)}: the tokenizer's chat template refuses its turns "
            f"({', '.join(shown(turn['role']) for turn in turns)}): {shown(error)}"
        ) from error
    if whole.startswith(prompt):
        completion = whole[len(prompt) :]
    else:
        # A template that opens a generation with more than it keeps of a reply, such as a thinking mark.
        _, found, end = whole.rpartition(example.response.strip() or example.response)
        completion = example.response + (end if found else "")
    # The line break after an end of turn is never generated.
    return prompt, completion.rstrip()


def _ids(text: str, tokenizer: PreTrainedTokenizerBase, special: bool) -> list[int]:
    return list(tokenizer(text, add_special_tokens=special)["input_ids"])


def _prompt_ids(prompt: str, tokenizer: PreTrainedTokenizerBase, templated: bool) -> list[int]:
    # A template writes its special tokens itself.
    ids = _ids(prompt, tokenizer, special=not templated)
    if not templated and ids and ids[-1] == tokenizer.eos_token_id:
        ids.pop()  # of a tokenizer that ends every text; the response is still to come
    return ids


def _ends(token: int, tokenizer: PreTrainedTokenizerBase, templated: bool) -> bool:
    return token == tokenizer.eos_token_id or (templated and token in _special(tokenizer, len(tokenizer)))


@lru_cache(maxsize=8)
def _special(tokenizer: PreTrainedTokenizerBase, size: int) -> frozenset[int]:
    """Ids of all special tokens, named or only added; ``size`` tells when some were added."""
    added = {token for token, entry in tokenizer.added_tokens_decoder.items() if entry.special}
    return frozenset(added | set(tokenizer.all_special_ids))


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
