"""A text in tokens, and how many of them the text up to a place has.

Words are tokenised one by one, and special tokens split a text before anything else does: from where a word begins a
text can be tokenised alone, and what is asked about a place is found by the few words around it.
"""

from __future__ import annotations

import os

from transformers import PreTrainedTokenizerBase

from winnow.data.helpers import HELPER
from winnow.data.spelling import spelling
from winnow.data.tokens import backend_of, decoded, prompt_ids, token_ids
from winnow.data.words import Found, Spelled, Words


class Cut:
    """A text in tokens, to be cut at places in the text.

    Args:
        text: the text.
        tokenizer: the model's tokenizer.
        special: whether the tokenizer puts its own tokens around it.
    """

    def __init__(self, text: str, tokenizer: PreTrainedTokenizerBase, special: bool) -> None:
        self.text, self.tokenizer, self.special = text, tokenizer, special
        self.words: Words | None = None
        self.backend = backend_of(tokenizer)
        if self.backend is None:
            self.ids = token_ids(text, tokenizer, special)
            return
        # What is known of a tokenizer holds as long as nobody changes it, and a batch must not start threads: of a
        # helper's process both are sure.
        known = spelling(tokenizer, len(tokenizer)) if os.environ.get(HELPER) else None
        if known is not None:
            ids = known.ids(text, special)
            parts = known.parts(ids, text, special)
            if parts is not None:
                self.ids, self.words = ids, Spelled(text, parts)
                return
        found = self.backend.encode(text, add_special_tokens=special)
        self.ids, self.words = found.ids, Found(found)

    def tokens(self, place: int) -> tuple[int, bool]:
        """How many ids the text has in common with the text up to a place, tokenised on its own.

        Args:
            place: characters from the beginning.

        Returns:
            The length of the common prefix, and whether it is all of what is tokenised on its own.
        """
        if place >= len(self.text):
            return len(self.ids), True
        alone, first = self._upto(place)
        return self._shared(alone, first)

    def sides(self, place: int) -> tuple[list[int], list[int]]:
        """Ids of the text up to a place as it is on its own, and of what follows it.

        Args:
            place: characters from the beginning, before the end.

        Returns:
            Both; together those of the text where it begins as what stands before the place does.
        """
        alone, first = self._upto(place)
        count, whole = self._shared(alone, first)
        if whole:
            return self.ids[:count], self.ids[count:]
        return self.ids[:first] + alone, self._rest(place)

    def _upto(self, place: int) -> tuple[list[int], int]:
        """Ids of the text up to a place on its own, from some position on; before it they are the text's."""
        restart = None if self.words is None else self.words.before(place)
        if restart is not None:
            begin, first = restart
            alone = token_ids(self.text[begin:place], self.tokenizer, False)
            if alone[:2] == self.ids[first : first + len(alone)][:2]:
                return alone, first
        return prompt_ids(self.text[:place], self.tokenizer, self.special), 0

    def _rest(self, place: int) -> list[int]:
        """Ids of the text from a place on, on its own."""
        there = None if self.words is None else self.words.behind(place)
        if there is not None and self.backend is not None:
            (begin, first), end = there
            # As above, the end of a text may change how its last words are split: it is some words further on.
            found = self.backend.encode(self.text[place:end], add_special_tokens=False)
            at = found.char_to_token(begin - place)
            if at and found.ids[at : at + 3] == self.ids[first : first + 3]:
                return found.ids[:at] + self.ids[first:]
        return token_ids(self.text[place:], self.tokenizer, False)

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
        said = None if self.words is None else self.words.says(start, end)
        return decoded(self.ids[start:end], self.tokenizer) if said is None else said

    def again(self, text: str) -> str:
        """What a text says once it has been to tokens and back.

        Args:
            text: any text.

        Returns:
            Mostly the same.
        """
        return decoded(token_ids(text, self.tokenizer, special=False), self.tokenizer)
