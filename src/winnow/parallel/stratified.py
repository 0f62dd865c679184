"""A stratified pool: every process's candidates are a pool of their own, to a selector that never compares two."""

from __future__ import annotations

import copy
from dataclasses import is_dataclass, replace
from typing import Any

import torch

from winnow.lm.shards import rows_of
from winnow.selection import Selection
from winnow.signals import Needs, Signals

POOLS = ("global", "per_rank")


def check_pool(pool: str) -> None:
    """Refuse a way of comparing candidates that there is none of.

    Args:
        pool: ``parallel.pool``.

    Raises:
        ValueError: it is neither ``global`` nor ``per_rank``.
    """
    if pool not in POOLS:
        raise ValueError(f"parallel.pool must be global or per_rank, got {pool!r}")


class Stratified:
    """Asks a selector for k/R of each of R parts of a pool, the rows of one process each.

    It sees the signals of the whole pool and takes the parts in turn, with one generator, so that every process makes
    the same choice of all of them.

    Args:
        selector: has a ``filter_size``, k, which R divides, and remembers nothing between two calls.
        size: number of processes, R.

    Raises:
        ValueError: R does not divide k.
    """

    def __init__(self, selector: Any, size: int) -> None:
        if selector.filter_size % size or selector.filter_size < size:
            more = -(-selector.filter_size // size) * size
            raise ValueError(
                f"parallel.pool=per_rank: each of {size} processes keeps as many, and selector.filter_size="
                f"{selector.filter_size} is no multiple of {size}: set selector.filter_size={more}"
            )
        self.selector, self.size = selector, size
        self.filter_size: int = selector.filter_size

    @property
    def needs(self) -> Needs:
        """The selector's."""
        needs: Needs = self.selector.needs
        return needs

    def __call__(self, signals: Signals, generator: torch.Generator | None = None) -> Selection:
        """Choose from every part.

        Args:
            signals: of the whole pool; K between two parts is not looked at.
            generator: of the selector.

        Returns:
            What was chosen from all parts. A diagnostic is the mean of the parts'.
        """
        found = []
        for rank in range(self.size):
            rows = rows_of(rank, self.size, len(signals))
            if rows.stop == rows.start:  # a pool smaller than it should be
                continue
            one = _keeping(self.selector, min(self.filter_size // self.size, rows.stop - rows.start))
            part = one(signals.part(rows), generator)
            found.append(Selection(part.index + rows.start, part.weight, part.diagnostics))
        names = dict.fromkeys(name for one in found for name in one.diagnostics)
        of = {name: [one.diagnostics[name] for one in found if name in one.diagnostics] for name in names}
        return Selection(
            torch.cat([one.index for one in found]),
            torch.cat([one.weight for one in found]),
            {name: sum(values) / len(values) for name, values in of.items()},
        )


def _keeping(selector: Any, count: int) -> Any:
    """The same selector with another ``filter_size``."""
    if is_dataclass(selector):
        return replace(selector, filter_size=count)  # type: ignore[type-var]
    one = copy.copy(selector)
    one.filter_size = count
    return one
