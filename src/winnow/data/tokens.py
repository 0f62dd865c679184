"""Texts to token ids and back."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase


def backend_of(tokenizer: PreTrainedTokenizerBase) -> Any:
    """The tokenizer below, where it can be asked itself.

    Args:
        tokenizer: the model's tokenizer.

    Returns:
        It; None where there is none, or it would cut or pad.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend if backend is not None and backend.truncation is None and backend.padding is None else None


def decoded(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """What tokens say.

    Args:
        ids: the tokens.
        tokenizer: the model's tokenizer.

    Returns:
        Their text, special tokens included.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return str(backend.decode(ids, skip_special_tokens=False))
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def token_ids(text: str, tokenizer: PreTrainedTokenizerBase, special: bool) -> list[int]:
    """Ids of a text.

    Args:
        text: any text.
        tokenizer: the model's tokenizer.
        special: whether the tokenizer puts its own tokens around it.

    Returns:
        The ids.
    """
    backend = backend_of(tokenizer)
    if backend is not None:
        return list(backend.encode(text, add_special_tokens=special).ids)
    return list(tokenizer(text, add_special_tokens=special)["input_ids"])


def prompt_ids(prompt: str, tokenizer: PreTrainedTokenizerBase, special: bool = True) -> list[int]:
    """Ids of a text behind which more is to come.

    Args:
        prompt: the text.
        tokenizer: the model's tokenizer.
        special: whether the tokenizer puts its own tokens around it.

    Returns:
        The ids, without an end of text that the tokenizer puts behind every text.
    """
    ids = token_ids(prompt, tokenizer, special)
    if special and ids and ids[-1] == tokenizer.eos_token_id:
        ids.pop()
    return ids


def ends(token: int, tokenizer: PreTrainedTokenizerBase, templated: bool) -> bool:
    """Whether a token ends a turn.

    Args:
        token: its id.
        tokenizer: the model's tokenizer.
        templated: whether a chat template may end turns with a special token of its own.

    Returns:
        Whether it does.
    """
    return token == tokenizer.eos_token_id or (templated and token in special_ids(tokenizer, len(tokenizer)))


@lru_cache(maxsize=8)
def special_ids(tokenizer: PreTrainedTokenizerBase, size: int) -> frozenset[int]:
    """Ids of all special tokens, named or only added.

    Args:
        tokenizer: the model's tokenizer.
        size: of its vocabulary, which tells when some were added.

    Returns:
        The ids.
    """
    added = {token for token, entry in tokenizer.added_tokens_decoder.items() if entry.special}
    return frozenset(added | set(tokenizer.all_special_ids))
