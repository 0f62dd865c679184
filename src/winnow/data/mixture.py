"""Endless streams: a mixture of task families with spoilt examples, and blends of streams."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from winnow.data.example import Example, Stream
from winnow.data.families.draft import Draft, Family, Spoilable
from winnow.data.splits import split_of

ATTEMPTS = 1000
LOOKBACK = 64  # a duplicate copies one of the examples this close before it


def draw(family: Family, rng: random.Random, split: str) -> Draft:
    """Draw until a task falls into a split.

    Args:
        family: what to draw from.
        rng: source of randomness.
        split: ``stream``, ``val`` or ``test``.

    Returns:
        A task whose prompt belongs to the split.

    Raises:
        ValueError: the family's prompts hardly ever do.
    """
    for _ in range(ATTEMPTS):
        draft = family(rng)
        if split_of(draft.prompt) == split:
            return draft
    raise ValueError(f"{type(family).__name__} gave no {split} prompt in {ATTEMPTS} draws; it has too few prompts")


@dataclass(frozen=True)
class Part:
    """A family's place in a mixture.

    Args:
        family: what it draws.
        weight: its share, relative to the other parts.
        group: hidden label, how near it is to the target: ``in``, ``near`` or ``far``.
    """

    family: Family
    weight: float
    group: str = "far"


class Mixture:
    """Example i of an endless stream, a pure function of (seed, i).

    A share of the examples is spoilt: the response has a ``wrong`` answer, is ``shuffled`` (belongs to
    another prompt of the family), or the example is a ``duplicate`` of one shortly before. What it is
    stands in the hidden labels only.

    Args:
        parts: families by name; at least one with a positive weight.
        seed: of the stream.
        noise: rates of ``wrong``, ``shuffled`` and ``duplicate``, summing to at most 1.
        split: which split to draw from.
        source: prefix of the examples' sources.

    Raises:
        ValueError: an unknown noise, rates that are negative or sum to more than 1, no positive weight,
            or wrong answers of a family that has none.
    """

    NOISE = ("wrong", "shuffled", "duplicate")

    def __init__(
        self,
        parts: Mapping[str, Part],
        seed: int = 0,
        noise: Mapping[str, float] | None = None,
        split: str = "stream",
        source: str = "tasks",
    ) -> None:
        noise = dict(noise or {})
        unknown = set(noise) - set(self.NOISE)
        if unknown:
            raise ValueError(f"data.corpus.noise knows {', '.join(self.NOISE)}; got {', '.join(sorted(unknown))}")
        if not all(rate >= 0 for rate in noise.values()) or not sum(noise.values()) <= 1:  # NaN is neither
            raise ValueError(f"data.corpus.noise rates must be >= 0 and sum to at most 1, got {noise}")
        if not parts or any(part.weight < 0 for part in parts.values()) or not any(p.weight for p in parts.values()):
            raise ValueError("data.corpus.mixture needs weights >= 0, at least one of them positive")
        if noise.get("wrong"):
            unable = [name for name, part in parts.items() if part.weight and not isinstance(part.family, Spoilable)]
            if unable:
                raise ValueError(
                    f"data.corpus.noise.wrong={noise['wrong']}: {', '.join(unable)} cannot give wrong answers; set it "
                    "to 0, and use shuffled (the answer to another question of the family)"
                )
        self.parts, self.seed, self.noise, self.split = dict(parts), seed, noise, split
        self.source = source
        self._names = list(self.parts)
        self._weights = [part.weight for part in self.parts.values()]

    @property
    def size(self) -> None:
        """Endless."""
        return None

    def __getitem__(self, index: int) -> Example:
        """The example at a position.

        Args:
            index: position, >= 0.

        Returns:
            The example, with its hidden labels.
        """
        rng, kind = self._fate(index)
        if kind == "duplicate":
            original = self._original(index, rng)
            if original is not None:
                return self._example(index, *self._clean(original), kind)
            kind = ""
        name, draft = self._clean(index)
        family = self.parts[name].family
        if kind == "wrong" and isinstance(family, Spoilable):
            draft = Draft(draft.prompt, family.wrong(draft, rng), draft.answer)
        elif kind == "shuffled":
            draft = Draft(draft.prompt, self._other(name, draft, rng).response, draft.answer)
        return self._example(index, name, draft, kind)

    def _fate(self, index: int) -> tuple[random.Random, str]:
        """The generator of a position, and how its example is spoilt."""
        rng = random.Random(f"{self.split}-{self.seed}-{index}")
        spoil = rng.random()
        for name in self.NOISE:
            spoil -= self.noise.get(name, 0.0)
            if spoil < 0:
                return rng, name
        return rng, ""

    def _original(self, index: int, rng: random.Random) -> int | None:
        """Position of a clean example shortly before; None at the very beginning, where there may be none."""
        for _ in range(LOOKBACK if index else 0):
            original = index - rng.randint(1, min(index, LOOKBACK))
            if not self._fate(original)[1]:
                return original
        return None

    def _other(self, name: str, draft: Draft, rng: random.Random) -> Draft:
        """Another task of the family, with another answer."""
        for _ in range(ATTEMPTS):
            other = draw(self.parts[name].family, rng, self.split)
            if other.answer != draft.answer:
                return other
        raise ValueError(f"data.corpus.noise.shuffled: every answer of {name} seems to be {draft.answer!r}")

    def _clean(self, index: int) -> tuple[str, Draft]:
        """Family and task of a position, before any spoiling."""
        # A generator of its own, so that a duplicate can draw its original again.
        own = random.Random(f"{self.split}-{self.seed}-{index}-draft")
        name = own.choices(self._names, self._weights)[0]
        return name, draw(self.parts[name].family, own, self.split)

    def _example(self, index: int, name: str, draft: Draft, noise: str) -> Example:
        labels = {"group": self.parts[name].group, "noise": noise}
        return Example(
            f"{self.split}-{self.seed}-{index}",
            f"{self.source}/{name}",
            draft.prompt,
            draft.response,
            None,
            labels,
            draft.answer,
        )


class Blend:
    """Several endless streams in given shares; example i is a pure function of (seed, i).

    Args:
        streams: the streams.
        weights: share of each.
        seed: decides which stream a position draws from.

    Raises:
        ValueError: a stream is finite, or the numbers of streams and weights differ.
    """

    def __init__(self, streams: Sequence[Stream], weights: Sequence[float], seed: int = 0) -> None:
        if len(streams) != len(weights) or not streams:
            raise ValueError(f"a blend needs one weight per stream, got {len(weights)} for {len(streams)}")
        if any(stream.size is not None for stream in streams):
            raise ValueError("a blend is made of endless streams")
        self.streams, self.weights, self.seed = list(streams), list(weights), seed

    @property
    def size(self) -> None:
        """Endless."""
        return None

    def __getitem__(self, index: int) -> Example:
        """The example at a position.

        Args:
            index: position, >= 0.

        Returns:
            The example at the same position of the stream drawn for it.
        """
        chosen = random.Random(f"blend-{self.seed}-{index}").choices(self.streams, self.weights)[0]
        return chosen[index]
