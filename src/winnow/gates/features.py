"""What a gate knows of a raw candidate: a vector of its text or its stream's fields, at no pass through a model."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from winnow.gates.words import hashed

PARTS = ("prompt", "response", "both")
NARROW = 2**31
"""Places of all texts together that, with a bit for the sign, fit 32 bits."""


@runtime_checkable
class Candidate(Protocol):
    """What a raw candidate is to a gate: :class:`winnow.data.Example` is one."""

    @property
    def prompt(self) -> str:
        """What the model is given."""

    @property
    def response(self) -> str:
        """What it is trained to say."""

    @property
    def source(self) -> str:
        """Where it came from."""


@runtime_checkable
class Features(Protocol):
    """A pure function of a candidate, so that a loader's workers can compute it ahead."""

    dim: int
    """Numbers of a vector."""

    def __call__(self, candidates: Sequence[Candidate]) -> Float[Tensor, "draw dim"]:
        """A vector per candidate, float32, of length about one; each depends on its own candidate alone."""


@runtime_checkable
class Embedded(Protocol):
    """Features that read a model's input embeddings, which they are given before training."""

    def take(self, table: Float[Tensor, "vocab width"], tokenize: Callable[[str], list[int]]) -> None:
        """Keep ``table`` as it is now, and what turns a text into its rows."""


class NGrams:
    """Hashed words and pairs of words; in scripts without spaces characters are the words.

    Numbers count as one word, letters are compared in lower case, and every mark of punctuation is a word. Counts are
    damped to their root; the vector of each part has length one, behind a constant one for the intercept.

    Args:
        dim: length of the vector; words are hashed into it, with a random sign, by CRC-32.
        parts: ``prompt`` | ``response`` | ``both``, where the two are hashed apart.
        chars: characters of each part that are read; the rest of a very long text is not.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, dim: int = 1024, parts: str = "both", chars: int = 4096) -> None:
        if parts not in PARTS:
            raise ValueError(f"gate.features.parts must be one of {', '.join(PARTS)}; got {parts!r}")
        if dim < 2 or chars < 1:
            raise ValueError(f"gate.features needs dim >= 2 and chars >= 1, got {dim} and {chars}")
        self.dim, self.parts, self.chars = dim, parts, chars
        self._names = ("prompt", "response") if parts == "both" else (parts,)
        self._seeds = [zlib.crc32(name.encode()) for name in self._names]

    def __call__(self, candidates: Sequence[Candidate]) -> Float[Tensor, "draw dim"]:
        """Vectors of candidates.

        Args:
            candidates: their prompts and responses are read.

        Returns:
            Constant, then hashed counts; a candidate without any text has the constant alone.
        """
        # Both parts at once: at a draw of short texts much of the time is that of the calls.
        texts = [getattr(one, name)[: self.chars] for name in self._names for one in candidates]
        rows, mixed = hashed(texts, [seed for seed in self._seeds for _ in candidates])
        if len(texts) * self.dim >= NARROW:
            rows = rows.astype(np.int64)
        # Sorted, so that only the result is as long as all vectors together: at a draw of short texts most places are
        # never reached, and memory takes longer than arithmetic. The lowest bit is the word's sign.
        keys = (rows * self.dim + mixed % (self.dim - 1) + 1) << 1 | mixed >> 31
        keys.sort()
        place = keys >> 1
        first = np.concatenate([place[:1] >= 0, place[1:] != place[:-1]]).nonzero()[0]
        counts = np.add.reduceat(1.0 - 2.0 * (keys & 1), first) if len(first) else np.zeros(0)
        place = place[first]
        row, size = place // self.dim, np.abs(counts)
        length = np.sqrt(np.bincount(row, size, len(texts)) * len(self._names))
        damped = np.copysign(np.sqrt(size), counts) / np.maximum(length, 1e-12)[row]
        total = np.zeros((len(candidates), self.dim), dtype=np.float32)
        np.add.at(total.reshape(-1), place % total.size, damped.astype(np.float32))
        total[:, 0] = 1.0
        return torch.from_numpy(total)


class Fields:
    """The stream's own fields: where a candidate came from, and how long prompt and response are.

    Args:
        dim: length of the vector; sources are hashed into all but its first three places.

    Raises:
        ValueError: ``dim`` leaves no place for a source.
    """

    def __init__(self, dim: int = 64) -> None:
        if dim < 4:
            raise ValueError(f"gate.features.dim must be at least 4, got {dim}")
        self.dim = dim

    def __call__(self, candidates: Sequence[Candidate]) -> Float[Tensor, "draw dim"]:
        """Vectors of candidates.

        Args:
            candidates: their sources and the lengths of their texts are read.

        Returns:
            Constant, logarithms of both lengths, and a one at the source's place.
        """
        vectors = torch.zeros(len(candidates), self.dim)
        vectors[:, 0] = 1.0
        for vector, one in zip(vectors, candidates, strict=True):
            for place, text in enumerate((one.prompt, one.response), 1):
                vector[place] = math.log1p(len(text)) / 10
            vector[3 + zlib.crc32(one.source.encode("utf-8", "surrogatepass")) % (self.dim - 3)] = 1.0
        return vectors


class Embeddings:
    """Means of a model's input embeddings over prompt and over response, as they are before training.

    Args:
        dim: length of the vector; the means are projected to it at random, signs with equal chance.
        tokens: of each part that are read.
        seed: of the projection.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, dim: int = 256, tokens: int = 512, seed: int = 0) -> None:
        if dim < 3 or tokens < 1:
            raise ValueError(f"gate.features needs dim >= 3 and tokens >= 1, got {dim} and {tokens}")
        self.dim, self.tokens, self.seed = dim, tokens, seed
        self._tables: tuple[Tensor, Tensor] | None = None
        self._tokenize: Callable[[str], list[int]] | None = None

    def take(self, table: Float[Tensor, "vocab width"], tokenize: Callable[[str], list[int]]) -> None:
        """Keep the embeddings, centred and projected once for each part.

        Args:
            table: a row per token.
            tokenize: text to ids, without tokens that stand around every text.
        """
        width, half = table.shape[1], (self.dim - 1) // 2
        generator = torch.Generator().manual_seed(self.seed)
        centred = table.detach().float().cpu()
        centred = centred - centred.mean(0)
        parts = []
        for size in (half, self.dim - 1 - half):
            signs = torch.randint(2, (width, size), generator=generator).float() * 2 - 1
            parts.append(centred @ signs)
        self._tables, self._tokenize = (parts[0], parts[1]), tokenize

    def __call__(self, candidates: Sequence[Candidate]) -> Float[Tensor, "draw dim"]:
        """Vectors of candidates.

        Args:
            candidates: their prompts and responses are read.

        Returns:
            Constant, then the two means, each of length at most sqrt(1/2).

        Raises:
            RuntimeError: no embeddings were given.
        """
        if self._tables is None or self._tokenize is None:
            raise RuntimeError("these features read a model's embeddings: give them with take()")
        rows = []
        for one in candidates:
            found = [torch.ones(1)]
            for table, text in zip(self._tables, (one.prompt, one.response), strict=True):
                # A token is no longer than a few characters, and a text of a megabyte is not to be tokenised whole.
                ids = self._tokenize(text[: 16 * self.tokens])[: self.tokens]
                mean = table[torch.tensor(ids)].mean(0) if ids else table.new_zeros(table.shape[1])
                found.append(mean / (2**0.5 * mean.norm().clamp_min(1e-12)))
            rows.append(torch.cat(found))
        return torch.stack(rows)
