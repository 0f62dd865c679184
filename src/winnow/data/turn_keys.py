"""Keys that the turns of a split have beside role and content, with a few chats in which each stands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

READ = frozenset({"role", "content", "weight"})
"""Keys of a turn that are read whatever the template."""
PROBES = 3
"""Chats that are held for each key."""
KEYS = 64
"""Most keys that are followed: turns with ever new ones are no reason to hold them all."""

Chat = tuple[Sequence[Mapping[str, Any]], Sequence[Any] | None, Mapping[str, Any]]
"""Turns, tools and variables for the template."""


@dataclass
class TurnKeys:
    """What keys turns have.

    Args:
        counts: turns by key.
        probes: the first chats that have it, by key.
    """

    counts: Counter[str] = field(default_factory=Counter)
    probes: dict[str, list[Chat]] = field(default_factory=dict)

    def add(self, chat: Chat) -> None:
        """Count a chat's keys.

        Args:
            chat: the chat.
        """
        found = Counter(key for turn in chat[0] for key in turn if key not in READ)
        for key, count in found.items():
            self._take(key, count, [chat])

    def join(self, other: TurnKeys) -> None:
        """Take what another split has.

        Args:
            other: of that split.
        """
        for key, count in other.counts.items():
            self._take(key, count, other.probes[key])

    def _take(self, key: str, count: int, chats: Sequence[Chat]) -> None:
        if key not in self.counts and len(self.counts) >= KEYS:
            return
        self.counts[key] += count
        held = self.probes.setdefault(key, [])
        held += chats[: PROBES - len(held)]

    def to_json(self) -> list[Any]:
        """Itself, for a file beside the table.

        Returns:
            Values that JSON has.
        """
        return [dict(self.counts), self.probes]

    @classmethod
    def from_json(cls, value: Sequence[Any]) -> TurnKeys:
        """What :meth:`to_json` gave.

        Args:
            value: of the file.

        Returns:
            The keys.
        """
        counts, probes = value
        return cls(Counter(counts), {key: [(a, b, c) for a, b, c in chats] for key, chats in probes.items()})
