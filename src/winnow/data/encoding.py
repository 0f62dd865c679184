"""How examples become tokens, and what they became."""

from __future__ import annotations

from dataclasses import dataclass

from winnow.data.render import LOSS_ON

TRUNCATE = ("right", "left", "drop")
JOINED = "data.join_turns=true"


@dataclass(frozen=True)
class Encoding:
    """How examples become tokens.

    Args:
        loss_on: ``assistant``, every turn of the assistant's, or ``last``, the last one alone; ``data.loss_on``.
        truncate: what is cut where an example is longer than ``max_length``: its end (``right``), its beginning
            (``left``), or nothing, and it cannot be chosen (``drop``); ``data.truncate``.
        join_turns: join the turns of a chat by line breaks where the tokenizer has no chat template;
            ``data.join_turns``.
        date: what templates that write today's date are given, as ``2026-11-26``; None for the clock's;
            ``data.date``.

    Raises:
        ValueError: an option is none of these.
    """

    loss_on: str = "assistant"
    truncate: str = "right"
    join_turns: bool = False
    date: str | None = None

    def __post_init__(self) -> None:
        for name, value, known in (("loss_on", self.loss_on, LOSS_ON), ("truncate", self.truncate, TRUNCATE)):
            if value not in known:
                raise ValueError(f"data.{name} must be one of {', '.join(known)}; got {value!r}")


PLAIN = Encoding()


@dataclass(frozen=True)
class Encoded:
    """Token ids of one example.

    Args:
        input_ids: prompt, response and what ends it.
        labels: the same ids where there is loss, -100 elsewhere.
        truncated: whether ``max_length`` cut something off.
        length: tokens before that.
        turns: of the assistant's.
        trained: of these, turns that carry loss.
        said: tokens of the assistant's, before the cut.
        parted: whether a generation would be opened otherwise than the template writes a turn that is trained on.
    """

    input_ids: list[int]
    labels: list[int]
    truncated: bool
    length: int = 0
    turns: int = 1
    trained: int = 1
    said: int = 0
    parted: bool = False
