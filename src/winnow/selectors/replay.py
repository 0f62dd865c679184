"""A recorded choice, made again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from winnow.records.shown import shown
from winnow.selection import Selection
from winnow.selectors.base import candidates, facts, keep
from winnow.signals import Needs, Signals

SAME = "replay needs the recorded run's stream, seed and data.pool_size"


@dataclass
class Replay:
    """Keep what another run kept at the same step, with the same weights: on another model, size or optimizer.

    Needs: meta (recorded ids), which no other selector is given; no target task.
    Cost: no scoring, then training on the kept; what the recorded run paid for its scores is not counted again.
    Rule: at step t, S = the ids that the ledger has as kept at step t, w_i as recorded.
    Knobs:
        ledger: a run's folder or its ledger.parquet.
    Source: ours.
    Departures: none. The stream must be the recorded run's: same data, seed and pool size; a run looks for every
        recorded id before it trains.
    """

    ledger: str
    step: int = field(default=0, init=False, repr=False)
    recorded: list[dict[str, float]] | None = field(default=None, init=False, repr=False)

    @property
    def needs(self) -> Needs:
        """The ids."""
        return Needs(meta=("id",))

    def check_stream(self, pools: Iterable[Sequence[str]], steps: int | None = None) -> None:
        """Look for every recorded id in the pool that it was kept from, before training.

        Args:
            pools: ids of the candidates of each pool from step 0 on, as many as are recorded or more.
            steps: pools that will be asked for at least; None where that is not known.

        Raises:
            ValueError: ids are not where they were kept, and how many; or fewer pools are recorded than ``steps``.
        """
        self.recorded = self.recorded or read_kept(self.ledger)
        if steps is not None and steps > len(self.recorded):
            raise ValueError(f"{self._ends()}, not {steps}")
        seen: set[str] = set()
        missing: dict[str, None] = {}
        misplaced = first = 0
        for step, (weights, ids) in enumerate(zip(self.recorded, pools, strict=False)):
            here = set(ids)
            lost = [name for name in weights if name not in here]
            if lost and not misplaced:
                first = step
            misplaced += len(lost)
            missing.update(dict.fromkeys(lost))
            seen |= here
        if misplaced:
            kept = sum(len(weights) for weights in self.recorded)
            nowhere = [name for name in missing if name not in seen]
            raise ValueError(
                f"{misplaced} of the {kept} examples that selector.ledger={self.ledger} kept are not in the pool they "
                f"were kept from, first at step {first} ({_some(missing)}); {len(nowhere)} of these {len(missing)} "
                f"ids are in none of the stream's first {len(self.recorded)} pools: {SAME}"
            )

    def _ends(self) -> str:
        recorded = len(self.recorded or [])
        return f"selector.ledger={self.ledger} ends after {recorded} pools: set trainer.max_steps to that"

    def __call__(self, signals: Signals, generator: torch.Generator | None = None) -> Selection:
        """Keep the recorded candidates of this step."""
        if self.recorded is None:
            self.recorded = read_kept(self.ledger)
        if self.step >= len(self.recorded):
            raise ValueError(self._ends())
        weights = self.recorded[self.step]
        places: dict[str, int] = {}
        for place, name in enumerate(facts(signals, "id")):
            places.setdefault(name, place)
        missing = [name for name in weights if name not in places]
        if missing:
            raise ValueError(
                f"{len(missing)} of the {len(weights)} ids that selector.ledger={self.ledger} kept at step {self.step} "
                f"are not in this pool ({_some(missing)}): {SAME}"
            )
        self.step += 1
        index = torch.tensor([places[name] for name in weights], dtype=torch.long)
        usable = torch.isin(index, candidates(signals, 0))
        weight = torch.tensor(list(weights.values()), dtype=torch.float64)
        return keep(signals, index[usable], weight[usable], dropped=float((~usable).sum()))

    def state_dict(self) -> dict[str, Any]:
        """The next step."""
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on at a step."""
        self.step = int(state["step"])


def _some(ids: Iterable[str]) -> str:
    return ", ".join(map(shown, list(ids)[:3]))


def read_kept(path: str) -> list[dict[str, float]]:
    """What a run kept, by step.

    Args:
        path: its folder or ledger.

    Returns:
        For every step from 0 the weight of each kept id.

    Raises:
        ValueError: the ledger does not begin at step 0, or has gaps.
    """
    from winnow.records.ledger import read  # parquet is read by this selector alone

    table = read(Path(path)).select(["step", "id", "kept", "weight"]).to_pydict()
    steps = sorted(set(table["step"]))
    if steps != list(range(len(steps))):
        raise ValueError(f"selector.ledger={path} is not the whole ledger of a run: its steps are not 0, 1, 2, ...")
    kept: list[dict[str, float]] = [{} for _ in steps]
    for step, name, chosen, weight in zip(*(table[key] for key in ("step", "id", "kept", "weight")), strict=True):
        if chosen:
            kept[step][name] = weight
    return kept
