"""Importance weights of texts by their hashed n-grams: which candidates read like the target (DSIR)."""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

WORD = re.compile(r"\w+|[^\w\s]+")


@dataclass(frozen=True)
class NGrams:
    """Log ratio of a bag-of-n-grams model of the target to one of the stream.

    Needs: texts only, no model; a target task.
    Cost: none in passes of a model.
    Rule: log w_i = sum over the hashed n-grams x of a candidate of log q(x) - log p(x), q and p the shares of the
        bucket in the target's and in the stream's n-grams. With ``sample`` a Gumbel variable is added, so that the n
        highest are a sample without replacement in proportion to w_i.
    Source: Xie et al. 2023, Data Selection for Language Models via Importance Resampling, arXiv 2302.03169.
    Departures: words and punctuation are split by a regular expression of our own and hashed by CRC-32. Several target
        tasks are mixed by their weights. No shortest length: instruction data are short.

    Args:
        n: the longest n-grams, >= 1; shorter ones count too.
        buckets: the hash's size, >= 1.
        sample: draw by importance, as DSIR does; False ranks by the weight itself.
        smoothing: added to every share, > 0.
        seed: of the draw.

    Raises:
        ValueError: an argument is out of range.
    """

    n: int = 2
    buckets: int = 10_000
    sample: bool = True
    smoothing: float = 1e-8
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("n", "buckets"):
            if getattr(self, name) < 1:
                raise ValueError(f"ngrams.{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.smoothing < math.inf:
            raise ValueError(f"ngrams.smoothing must be > 0 and finite, got {self.smoothing}")

    def scores(
        self, texts: Sequence[str], targets: Sequence[tuple[float, Sequence[str]]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Score texts.

        Args:
            texts: the candidates.
            targets: weight and texts of every target task.

        Returns:
            Scores to rank by, and log w, which are the same without ``sample``.

        Raises:
            ValueError: there are no texts, or no target task.
        """
        if not texts or not targets:
            raise ValueError("n-gram scores compare candidates with target tasks, and one of them is missing")
        counts = [self._count(text) for text in texts]
        stream = self._shares(counts)
        whole = sum(weight for weight, _ in targets)
        target = sum(
            (weight / whole * self._shares([self._count(text) for text in own]) for weight, own in targets),
            np.zeros(self.buckets),
        )
        ratio = np.log(target + self.smoothing) - np.log(stream + self.smoothing)
        weights = np.array([
            math.fsum(number * float(ratio[bucket]) for bucket, number in count.items()) for count in counts
        ])
        if not self.sample:
            return weights, weights
        return weights + np.random.default_rng(self.seed).gumbel(size=len(weights)), weights

    def _count(self, text: str) -> Counter[int]:
        words = WORD.findall(text.lower())
        grams = (" ".join(words[at : at + n]) for n in range(1, self.n + 1) for at in range(len(words) - n + 1))
        return Counter(zlib.crc32(gram.encode()) % self.buckets for gram in grams)

    def _shares(self, counts: Sequence[Counter[int]]) -> np.ndarray:
        total = np.zeros(self.buckets)
        for count in counts:
            for bucket, number in count.items():
                total[bucket] += number
        return total / max(total.sum(), 1)
