"""The hidden labels themselves: an upper bound for analysis, no method."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from winnow.choice.filters import top
from winnow.selection import Selection
from winnow.selectors.base import candidates, check_filter_size, facts, keep, source_of_chance
from winnow.signals import Needs, Signals

log = logging.getLogger(__name__)

PATIENCE = 10
"""Pools in a row without any label after which the stream has none."""


@dataclass
class Oracle:
    """Keep clean candidates of the target's own domain first, by the stream's hidden labels.

    Needs: meta (hidden labels group and noise), which no other selector is given; no target task.
    Cost: no scoring, then training on the kept.
    Rule: S = the first k in the order: clean before spoilt, then by the place of the group in ``groups``, groups
        that are not listed last, then by chance. w_i = 1.
    Knobs:
        filter_size: candidates kept, k; 1 to data.pool_size.
        groups: values of the hidden label group, the nearest to the target first.
    Source: ours; only where the stream has labels (data=tasks does).
    Departures: none. It is a bound on what labels of whole examples can give, not on what selection can: it knows
        nothing of the model, and a clean candidate may be one the model has learnt already.
    """

    filter_size: int = 4
    groups: tuple[str, ...] | list[str] = ("in", "near")
    unlabelled: int = field(default=0, init=False, repr=False)
    strange: int = field(default=0, init=False, repr=False)
    named: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        check_filter_size(self.filter_size)

    @property
    def needs(self) -> Needs:
        """The hidden labels."""
        return Needs(meta=("group", "noise"))

    def __call__(self, signals: Signals, generator: torch.Generator | None = None) -> Selection:
        """Choose from one pool."""
        source = source_of_chance(generator, "Oracle")
        groups, noise = facts(signals, "group"), facts(signals, "noise")
        self.unlabelled = 0 if any(groups) or any(noise) else self.unlabelled + 1
        if self.unlabelled >= PATIENCE:
            raise ValueError(
                f"{self.unlabelled} pools in a row have no hidden label (group, noise), and baseline=oracle chooses by "
                "nothing else: use a stream that has them (data=tasks), or another baseline"
            )
        known = {group for group in groups if group}
        # A group that the stream has may be rare: once one was seen, pools without any are no fault.
        self.named = self.named or bool(known & set(self.groups))
        self.strange = self.strange + 1 if known and not self.named else 0
        if self.strange == PATIENCE:
            log.warning("%s", self._none_of(f"the first {self.strange} pools have", known))
        usable = candidates(signals, self.filter_size)
        places = {name: place for place, name in enumerate(self.groups)}
        merit = torch.tensor(
            [-places.get(groups[at], len(places)) - (len(places) + 1) * bool(noise[at]) for at in usable.tolist()],
            dtype=torch.float64,
        )
        merit = merit + torch.rand(len(merit), generator=source, dtype=torch.float64)  # in [0, 1): breaks ties only
        chosen = usable[top(merit, self.filter_size)]
        clean = sum(not noise[at] for at in chosen.tolist()) / max(len(chosen), 1)
        return keep(signals, chosen, clean=clean, short=float(len(usable) < self.filter_size))

    def check_groups(self, groups: Iterable[str], whole: bool = True) -> None:
        """Compare the groups named with those of the stream, before training.

        Args:
            groups: labels of the stream, or of a sample of it; empty ones are none.
            whole: whether they are of the whole stream; a sample may miss a rare group, and is only warned of.

        Raises:
            ValueError: the whole stream has groups, and none of those named.
        """
        known = {group for group in groups if group}
        self.named = bool(known & set(self.groups))
        if not known or self.named:
            return
        if whole:
            raise ValueError(self._none_of("the stream has", known))
        log.warning("%s", self._none_of("a sample of the stream has", known))

    def _none_of(self, who: str, known: set[str]) -> str:
        return (
            f"{who} none of the groups that selector.groups={list(self.groups)} names, but "
            f"{', '.join(map(repr, sorted(known)))}: name those, the nearest to the target first"
        )

    def state_dict(self) -> dict[str, Any]:
        """Pools in a row without labels, and with none of the groups named; whether one of them was seen."""
        return {"unlabelled": self.unlabelled, "strange": self.strange, "named": self.named}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the count."""
        self.unlabelled, self.strange = int(state["unlabelled"]), int(state.get("strange", 0))
        self.named = self.named or bool(state.get("named", False))
