"""What flows through the suite: an example, a stream of them, and a target task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from winnow.data.rejects import Rejects
from winnow.data.turn_keys import TurnKeys


@dataclass(frozen=True)
class Example:
    """One prompt and its response.

    Args:
        id: unique within its stream; stable across runs.
        source: where it came from, for composition tables ("tasks/chains", "dolly/open_qa").
        prompt: what the model is given; empty for plain text.
        response: what it is trained to say; the loss is over these tokens only.
        messages: the chat this was made from, if it was one, with every key its turns had: the last turn is
            ``response``, those before it the prompt; ``prompt`` then holds their plain text. A turn of
            ``weight`` 0 carries no loss.
        tools: descriptions of tools, for the chat template.
        template: further variables for the chat template (``chat_template_kwargs`` of a record).
        labels: hidden labels ("group", "noise"): for analysis, never seen by a selector.
        answer: what the task's scorer compares a generation with; None means ``response``.
        weight: what its loss is multiplied by, >= 0, in scoring and in updates; of candidates alone.
    """

    id: str
    source: str
    prompt: str
    response: str
    messages: tuple[Mapping[str, Any], ...] | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    answer: str | None = None
    tools: tuple[Any, ...] | None = None
    template: Mapping[str, Any] = field(default_factory=dict)
    weight: float = 1.0


@runtime_checkable
class Stream(Protocol):
    """Candidates by position; a pure function of the position, so that resume is exact."""

    @property
    def size(self) -> int | None:
        """Number of examples in one epoch; None if endless."""

    def __getitem__(self, index: int) -> Example:
        """The example at a position (0 <= index, index < size where finite)."""


Score = Callable[[str, Example], float]


@dataclass(frozen=True)
class Target:
    """A task to get better at.

    Args:
        name: for metrics and tables.
        val: examples the target batches are drawn from, and whose NLL is watched in training.
        test: examples touched only by the evaluations before and after.
        score: generation and example to a score in [0, 1]; None if the task has no scorer.
        weight: share of this task in the target gradient, relative to the other targets.
        max_new_tokens: length allowed to a generation.
    """

    name: str
    val: Sequence[Example]
    test: Sequence[Example]
    score: Score | None = None
    weight: float = 1.0
    max_new_tokens: int = 64


@dataclass(frozen=True)
class Corpus:
    """A stream of candidates and the targets it is selected for.

    Args:
        stream: the candidates.
        targets: one or more target tasks.
        report: counts of what loading excluded, by reason ("empty response": 3), for the log.
        rejects: rows that cannot be used, and whether that ends the run; where rows are read from files.
        turns: keys of the chats' turns; where rows are read from files.
    """

    stream: Stream
    targets: Sequence[Target]
    report: Mapping[str, int] = field(default_factory=dict)
    rejects: Rejects = field(default_factory=Rejects)
    turns: TurnKeys = field(default_factory=TurnKeys)
