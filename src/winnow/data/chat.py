"""Turns of a chat as public data sets write them, brought to the one form that chat templates read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from winnow.data.calls import calls_of, without_nulls
from winnow.data.rejects import BadRow
from winnow.records.shown import shown

ROLES = {
    "human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant",
    "bot": "assistant", "model": "assistant", "ai": "assistant", "observation": "tool", "function_response": "tool",
    "tool_response": "tool", "function_call": "assistant", "tool_call": "assistant",
}  # fmt: skip
"""Names that data sets give to roles, ShareGPT's first of all, and what templates call them."""
CALLS = ("function_call", "tool_call")
LOSS_KEYS = ("weight", "train", "training", "loss")
"""Keys of a turn that say whether it is trained on: OpenAI and Together, axolotl, ms-swift."""
REASONING = ("reasoning_content", "reasoning", "thinking")
"""Keys that hold what an assistant thought before it answered."""


def turns_of(messages: Any, name: str, system: str | None = None) -> tuple[dict[str, Any], ...]:
    """A chat, checked and levelled.

    Roles and contents may be called ``role``/``content`` or ``from``/``value``; content may be a list of text parts, or
    null where there are tool calls; arguments of tool calls may be JSON in a text. Null keys are left out.

    Args:
        messages: the turns.
        name: the field that holds them, for messages.
        system: what stands before them as a system turn; None or empty for none.

    Returns:
        Turns with ``role``, ``content`` and whatever else they had; ``weight`` 0 where a turn carries no loss.

    Raises:
        BadRow: they are no chat that ends with the assistant.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise BadRow(f"field `{name}` must be a list of turns", f"got {messages!r:.80}")
    turns = [_turn(turn, number, name) for number, turn in enumerate(messages, 1)]
    if system and (not turns or turns[0]["role"] != "system"):
        turns.insert(0, {"role": "system", "content": system})
    if not any(turn["role"] == "assistant" for turn in turns):
        raise BadRow(f"field `{name}` has no turn of the assistant's", f"{len(turns)} turns")
    if turns[-1]["role"] != "assistant":
        raise BadRow(
            f"the last turn of `{name}` is the response and must have the role `assistant`",
            f"got {shown(turns[-1]['role'])!r}",
        )
    if len(turns) < 2:
        raise BadRow(f"field `{name}` must be a list of at least two turns", "got one")
    return tuple(turns)


def spoken(turn: Mapping[str, Any]) -> str:
    """A turn as plain text: what was thought, said and called.

    Args:
        turn: as :func:`turns_of` gives it.

    Returns:
        The parts that are there, joined by line breaks.
    """
    thought = next((turn[key] for key in REASONING if turn.get(key)), "")
    calls = [json.dumps(call.get("function", call), ensure_ascii=False) for call in turn.get("tool_calls") or ()]
    return "\n".join(part for part in (thought, turn["content"], *calls) if part)


def _turn(turn: Any, number: int, name: str) -> dict[str, Any]:
    where = f"field `{name}`, turn {number}"
    if not isinstance(turn, Mapping):
        raise BadRow(
            f"a turn of `{name}` must be an object with `role` and `content`", f"turn {number} is {turn!r:.60}"
        )
    rest = {key: value for key, value in turn.items() if value is not None}
    role = rest.pop("role", None) or rest.pop("from", None)
    content = rest.pop("content", rest.pop("value", None))
    if not isinstance(role, str):
        raise BadRow(f"a turn of `{name}` has no role", f"{where}: {turn!r:.80}")
    rest = {key: without_nulls(value) for key, value in rest.items()}
    if "tool_calls" in rest:
        rest["tool_calls"] = calls_of(rest["tool_calls"], where)
    elif role in CALLS:
        rest["tool_calls"], content = calls_of(content, where), ""
    if not rest.get("tool_calls"):
        rest.pop("tool_calls", None)
    for key in REASONING:
        if not isinstance(rest.get(key, ""), str):
            raise BadRow(f"`{key}` of a turn must be text", f"{where}: {rest[key]!r:.60}")
    text = _content(content, where, optional="tool_calls" in rest or any(rest.get(key) for key in REASONING))
    levelled = {"role": ROLES.get(role, role), "content": text, **rest}
    return _weighed(levelled, where)


def _content(content: Any, where: str, optional: bool) -> str:
    if isinstance(content, list):
        parts = []
        for part in content:
            kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
            text = part.get("text") if isinstance(part, Mapping) else part
            if kind not in ("text", "input_text", "output_text") or not isinstance(text, str):
                raise BadRow(
                    "content of parts that are not text (images, audio) cannot be trained on", f"{where}: {kind}"
                )
            parts.append(text)
        return "".join(parts)
    if content is None and optional:
        return ""
    if not isinstance(content, str):
        raise BadRow("a turn must have `content` as text", f"{where}: got {content!r:.60}")
    return content


def _weighed(turn: dict[str, Any], where: str) -> dict[str, Any]:
    """A turn with one ``weight`` of 0 where any of the known keys says that it carries no loss."""
    said = {key: turn.pop(key) for key in LOSS_KEYS if key in turn}
    if "train_detail" in turn:
        raise BadRow("`train_detail` of a turn is not supported", f"{where}: say weight 0 or 1 of the whole turn")
    for key, value in said.items():
        if value not in (0, 1):
            raise BadRow(f"`{key}` of a turn must be 0 or 1", f"{where}: got {value!r:.40}")
    return {**turn, "weight": 0} if any(value == 0 for value in said.values()) else turn
