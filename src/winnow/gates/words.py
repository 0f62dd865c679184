"""Texts to hashed words and pairs of words, the same in every process and at every time."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

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
NUMBER = b"0"
KNOWN = 2**16
"""Words whose hash is remembered, and pieces of text."""
LONGEST = 32
"""Characters of a piece that is remembered: without spaces it may be a whole text."""


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


class Pieces(dict[str, bytes]):
    """Hashes of the words of what stands between two spaces, one after another.

    No word holds a space, and most pieces have come before: looking one up takes a fifth of the time of a search.
    """

    def __missing__(self, piece: str) -> bytes:
        """Search and hash a piece, and remember it."""
        words = (PLAIN if piece.isascii() else WORDS).findall(piece)
        found = np.fromiter(map(HASHES.__getitem__, words), np.uint32, len(words)).tobytes()
        if len(piece) <= LONGEST:
            if len(self) >= KNOWN:
                self.clear()
            self[piece] = found
        return found


PIECES = Pieces()


def hashed(texts: Sequence[str], seeds: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Hash every word and every pair of neighbours.

    Args:
        texts: any; letters are compared in lower case.
        seeds: of each text's hashes, in 32 bits.

    Returns:
        Which text each is of, and the hashes, both in 32 bits, in no order that means anything.
    """
    known = PIECES.__getitem__
    found = [b"".join(map(known, text.lower().split())) for text in texts]
    words = np.frombuffer(b"".join(found), np.uint32)
    rows = np.arange(len(texts), dtype=np.uint32).repeat([len(one) // 4 for one in found])
    inside = (rows[:-1] == rows[1:]).nonzero()[0]
    pairs = words[inside] * np.uint32(0x9E3779B1) + words[inside + 1] * np.uint32(3)
    rows = np.concatenate([rows, rows[inside]])
    return rows, _mixed(np.concatenate([words, pairs]) ^ np.array(seeds, np.uint32)[rows])


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """Every bit made to depend on every other (the finaliser of MurmurHash3)."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        numbers = (numbers ^ (numbers >> np.uint32(shift))) * np.uint32(factor)
    return numbers ^ (numbers >> np.uint32(16))
