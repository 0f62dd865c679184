"""Shapes of public data sets, recognised by the keys of a record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from winnow.data.named import missing
from winnow.data.rejects import BadRow
from winnow.records.shown import shown

COMMON = {"id", "source", "answer", "group", "noise", "meta", "weight"}
"""Keys that are read whatever the shape."""
CHATS = ("messages", "conversations", "conversation")
RESPONSES = ("response", "completion")
ALPACA = ("output", "response")


@dataclass(frozen=True)
class Shaped:
    """What of a record is trained on.

    Args:
        name: the shape, in words.
        used: keys it was read from.
        prompt: what the model is given, where it is no chat.
        response: what it is trained to say, where it is no chat.
        chat: the turns, where it is one.
        field: the key that holds them, for messages.
        system: a system turn before them; None to look for the record's own.
    """

    name: str
    used: set[str]
    prompt: str = ""
    response: str = ""
    chat: Any = None
    field: str = "messages"
    system: str | None = None


def recognised(record: Mapping[str, Any]) -> Shaped:
    """The shape of a record: ``messages``, ShareGPT, prompt and response, alpaca, or plain text.

    Args:
        record: the fields.

    Returns:
        What is trained on.

    Raises:
        BadRow: no shape fits, a field is of the wrong kind, or the record is one of a preference or of a label.
    """
    has = {key for key, value in record.items() if value is not None}
    if {"chosen", "rejected"} <= has:
        raise BadRow(
            "`chosen` and `rejected` are a preference, which is not trained on here",
            "name what is, in data.corpus.fields",
        )
    if isinstance(record.get("label"), bool) and "prompt" in has:
        raise BadRow(
            "`label` true or false (as for KTO) says whether a response is wanted, which is not trained on here",
            "leave the rows with false out, and the key `label` of the others",
        )
    for key in CHATS:
        if key in has:
            return Shaped(f"chats ({key})", {key}, chat=record[key], field=key)
    if "prompt" in has:
        return _prompted(record, has)
    if "instruction" in has:
        return _alpaca(record, has)
    if "text" in has:
        return Shaped("plain text (text)", {"text"}, "", _text(record, "text"))
    keys = ", ".join(f"`{shown(key)}`" for key in record) or "none"
    raise BadRow(
        "no field is known (`messages`, `conversations`, `prompt` and `response`, `instruction` and `output`, `text`)",
        f"the record has {keys}; name the field that holds the prompt in data.corpus.fields.prompt, and the "
        "response's in data.corpus.fields.response",
    )


def _prompted(record: Mapping[str, Any], has: set[str]) -> Shaped:
    response = next((key for key in RESPONSES if key in has), None)
    if response is None:
        raise missing(record, "response", "response")
    used = {"prompt", response}
    if isinstance(record["prompt"], list):
        # As in TRL: what stands in the prompt is context, whoever said it.
        before = [{**turn, "weight": 0} if isinstance(turn, Mapping) else turn for turn in record["prompt"]]
        after = record[response]
        said = after if isinstance(after, list) else [{"role": "assistant", "content": after}]
        return Shaped(f"chats (prompt and {response})", used, chat=[*before, *said], field="prompt")
    return Shaped(f"prompt and {response}", used, _text(record, "prompt"), _text(record, response))


def _alpaca(record: Mapping[str, Any], has: set[str]) -> Shaped:
    output = next((key for key in ALPACA if key in has), None)
    if output is None:
        raise missing(record, "output", "response")
    more = next((key for key in ("input", "context") if key in has and record[key]), None)
    prompt = _text(record, "instruction") + (f"\n{_text(record, more)}" if more else "")
    used, response = {"instruction", "input", "context", output, "history"}, _text(record, output)
    history = record.get("history") or []
    if not history:
        return Shaped("instruction and output (alpaca)", used, prompt, response)
    turns: list[dict[str, Any]] = []
    for pair in history:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise BadRow("`history` must be a list of pairs of texts", f"got {pair!r:.60}")
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    turns += [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    return Shaped("chats (instruction, history and output)", used, chat=turns, field="history")


def _text(record: Mapping[str, Any], name: str) -> str:
    value = record[name]
    if not isinstance(value, str):
        raise BadRow(f"field `{name}` must be text", f"got {type(value).__name__} {value!r:.60}")
    return value
