"""A chat through its template: the text, and where in it each turn of the assistant's stands.

Where a turn stands is never looked for by its words. It begins where a generation would begin: at the end of what the
template writes for the turns before it, with the mark that opens a reply. It ends where the template's text for the
turns up to it ends. Where a template writes a turn otherwise once others follow (Qwen 3 leaves earlier thoughts out),
the same chat with two other texts in the turn's place says which part is the turn's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from winnow.data.day import frozen
from winnow.data.example import Example
from winnow.data.rejects import BadRow
from winnow.records.shown import shown

LOSS_ON = ("assistant", "last")
STAND_INS = ("Zq7Xv", "kW3jp")
"""Texts in place of a turn's own: no first and no last letter in common, and nothing that a template would change."""


@dataclass(frozen=True)
class Span:
    """A turn of the assistant's in the text.

    Args:
        start: its first character: the first that a generation would write.
        end: behind its last one, the mark that ends the turn included.
        turn: its position in the chat.
        loss: whether it is trained on.
        parted: whether the text that opens a generation goes on otherwise than the template writes this turn.
    """

    start: int
    end: int
    turn: int
    loss: bool
    parted: bool = False


@dataclass(frozen=True)
class Rendered:
    """A chat as text.

    Args:
        text: up to the end of the last turn.
        spans: the assistant's turns, in order.
        turns: what was rendered.
    """

    text: str
    spans: tuple[Span, ...]
    turns: tuple[Mapping[str, Any], ...]


def turns_of_example(example: Example) -> tuple[Mapping[str, Any], ...]:
    """The chat of an example, also of one that is a prompt and a response.

    Args:
        example: the example.

    Returns:
        Its turns.
    """
    if example.messages is not None:
        return example.messages
    return ({"role": "user", "content": example.prompt}, {"role": "assistant", "content": example.response})


def carries_loss(turns: Sequence[Mapping[str, Any]], position: int, loss_on: str) -> bool:
    """Whether a turn is trained on.

    Args:
        turns: the chat.
        position: of the turn.
        loss_on: ``assistant``, every turn of the assistant's, or ``last``, the last one alone.

    Returns:
        Whether it is the assistant's, asked for, and not of weight 0.
    """
    turn = turns[position]
    asked = loss_on == "assistant" or position == len(turns) - 1
    return turn["role"] == "assistant" and asked and turn.get("weight", 1) != 0


def template_of(example: Example, tokenizer: PreTrainedTokenizerBase, day: str | None = None) -> Callable[..., str]:
    """The chat template with an example's tools and variables.

    Args:
        example: the example.
        tokenizer: has a chat template.
        day: the date that a template which writes today's is given, as ``2026-11-26``; None for the clock's.

    Returns:
        A function of turns, and of whether a generation is opened behind them, to text. It raises ``BadRow`` where
        the template refuses.
    """
    variables = dict(example.template)
    tools = None if example.tools is None else list(example.tools)
    if day is not None:
        variables["chat_template"] = frozen(tokenizer.get_chat_template(tools=tools), day)

    def write(turns: Sequence[Mapping[str, Any]], opened: bool = False) -> str:
        given = [{key: value for key, value in turn.items() if key != "weight"} for turn in turns]
        try:
            return str(
                tokenizer.apply_chat_template(
                    given, tools=tools, add_generation_prompt=opened, tokenize=False, **variables
                )
            )
        except (TemplateError, TypeError, ValueError, AttributeError, KeyError, IndexError) as error:
            roles = ", ".join(shown(turn["role"]) for turn in turns)
            raise BadRow("the chat template refuses the turns", f"({roles}): {shown(error)[:200]}") from error

    return write


def render(
    example: Example, tokenizer: PreTrainedTokenizerBase, loss_on: str = "assistant", day: str | None = None
) -> Rendered:
    """A chat through the tokenizer's template.

    Args:
        example: the example.
        tokenizer: has a chat template.
        loss_on: ``assistant`` | ``last``.
        day: for templates that write the date.

    Returns:
        Text and spans. The line break behind the last turn, which is never generated, is left out.

    Raises:
        BadRow: the template refuses the chat, or it cannot be said which part of the text is a turn's.
    """
    turns, write = turns_of_example(example), template_of(example, tokenizer, day)
    whole = write(turns)
    text = whole.rstrip()
    spans: list[Span] = []
    for position, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        start, end, parted = _place(turns, position, write, whole, text, tokenizer)
        loss = carries_loss(turns, position, loss_on)
        if start < (spans[-1].end if spans else 0) or end < start + loss:
            raise BadRow("the chat template writes nothing for a turn of the assistant's", f"turn {position + 1}")
        spans.append(Span(start, end, position, loss, parted))
    return Rendered(text, tuple(spans), turns)


def _place(
    turns: Sequence[Mapping[str, Any]],
    position: int,
    write: Callable[..., str],
    whole: str,
    text: str,
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[int, int, bool]:
    """Where a turn begins and ends, and whether the opened generation goes on otherwise."""
    opened = _tried(write, turns[:position], True) if position else None
    ended = text if position == len(turns) - 1 else (_tried(write, turns[: position + 1], False) or "\0").rstrip()
    start = len(opened) if opened is not None and text.startswith(opened) else None
    end = len(ended) if text.startswith(ended) else None
    if start is not None and end is not None:
        return start, end, False
    others = [
        write([*turns[:position], {"role": "assistant", "content": word}, *turns[position + 1 :]]) for word in STAND_INS
    ]
    before = _common_prefix([*others, whole])
    if start is None:
        start = len(before if opened is None else _common_prefix([before, opened]))
    if end is None:
        behind = _common_suffix([*others, whole])
        end = len(whole) - len(behind)
        end += _mark(behind, tokenizer)
    return start, end, opened is not None and not text.startswith(opened)


def _tried(write: Callable[..., str], turns: Sequence[Mapping[str, Any]], opened: bool) -> str | None:
    """Part of a chat; None where the template takes it only with more turns."""
    try:
        return write(turns, opened)
    except BadRow:
        return None


def _common_prefix(texts: Sequence[str]) -> str:
    first, last = min(texts), max(texts)  # what the two ends of the alphabet share, all share
    low, high = 0, min(len(first), len(last))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if first[:middle] == last[:middle] else (low, middle - 1)
    return first[:low]


def _common_suffix(texts: Sequence[str]) -> str:
    return _common_prefix([text[::-1] for text in texts])[::-1]


def _mark(behind: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """Characters of the special token that ends a turn, where the text behind the turn begins with one."""
    marks = sorted(special_texts(tokenizer), key=len, reverse=True)
    found = re.match(r"\s*(?:" + "|".join(re.escape(mark) for mark in marks) + ")", behind) if marks else None
    return 0 if found is None else found.end()


def special_texts(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Special tokens as text, named or only added.

    Args:
        tokenizer: the model's tokenizer.

    Returns:
        Their texts.
    """
    return {entry.content for entry in tokenizer.added_tokens_decoder.values() if entry.special}
