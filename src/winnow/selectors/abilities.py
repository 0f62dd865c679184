"""What a selector may be able to do beside choosing; whoever has the methods has the ability."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from winnow.signals import Needs, Signals


@runtime_checkable
class Stateful(Protocol):
    """Remembers something over the pools, which checkpoints then hold: tensors and plain numbers only."""

    def state_dict(self) -> dict[str, Any]:
        """What is remembered."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""


@runtime_checkable
class Sized(Protocol):
    """Keeps a number of candidates that can be compared with the pool's before training."""

    filter_size: int


@runtime_checkable
class Ranking(Protocol):
    """Keeps the candidates with the highest scores, so that a whole stream can be ranked at once."""

    @property
    def needs(self) -> Needs:
        """What the scores are made from."""

    def scores(self, signals: Signals) -> Float[Tensor, " pool"] | None:
        """A score per candidate, the highest kept; None where the settings choose by something else."""


@runtime_checkable
class RankingByTask(Protocol):
    """Ranks by every target task, so that scores of several checkpoints are added up before the tasks are."""

    aggregate: str

    def task_scores(self, signals: Signals) -> Float[Tensor, "tasks pool"]:
        """A row of scores per task."""


@runtime_checkable
class Recorded(Protocol):
    """Was made for one stream, and can say before training whether this is it."""

    def check_stream(self, pools: Iterable[Sequence[str]], steps: int | None = None) -> None:
        """Refuse another stream; ``pools`` are the ids of its pools, ``steps`` how many of them will come."""


@runtime_checkable
class Labelled(Protocol):
    """Goes by the stream's hidden groups, and can say before training whether they are there."""

    def check_groups(self, groups: Iterable[str], whole: bool = True) -> None:
        """Refuse a stream without the groups it names; ``whole`` says that these are all the stream has."""
