"""What reading a split came upon: how rows were read, what was left out, which keys nothing reads."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from winnow.data.fields import Read, Row
from winnow.data.rejects import LISTED, BadRow, Rejects
from winnow.data.turn_keys import TurnKeys
from winnow.records.shown import shown

log = logging.getLogger(__name__)

EMPTY = "empty response"
WEIGHTLESS = "weight 0"
NAMED = 8
"""Most keys that are named as read by nothing."""


@dataclass
class Tally:
    """Counts of one split.

    Args:
        kept: rows that became examples.
        left: rows left out for being empty or of weight 0, by reason.
        shapes: rows by how they were read.
        unread: rows by key that nothing reads.
        counts: rows that cannot be used, by reason.
        faults: place, reason and detail of the first of them.
        turns: keys of the turns of those that became examples.
    """

    kept: int = 0
    left: Counter[str] = field(default_factory=Counter)
    shapes: Counter[str] = field(default_factory=Counter)
    unread: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    faults: list[tuple[str, str, str]] = field(default_factory=list)
    turns: TurnKeys = field(default_factory=TurnKeys)

    def bad(self, where: str, fault: BadRow) -> None:
        """Count a row that cannot be used.

        Args:
            where: file and line.
            fault: what is wrong with it.
        """
        self.counts[fault.reason] += 1
        if len(self.faults) < LISTED:
            self.faults.append((where, fault.reason, fault.detail))

    def takes(self, row: Row, read: Read) -> bool:
        """Count a row that was read.

        Args:
            row: the row.
            read: what it became.

        Returns:
            Whether it is to be kept: it has a response, and a weight other than 0.
        """
        self.shapes[read.shape] += 1
        self.unread.update(key for key, value in row.fields.items() if key not in read.used and value not in (None, ""))
        if row.fields.get("weight") == 0:
            self.left[WEIGHTLESS] += 1
        elif not read.example.response.strip():
            self.left[EMPTY] += 1
        else:
            self.kept += 1
            chat = read.example
            if chat.messages is not None:
                self.turns.add((chat.messages, chat.tools, chat.template))
            return True
        return False

    def tell(self, key: str, rejects: Rejects, report: Counter[str]) -> None:
        """Hand the counts on, and say how the rows were read.

        Args:
            key: the config key of the split.
            rejects: takes the rows that cannot be used.
            report: takes the counts of those left out.
        """
        for where, reason, detail in self.faults:
            rejects.add(key, where, BadRow(reason, detail))
        for reason, count in self.counts.items():
            rejects.counts[key, reason] = count
        for reason, count in self.left.items():
            report[f"{key}: {reason}"] += count
        if self.shapes:
            log.info("%s is read as %s", key, ", ".join(f"{name}: {n} rows" for name, n in self.shapes.most_common()))
        if self.unread:
            named = ", ".join(f"`{shown(name)}` ({count})" for name, count in self.unread.most_common(NAMED))
            more = f" and {len(self.unread) - NAMED} more" * (len(self.unread) > NAMED)
            log.warning("%s: nothing reads these fields (rows that have them): %s%s", key, named, more)

    def to_json(self) -> dict[str, Any]:
        """Itself, for a file beside the table.

        Returns:
            Values that JSON has.
        """
        return {**self.__dict__, "turns": self.turns.to_json()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Tally:
        """What :meth:`to_json` gave.

        Args:
            value: of the file.

        Returns:
            The tally.
        """
        counters = {name: Counter(value[name]) for name in ("left", "shapes", "unread", "counts")}
        faults, turns = [(a, b, c) for a, b, c in value["faults"]], TurnKeys.from_json(value["turns"])
        return cls(value["kept"], faults=faults, turns=turns, **counters)
