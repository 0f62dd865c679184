"""What a gate does to its stream: how even what it passes on is, and a bound on any one source."""

from __future__ import annotations

import logging
import math
import zlib
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

log = logging.getLogger(__name__)

PLANES = 6
COLLAPSED, STREAM = 0.95, 0.5
"""A source that is more than this share of what is passed on, and less than that of what was offered."""
LEAST = 200
"""Passed candidates before anything is said about them."""


class Recent:
    """The latest values, and how often each is among them; counted when they are asked for, several draws at once.

    Args:
        window: how many are remembered.
    """

    def __init__(self, window: int) -> None:
        self.window = window
        self._values: deque[Any] = deque()
        self._counts: Counter[Any] = Counter()
        self._new: list[Any] = []

    def add(self, values: Sequence[Any]) -> None:
        """Remember values, and forget the oldest where there are too many.

        Args:
            values: anything that can be counted, in order.
        """
        self._new.extend(values)
        if len(self._new) >= self.window:
            self._count()

    @property
    def values(self) -> deque[Any]:
        """The latest, the oldest first."""
        self._count()
        return self._values

    @property
    def counts(self) -> Counter[Any]:
        """How often each is among them."""
        self._count()
        return self._counts

    def share(self, value: Any) -> float:
        """How much of the latest is this.

        Args:
            value: what.

        Returns:
            0 where nothing is remembered.
        """
        return self.counts[value] / len(self.values) if self.values else 0.0

    @property
    def entropy(self) -> float:
        """Of the shares, in nats."""
        shares = [count / len(self.values) for count in self.counts.values()]
        # Rounded once, so that the order in which values were first met, which a resumed run does not know, is nothing.
        return 0.0 - math.fsum(share * math.log(share) for share in shares)

    def load(self, values: Iterable[Any]) -> None:
        """Remember these and nothing else.

        Args:
            values: the oldest first.
        """
        self.values.clear()
        self.counts.clear()
        self.add(list(values))

    def _count(self) -> None:
        if not self._new:
            return
        held, counts = self._values, self._counts
        held.extend(self._new)
        counts.update(self._new)  # in C
        self._new.clear()
        gone = [held.popleft() for _ in range(len(held) - self.window)]
        for value, count in Counter(gone).items() if gone else ():
            if counts[value] == count:
                del counts[value]
            else:
                counts[value] -= count


class Coverage:
    """Counts of sources, clusters and copies among what was offered and what was passed on, of late.

    Clusters are the sides of six random planes that a vector lies on, so that they ask for no training and mean the
    same at every step.

    Args:
        dim: of the vectors.
        window: candidates that are remembered on either side.
        most: share of what is passed on that may be of one source; 1 for no bound.
        seed: of the planes.

    Raises:
        ValueError: ``most`` is not in (0, 1].
    """

    def __init__(self, dim: int, window: int = 4096, most: float = 1.0, seed: int = 0) -> None:
        if not 0 < most <= 1:
            raise ValueError(f"gate.most_of_a_source must be in (0, 1], got {most}")
        self.most = most
        self._planes = torch.randn(dim, PLANES, generator=torch.Generator().manual_seed(seed)).numpy()
        self._planes[0] = 0  # the constant of every vector says nothing about where it lies
        self.offered = {"source": Recent(window), "cluster": Recent(window)}
        self.passed = {name: Recent(window) for name in ("source", "cluster", "text", "repeated")}
        self._warned: set[str] = set()

    def last(self, sources: Sequence[str], texts: Sequence[tuple[str, str]]) -> Bool[np.ndarray, " draw"]:
        """What is to be passed on only where nothing else is left.

        Args:
            sources: of the draw.
            texts: prompt and response of each candidate.

        Returns:
            Exact copies of an earlier candidate of the draw, and candidates of a source over its bound.
        """
        first: dict[tuple[str, str], int] = {}
        found = np.array([first.setdefault(text, at) != at for at, text in enumerate(texts)])
        held = self.passed["source"]
        if self.most < 1 and len(held.values) >= LEAST:
            found |= [held.share(source) > self.most for source in sources]
        return found

    def add(
        self,
        vectors: Float[Tensor, "draw dim"],
        sources: Sequence[str],
        texts: Sequence[tuple[str, str]],
        index: Iterable[int],
    ) -> None:
        """Take in a draw, and warn once where the gate has come down to one source or to copies.

        Args:
            vectors: of the draw.
            sources: of the draw.
            texts: prompt and response of each candidate.
            index: positions of those passed on.
        """
        sides = vectors.numpy() @ self._planes > 0
        clusters = np.packbits(sides, axis=1, bitorder="little")[:, 0].tolist()
        self.offered["source"].add(sources)
        self.offered["cluster"].add(clusters)
        index = list(index)
        self.passed["source"].add([sources[at] for at in index])
        self.passed["cluster"].add([clusters[at] for at in index])
        repeated, known = [], self.passed["text"]
        for at in index:
            text = zlib.crc32("\0".join(texts[at]).encode("utf-8", "surrogatepass"))
            repeated.append(known.counts[text] > 0)
            known.add((text,))
        self.passed["repeated"].add(repeated)
        self._warn()

    def metrics(self) -> dict[str, float]:
        """How even both are, of late.

        Returns:
            Entropies in nats over sources and over clusters of what was offered and of what was passed on, and the
            share of the passed whose very text had been passed on before.
        """
        found = {}
        for kind, offered in self.offered.items():
            found[f"gate/{kind}_entropy"] = self.passed[kind].entropy
            found[f"gate/{kind}_entropy_offered"] = offered.entropy
        return {**found, "gate/repeated": self.passed["repeated"].share(True)}

    def _warn(self) -> None:
        passed = self.passed["source"]
        if len(passed.values) < LEAST:
            return
        source = max(passed.counts, key=lambda name: passed.counts[name])
        share = passed.share(source)
        known = "source" in self._warned or share <= COLLAPSED
        if not known and (offered := self.offered["source"].share(source)) < STREAM:
            self._warned.add("source")
            log.warning(
                "the gate has come down to one source: %.0f %% of what it passes on is %r, which is %.0f %% of the "
                "stream; gate.most_of_a_source bounds it",
                100 * share, source, 100 * offered,
            )  # fmt: skip
        repeated = self.passed["repeated"].share(True)
        if repeated > STREAM and "copies" not in self._warned:
            self._warned.add("copies")
            log.warning(
                "%.0f %% of what the gate passes on are texts that it has passed on before: the stream repeats itself",
                100 * repeated,
            )

    def state_dict(self) -> dict[str, Any]:
        """What is remembered.

        Returns:
            Lists of plain values.
        """
        both = {"offered": self.offered, "passed": self.passed}
        return {side: {name: list(one.values) for name, one in held.items()} for side, held in both.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there.

        Args:
            state: what ``state_dict`` gave.
        """
        for side, held in (("offered", self.offered), ("passed", self.passed)):
            for name, one in held.items():
                one.load(state[side][name])
