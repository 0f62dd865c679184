"""Texts to ids by their words, each of which is tokenised once: of most texts all words were met before.

That is what a tokenizer gives only where it splits a text before every space that follows anything but white space,
whatever stands around it, and finds no token across such a place: where its patterns are known to.
"""

from __future__ import annotations

import json
from itertools import chain
from typing import Any

from tokenizers import models

WORDS = 1 << 16
"""Most words that are kept; those that come often come early."""
LONGEST = 32
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {
    r"\d",
    r"\p{N}",
    r"\p{N}{1,3}",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    rf"{CONTRACTIONS}\p{{N}}{REST}",
    rf"{CONTRACTIONS}\p{{N}}{{1,3}}{REST}",
}
"""GPT-2's, Qwen's and Llama 3's, and those for digits. None matches white space behind anything else, and none looks
back; ahead they look for the end of white space alone."""


def local(backend: Any) -> bool:
    """Whether a text is tokenised by words that begin at its spaces.

    Args:
        backend: a tokenizer of ``tokenizers`` without normaliser.

    Returns:
        Whether it is known to.
    """
    plain = isinstance(backend.model, models.BPE) and not backend.model.dropout and backend.normalizer is None
    if not plain or backend.pre_tokenizer is None:
        return False
    for token in backend.get_added_tokens_decoder().values():
        if token.lstrip or token.rstrip or token.single_word or " " in token.content:
            return False
    return _splits(json.loads(backend.pre_tokenizer.__getstate__()))


def _splits(splitter: dict[str, Any]) -> bool:
    kind = splitter["type"]
    if kind == "Sequence":
        return all(map(_splits, splitter["pretokenizers"]))
    if kind == "Split":
        known = splitter["pattern"].get("Regex") in PATTERNS
        return bool(known and splitter["behavior"] == "Isolated" and not splitter["invert"])
    return kind == "Digits" or (kind == "ByteLevel" and not splitter["add_prefix_space"])


class Pieces:
    """Ids of texts, and of the words that were met.

    Args:
        backend: a tokenizer that is ``local``, and splits before a space.
    """

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.known: dict[str, list[int]] = {}  # without the space before them

    def ids(self, text: str) -> list[int]:
        """Ids of a text, without those that the tokenizer puts around one.

        Args:
            text: the text.

        Returns:
            As the tokenizer would give them.
        """
        first, *words = text.split(" ")
        try:
            met = [self.known[word] for word in words]
        except KeyError:
            return self._met(first, words)
        if first and not _closed(first):
            return self._met(first, words)
        return [*(self._encoded([first])[0] if first else ()), *chain.from_iterable(met)]

    def _met(self, first: str, words: list[str]) -> list[int]:
        """Ids of a text with new words, or with white space other than single spaces."""
        pieces, open_ = [first], bool(first) and not _closed(first)
        for word in words:
            if open_:
                pieces[-1] += f" {word}"
            else:
                pieces.append(f" {word}")
            open_ = not _closed(word)
        known, new = self.known, []
        met = [known.get(piece[1:]) if piece[:1] == " " else None for piece in pieces]
        for at, one in enumerate(met):
            if one is None and pieces[at]:
                new.append(at)
        if len(new) * 2 > len(pieces) and len(known) >= WORDS:
            return self._encoded(["".join(pieces)])[0]
        for at, ids in zip(new, self._encoded([pieces[at] for at in new]), strict=True):
            met[at], word = ids, pieces[at][1:]
            if at and len(word) <= LONGEST and len(known) < WORDS and " " not in word and _closed(word):
                known[word] = ids
        return list(chain.from_iterable(one or () for one in met))

    def _encoded(self, texts: list[str]) -> list[list[int]]:
        return [found.ids for found in self.backend.encode_batch_fast(texts, add_special_tokens=False)]


def _closed(word: str) -> bool:
    """Whether white space behind a word begins another; what Python and a pattern take for white space may differ."""
    return "!" <= word[-1:] <= "~"
