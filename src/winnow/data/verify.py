"""Whether what is trained on is what a row says: its turns in the rendering, the response in the tokens with loss."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from winnow.data.chat import REASONING
from winnow.data.example import Example
from winnow.data.rejects import BadRow
from winnow.data.render import Rendered, Span
from winnow.records.shown import shown

THOUGHT = re.compile(r"^.*</think>", re.DOTALL)
LONG = 24
"""Characters from which on a text that stands twice was not merely said twice."""


def check_rendering(example: Example, rendered: Rendered) -> None:
    """Hold a rendering against its chat.

    Args:
        example: the example.
        rendered: it through the template.

    Raises:
        BadRow: the template dropped a turn, a tool call, a tool or a thought that carries loss, or wrote a turn twice.
    """
    spans = {span.turn: span for span in rendered.spans}
    for position, turn in enumerate(rendered.turns):
        span = spans.get(position)
        if span is not None and span.loss:
            _check_trained(turn, rendered.text[span.start : span.end], span)
        else:
            _check_context(turn, rendered.text, position)
        for call in turn.get("tool_calls") or ():
            where = rendered.text if span is None else rendered.text[span.start : span.end]
            _check_call(call, where, position)
    for tool in example.tools or ():
        function = tool.get("function", tool)
        said = [function.get(key) for key in ("name", "description")] if isinstance(function, Mapping) else []
        for text in said:
            if isinstance(text, str) and not _stands(text, rendered.text):
                raise BadRow(
                    "the chat template has no place for `tools`", f"{shown(text)} is not in the text; {REMEDY}"
                )
    _check_once(example, rendered)


REMEDY = "give a template that writes it with model.chat_template=FILE"


def _check_trained(turn: Mapping[str, Any], text: str, span: Span) -> None:
    for key in ("content", *REASONING):
        if not _stands(str(turn.get(key) or ""), text):
            kept = " (it keeps what follows </think>)" if key == "content" and "</think>" in turn["content"] else ""
            raise BadRow(
                f"the chat template drops `{key}` of a turn that is trained on",
                f"turn {span.turn + 1} becomes {shown(text)[:120]!r}{kept}; {REMEDY}, or train on the last turn alone "
                "with data.loss_on=last",
            )


def _check_context(turn: Mapping[str, Any], text: str, position: int) -> None:
    content = str(turn["content"])
    if turn["role"] == "assistant":
        content = THOUGHT.sub("", content)  # templates leave earlier thoughts out
    if not _stands(content, text):
        raise BadRow(
            "the chat template drops a turn",
            f"turn {position + 1} ({shown(turn['role'])}), {shown(content)[:60]!r}, is not in the text; {REMEDY}",
        )


def _check_call(call: Mapping[str, Any], text: str, position: int) -> None:
    function = call.get("function", call)
    missing = [leaf for leaf in (function["name"], *_leaves(function.get("arguments"))) if not _stands(leaf, text)]
    if missing:
        raise BadRow(
            "the chat template drops `tool_calls`",
            f"turn {position + 1}: {shown(missing[0])[:60]!r} is not in the text; {REMEDY}",
        )


def _check_once(example: Example, rendered: Rendered) -> None:
    """Nothing stands in the text more often than in the record."""
    said = "\n".join([
        *(str(value) for turn in rendered.turns for value in turn.values() if isinstance(value, str)),
        json.dumps([example.tools, dict(example.template), [turn.get("tool_calls") for turn in rendered.turns]]),
    ])
    for position, turn in enumerate(rendered.turns):
        content = str(turn["content"]).strip()
        if len(content) >= LONG and rendered.text.count(content) > said.count(content):
            raise BadRow(
                "the chat template writes a turn twice", f"turn {position + 1}, {shown(content)[:60]!r}; {REMEDY}"
            )


def _leaves(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [leaf for one in value.values() for leaf in _leaves(one)]
    if isinstance(value, list | tuple):
        return [leaf for one in value for leaf in _leaves(one)]
    return [] if value is None else [str(value)]


def _stands(wanted: str, text: str) -> bool:
    """Whether words stand in a text, as they are or as JSON or Python writes them, white space at the ends aside."""
    wanted = wanted.strip()
    if not wanted or wanted in text:
        return True
    quoted = (
        json.dumps(wanted, ensure_ascii=False)[1:-1],
        json.dumps(wanted)[1:-1],
        wanted.lower(),
        repr(wanted)[1:-1],
    )
    return any(one in text for one in quoted)


def check_spelled(wanted: str, spelled: str, again: str) -> None:
    """Hold the tokens with loss against the text they stand for.

    Args:
        wanted: the text.
        spelled: what the tokens say.
        again: what the text says once it has been to tokens and back, which is where a tokenizer changes it.

    Raises:
        BadRow: they say something else.
    """
    if _level(wanted) not in _level(spelled) and _level(again) not in _level(spelled):
        raise BadRow("the tokens with loss do not spell the response", f"they say {shown(spelled)[:120]!r}")


def _level(text: str) -> str:
    return "".join(text.split())
