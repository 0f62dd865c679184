"""Where the words around a place in a text begin, and at which token."""

from __future__ import annotations

import re
from bisect import bisect_left
from itertools import accumulate
from typing import Any, Protocol

BACK = 4
"""Words between a place and where the text is tokenised from: its end may change how the last ones are split."""
SIGHT = 200
"""Characters on each side of a place among which words are looked for."""
WORD = re.compile(r"(?<=\S) (?=[^\W\d_])")
"""Where a word begins for sure: at a space between what is none and a letter."""


class Words(Protocol):
    """The words of a text that was tokenised."""

    def before(self, place: int) -> tuple[int, int] | None:
        """Where, some words before a place, a word begins, and its first token.

        Args:
            place: characters from the beginning.

        Returns:
            Character and token; None where no such word is found.
        """

    def behind(self, place: int) -> tuple[tuple[int, int], int] | None:
        """Where, some words behind a place, a word begins, and its first token.

        Args:
            place: characters from the beginning.

        Returns:
            Character and token, and where a later word begins; None where no such words are found.
        """

    def says(self, start: int, end: int) -> str | None:
        """What some of the tokens say.

        Args:
            start: the first.
            end: behind the last.

        Returns:
            Their text; None where only the tokenizer knows.
        """


class Spelled:
    """Words of a text of which it is known what each token spells.

    Args:
        text: the text.
        parts: bytes of each token, together those of the text.
    """

    def __init__(self, text: str, parts: list[bytes]) -> None:
        self.text, self.parts, self.narrow = text, parts, text.isascii()
        self.ends = list(accumulate(map(len, parts)))

    def before(self, place: int) -> tuple[int, int] | None:
        """As the protocol says."""
        spots = [found.start() for found in WORD.finditer(self.text, max(1, place - SIGHT), place)]
        return next(filter(None, map(self._token, spots[:-BACK][::-1])), None)

    def behind(self, place: int) -> tuple[tuple[int, int], int] | None:
        """As the protocol says."""
        spots = [found.start() for found in WORD.finditer(self.text, place + 1, place + SIGHT)]
        begin = next(filter(None, map(self._token, spots[BACK:-BACK])), None)
        return None if begin is None else (begin, spots[-1])

    def _token(self, begin: int) -> tuple[int, int] | None:
        """A character and the token that begins there; None where none does."""
        byte = begin if self.narrow else len(self.text[:begin].encode())
        at = bisect_left(self.ends, byte)
        return (begin, at + 1) if self.ends[at] == byte else None

    def says(self, start: int, end: int) -> str:
        """As the protocol says."""
        return b"".join(self.parts[start:end]).decode("utf-8", "replace")


class Found:
    """Words of a text as the tokenizer told them.

    Args:
        found: its encoding, with the place of every token.
    """

    def __init__(self, found: Any) -> None:
        self.found = found

    def before(self, place: int) -> tuple[int, int] | None:
        """As the protocol says."""
        found = self.found
        near = range(place - 1, max(-1, place - 4), -1)
        at = next((token for char in near if (token := found.char_to_token(char)) is not None), None)
        seen, last = 0, None
        while at is not None and at > 0:
            word = found.token_to_word(at)
            if word is None or word != last:
                seen, last = seen + 1, word
            if seen > BACK:
                return found.token_to_chars(at + 1)[0], at + 1
            at -= 1
        return None

    def behind(self, place: int) -> tuple[tuple[int, int], int] | None:
        """As the protocol says."""
        found = self.found
        at = next((token for char in range(place, place + 3) if (token := found.char_to_token(char)) is not None), None)
        starts: list[int] = []
        if at is None or found.special_tokens_mask[-1]:  # which is put behind every text, and is not in part of one
            return None
        last = found.token_to_word(at)
        for token in range(at + 1, min(at + SIGHT, len(found.ids))):
            word, chars = found.token_to_word(token), found.token_to_chars(token)
            if word is None or chars is None or word != last:
                starts, last = [*starts, token], word
            if len(starts) > 2 * BACK:
                break
        if len(starts) <= 2 * BACK or found.token_to_chars(starts[BACK]) is None:
            return None
        end = found.token_to_chars(starts[-1])
        return None if end is None else ((found.token_to_chars(starts[BACK])[0], starts[BACK]), end[0])

    def says(self, start: int, end: int) -> None:
        """As the protocol says."""
