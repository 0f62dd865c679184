"""Keys of turns that make no difference to what is trained on, said once before the first step."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from winnow.data.chat import spoken
from winnow.data.example import Example
from winnow.data.rejects import BadRow
from winnow.data.render import template_of
from winnow.data.turn_keys import Chat, TurnKeys
from winnow.records.shown import shown

log = logging.getLogger(__name__)


def say_unread(keys: TurnKeys, tokenizer: PreTrainedTokenizerBase, day: str | None = None) -> None:
    """Warn of keys without which a few chats that have them are written as they are with them.

    Args:
        keys: of the turns.
        tokenizer: with its chat template, or without one: turns are then joined.
        day: for templates that write the date.
    """
    found = unread(keys, tokenizer, day)
    if found:
        who = "the chat template does not read" if tokenizer.chat_template else "without a chat template nothing reads"
        named = ", ".join(f"`{shown(key)}` ({count})" for key, count in found.items())
        log.warning("%s these keys of turns (turns that have them): %s", who, named)


def unread(keys: TurnKeys, tokenizer: PreTrainedTokenizerBase, day: str | None = None) -> dict[str, int]:
    """Keys of turns that are not read, as far as the first chats with each of them tell.

    Args:
        keys: of the turns.
        tokenizer: as for :func:`say_unread`.
        day: likewise.

    Returns:
        Turns by key, the most frequent first.
    """
    return {
        key: count
        for key, count in keys.counts.most_common()
        if not any(_matters(key, chat, tokenizer, day) for chat in keys.probes[key])
    }


def _matters(key: str, chat: Chat, tokenizer: PreTrainedTokenizerBase, day: str | None) -> bool:
    turns, tools, variables = chat
    try:
        whole = _text(turns, tools, variables, tokenizer, day)
    except BadRow:  # refused on its own account, by file and line
        return True
    try:
        without = [{name: value for name, value in turn.items() if name != key} for turn in turns]
        return _text(without, tools, variables, tokenizer, day) != whole
    except BadRow:
        return True


def _text(
    turns: Sequence[Mapping[str, Any]],
    tools: Sequence[Any] | None,
    variables: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    day: str | None,
) -> str:
    if not tokenizer.chat_template:
        return "\n".join(spoken(turn) for turn in turns)
    held = None if tools is None else tuple(tools)
    return template_of(Example("", "", "", "", tuple(turns), tools=held, template=variables), tokenizer, day)(turns)
