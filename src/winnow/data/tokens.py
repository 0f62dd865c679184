"""Texts to token ids, and how many of them the text up to a place has."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

BACK = 4
"""Words before a place from which on a text is tokenised again."""


class Cut:
    """A text in tokens, to be cut at places in the text.

    Args:
        text: the text.
        tokenizer: the model's tokenizer.
        special: whether the tokenizer puts its own tokens around it.
    """

    def __init__(self, text: str, tokenizer: PreTrainedTokenizerBase, special: bool) -> None:
        self.text, self.tokenizer, self.special = text, tokenizer, special
        backend = _backend(tokenizer)
        self._found = None if backend is None else backend.encode(text, add_special_tokens=special)
        self.ids = token_ids(text, tokenizer, special) if self._found is None else list(self._found.ids)

    def _restart(self, place: int) -> tuple[int, int] | None:
        """Where, some words before a place, a word begins, and its first token.

        Words are tokenised one by one, and special tokens split a text before anything else does: from there on a text
        can be tokenised alone. A few words before, since the end of a text may change how the last ones are split.
        """
        found = self._found
        if found is None:
            return None
        at = next((token for back in (1, 2, 3) if (token := found.char_to_token(place - back)) is not None), None)
        seen, last = 0, None
        while at is not None and at > 0:
            word = found.token_to_word(at)
            if word is None or word != last:
                seen, last = seen + 1, word
            if seen > BACK:
                return found.token_to_chars(at + 1)[0], at + 1
            at -= 1
        return None

    def tokens(self, place: int) -> tuple[int, bool]:
        """How many ids the text has in common with the text up to a place, tokenised on its own.

        Args:
            place: characters from the beginning.

        Returns:
            The length of the common prefix, and whether it is all of what is tokenised on its own.
        """
        if place >= len(self.text):
            return len(self.ids), True
        restart = self._restart(place)
        if restart is not None:
            begin, first = restart
            count, whole = self._shared(token_ids(self.text[begin:place], self.tokenizer, False), first)
            if whole or count > first + 1:
                return count, whole
        return self._shared(prompt_ids(self.text[:place], self.tokenizer, self.special), 0)

    def _shared(self, alone: list[int], first: int) -> tuple[int, bool]:
        count = first
        for one in alone:
            if count == len(self.ids) or self.ids[count] != one:
                return count, False
            count += 1
        return count, True

    def says(self, start: int, end: int) -> str:
        """What some of the tokens say.

        Args:
            start: the first.
            end: behind the last.

        Returns:
            Their text, special tokens included.
        """
        return decoded(self.ids[start:end], self.tokenizer)

    def again(self, text: str) -> str:
        """What a text says once it has been to tokens and back.

        Args:
            text: any text.

        Returns:
            Mostly the same.
        """
        return decoded(token_ids(text, self.tokenizer, special=False), self.tokenizer)


def _backend(tokenizer: PreTrainedTokenizerBase) -> Any:
    """The tokenizer below, where it can be asked itself: it cuts and pads nothing."""
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
    backend = _backend(tokenizer)
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
