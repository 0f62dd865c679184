"""Rows that cannot be used: all of them looked for, counted by reason, refused or left out as the user chose."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from winnow.records.shown import shown
from winnow.records.whole import replacing

log = logging.getLogger(__name__)

POLICIES = ("error", "drop")
LISTED = 10_000
"""Most rejects that are kept with their place; the counts are of all."""
NAMED = 3


class BadRow(ValueError):
    """A row that cannot be used.

    Args:
        reason: the kind of fault, the same for every row that has it.
        detail: what it was here.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail

    def __reduce__(self) -> tuple[type[BadRow], tuple[str, str]]:
        """How a worker process hands it back."""
        return BadRow, (self.reason, self.detail)


@contextmanager
def placed(where: str) -> Iterator[None]:
    """Name the place of a row that cannot be used, where that ends the run.

    Args:
        where: file and line.

    Yields:
        Nothing; errors in the block get the place.

    Raises:
        ValueError: the row cannot be used.
    """
    try:
        yield
    except BadRow as fault:
        raise ValueError(f"{where}: {fault}") from fault


class BadRows(ValueError):
    """Rows that cannot be used, where ``data.on_bad_row`` is ``error``.

    Args:
        message: reasons, counts and the first places.
        rejects: all of them.
    """

    def __init__(self, message: str, rejects: Rejects) -> None:
        super().__init__(message)
        self.rejects = rejects


@dataclass(frozen=True)
class Reject:
    """One row that cannot be used.

    Args:
        key: the config key it came from.
        where: file and line, or row.
        reason: the kind of fault.
        detail: what it was here.
    """

    key: str
    where: str
    reason: str
    detail: str


@dataclass
class Rejects:
    """What was found unusable so far.

    Args:
        policy: ``error`` | ``drop``; ``data.on_bad_row``.
        counts: rows by (config key, reason).
        listed: the first of them, with their places.

    Raises:
        ValueError: the policy is neither.
    """

    policy: str = "error"
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    listed: list[Reject] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ValueError(f"data.on_bad_row must be {' or '.join(POLICIES)}, got {self.policy!r}")

    def add(self, key: str, where: str, fault: BadRow) -> None:
        """Note a row.

        Args:
            key: the config key it came from.
            where: file and line, or row.
            fault: what is wrong with it.
        """
        self.counts[key, fault.reason] += 1
        if len(self.listed) < LISTED:
            self.listed.append(Reject(key, where, fault.reason, fault.detail))

    def of(self, key: str) -> int:
        """How many rows of a key cannot be used.

        Args:
            key: the config key.

        Returns:
            Their number.
        """
        return sum(count for (name, _), count in self.counts.items() if name == key)

    def settle(self, key: str) -> int:
        """Refuse or report what was found of one key.

        Args:
            key: the config key.

        Returns:
            How many rows were left out.

        Raises:
            BadRows: there are some, and the policy is ``error``.
        """
        found = {reason: count for (of, reason), count in self.counts.items() if of == key}
        total = sum(found.values())
        if total and self.policy == "error":
            raise BadRows(f"{key}: {self._named(key, found)}", self)
        if total:
            reasons = ", ".join(f"{count} x {reason}" for reason, count in found.items())
            log.warning("%s: %d rows cannot be used and are left out (data.on_bad_row=drop): %s", key, total, reasons)
        return total

    def _named(self, key: str, found: dict[str, int]) -> str:
        total = sum(found.values())
        places = {reason: [one for one in self.listed if one.key == key and one.reason == reason] for reason in found}
        if total == 1:
            one = places[next(iter(found))][0]
            text = f"{one.where}: {BadRow(one.reason, one.detail)}"
        else:
            parts = []
            for reason, count in found.items():
                first = places[reason][:1]
                example = (
                    f" (first {first[0].where}{': ' + first[0].detail if first[0].detail else ''})" if first else ""
                )
                parts.append(f"{count} x {reason}{example}")
            text = f"{total} rows cannot be used: " + "; ".join(parts)
        return f"{text}. Repair them, or leave them out and have them counted with data.on_bad_row=drop"

    def write(self, path: str | Path) -> None:
        """Write what was found as JSON lines of key, where, reason and detail.

        Args:
            path: the file; not written where nothing was found.
        """
        if not self.listed:
            return
        lines = [json.dumps(one.__dict__, ensure_ascii=True) for one in self.listed]
        with replacing(Path(path)) as temporary:
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
        more = sum(self.counts.values()) - len(self.listed)
        log.warning("rows that were not used, with place and reason: %s%s", shown(path), f" ({more} more)" * (more > 0))
