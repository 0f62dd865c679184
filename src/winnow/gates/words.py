"""Texts to hashed words and pairs of words, the same in every process and at every time."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from itertools import chain

import numpy as np

UNSPACED = (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
"""Thai, Lao, Tibetan, Burmese, Khmer, kana and Han: written without spaces between words."""
# Runs of ASCII apart, which would be looked up among so many ranges.
WORDS = re.compile(rf"(?:[a-z]+|[^\W\d_{UNSPACED}]+)+|\d+(?:[.,]\d+)*|[{UNSPACED}]|[^\w\s]")
PLAIN = re.compile(r"[a-z]+|[0-9]+(?:[.,][0-9]+)*|[^\w\s]")
"""The same of lower-case ASCII."""
END = "\0"
"""A mark of its own between texts."""
NUMBER = b"0"
KNOWN = 2**16
"""Words whose hash is remembered."""


class Hashes(dict[str, int]):
    """CRC-32 of words; looked up in C where a word is known, and begun anew where there are too many."""

    def __missing__(self, word: str) -> int:
        """Hash and remember a word."""
        if len(self) >= KNOWN:
            self.clear()
        # A lone surrogate is no character, and must not end a run.
        found = self[word] = zlib.crc32(NUMBER if word[0].isdigit() else word.encode("utf-8", "surrogatepass"))
        return found


HASHES = Hashes()


def hashed(texts: Sequence[str], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Hash every word and every pair of neighbours.

    Args:
        texts: any; letters are compared in lower case.
        seed: of the hashes, in 32 bits.

    Returns:
        Which text each is of, and the hashes in 32 bits, in no order that means anything.
    """
    lower = [text.lower() for text in texts]
    plain = [number for number, text in enumerate(lower) if text.isascii()]
    rows, words = _joined([lower[number] for number in plain])
    rows = np.array(plain, dtype=np.int64)[rows]
    if len(plain) < len(texts):
        others = [number for number, text in enumerate(lower) if not text.isascii()]
        more, their = _apart(WORDS, [lower[number] for number in others])
        rows, words = np.concatenate([rows, np.array(others)[more]]), np.concatenate([words, their])
    inside = rows[:-1] == rows[1:]
    pairs = (words[:-1] * np.uint32(0x9E3779B1) + words[1:] * np.uint32(3))[inside]
    return np.concatenate([rows, rows[:-1][inside]]), _mixed(np.concatenate([words, pairs]) ^ np.uint32(seed))


def _joined(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Words of ASCII texts by one search through all of them: most of a short text's time is its own search."""
    found = PLAIN.findall(END.join(texts))
    words = np.fromiter(map(HASHES.__getitem__, found), np.uint32, len(found))
    ends = words == HASHES[END]
    if ends.sum() != max(len(texts) - 1, 0):  # a text holds the mark itself, or a word of the same hash
        return _apart(PLAIN, texts)
    inside = ~ends
    return np.cumsum(ends)[inside], words[inside]


def _apart(pattern: re.Pattern[str], texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    found = [pattern.findall(text) for text in texts]
    sizes = [len(one) for one in found]
    words = np.fromiter(map(HASHES.__getitem__, chain.from_iterable(found)), np.uint32, sum(sizes))
    return np.repeat(np.arange(len(texts)), sizes), words


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """Every bit made to depend on every other (the finaliser of MurmurHash3)."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        numbers = (numbers ^ (numbers >> np.uint32(shift))) * np.uint32(factor)
    return numbers ^ (numbers >> np.uint32(16))
