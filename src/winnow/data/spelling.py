"""What each token of a byte-level vocabulary spells, and so where in a text it stands."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from tokenizers import decoders, pre_tokenizers
from transformers import PreTrainedTokenizerBase

from winnow.data.pieces import Pieces, local

PROBE = "one two three four five six"


class Spelling:
    """The bytes of every token.

    Args:
        tokenizer: a tokenizer with a byte-level vocabulary.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        backend: Any = tokenizer.backend_tokenizer
        byte_of = _bytes_by_letter()
        vocabulary = backend.get_vocab(with_added_tokens=True)
        self.table = [b""] * (1 + max(vocabulary.values()))
        for token, number in vocabulary.items():
            letters = [byte_of.get(letter) for letter in token]
            self.table[number] = bytes(one for one in letters if one is not None) if None not in letters else b"\xff"
        for number, entry in backend.get_added_tokens_decoder().items():
            self.table[number] = entry.content.encode()
        self.around = list(backend.encode("").ids)
        self.backend, self.pieces = backend, Pieces(backend) if local(backend) else None

    def ids(self, text: str, special: bool) -> list[int]:
        """Ids of a text.

        Args:
            text: the text.
            special: whether the tokenizer puts its own tokens around it.

        Returns:
            As the tokenizer gives them.
        """
        if self.pieces is not None and not (special and self.around):
            return self.pieces.ids(text)
        return list(self.backend.encode_batch_fast([text], add_special_tokens=special)[0].ids)

    def parts(self, ids: list[int], text: str, special: bool) -> list[bytes] | None:
        """What each token of a text spells.

        Args:
            ids: the text's tokens.
            text: the text.
            special: whether the tokenizer has put its own tokens around it.

        Returns:
            Bytes that make up the text, none for tokens put before it; None where these are not the text's: a
            tokenizer may change what it is given.
        """
        before = len(self.around) if special else 0
        if ids[:before] != self.around[:before]:
            return None
        table = self.table
        parts = list(map(table.__getitem__, ids[before:]))
        return [b""] * before + parts if b"".join(parts) == text.encode() else None


@lru_cache(maxsize=8)
def spelling(tokenizer: PreTrainedTokenizerBase, size: int) -> Spelling | None:
    """The spelling of a tokenizer.

    Args:
        tokenizer: the model's tokenizer, with a backend.
        size: of its vocabulary, which tells when some were added.

    Returns:
        It; None where the vocabulary is not byte-level, or a word does not begin with the space before it.
    """
    backend: Any = tokenizer.backend_tokenizer
    if not isinstance(backend.decoder, decoders.ByteLevel):
        return None
    made, found = Spelling(tokenizer), backend.encode(PROBE, add_special_tokens=False)
    words: dict[int | None, bytes] = {}
    for number, word in zip(found.ids, found.word_ids, strict=True):
        words[word] = words.get(word, b"") + made.table[number]
    return made if list(words.values()) == [one.encode() for one in re.split("(?= )", PROBE)] else None


def _bytes_by_letter() -> dict[str, int]:
    """The byte that each letter of a byte-level vocabulary stands for: itself if printable, others in order."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    letters = {chr(byte): byte for byte in plain} | {chr(256 + at): byte for at, byte in enumerate(others)}
    assert set(letters) == set(pre_tokenizers.ByteLevel.alphabet())
    return letters
