"""Tools and tool calls of a chat, in the forms that data sets give them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from winnow.data.rejects import BadRow


def tools_of(value: Any, name: str) -> tuple[Any, ...] | None:
    """Descriptions of tools: a list, or JSON in a text, or a list of such texts.

    Args:
        value: what the record has; None for none.
        name: the field, for messages.

    Returns:
        The descriptions; None where there are none.

    Raises:
        BadRow: it is none of these.
    """
    value = _parsed(value)
    if value in (None, "", [], {}):
        return None
    listed = [
        _parsed(one) for one in (value if isinstance(value, Sequence) and not isinstance(value, str) else [value])
    ]
    if not all(isinstance(one, Mapping) for one in listed):
        raise BadRow(f"field `{name}` must be a list of tools, each an object", f"got {value!r:.80}")
    return tuple(without_nulls(one) for one in listed)


def calls_of(value: Any, where: str) -> list[dict[str, Any]]:
    """Tool calls with the arguments as objects, as templates want them; OpenAI writes them as JSON in a text.

    Args:
        value: a call or a list of them, or JSON of these in a text.
        where: the turn, for messages.

    Returns:
        The calls, each with its ``function``.

    Raises:
        BadRow: one is no object, or names no function.
    """
    value = _parsed(value)
    listed = value if isinstance(value, list) else [value]
    calls = []
    for one in listed:
        call = _parsed(one)
        if not isinstance(call, Mapping):
            raise BadRow("a tool call must be an object", f"{where}: got {one!r:.60}")
        function = call.get("function", call)
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise BadRow("a tool call must name its function", f"{where}: got {one!r:.60}")
        inner = {**function, "arguments": _parsed(function.get("arguments", function.get("parameters", {})))}
        around = call if "function" in call else {"type": "function"}
        calls.append({**around, "function": inner})
    return calls


def without_nulls(value: Any) -> Any:
    """A nested value without keys that are null, which tables write where a row has no such key.

    Args:
        value: of objects, lists and the rest.

    Returns:
        A copy.
    """
    if isinstance(value, Mapping):
        return {key: without_nulls(one) for key, one in value.items() if one is not None}
    if isinstance(value, list | tuple):
        return [without_nulls(one) for one in value]
    return value


def _parsed(value: Any) -> Any:
    """JSON in a text as what it says; other texts and values as they are."""
    if not isinstance(value, str) or value.strip()[:1] not in ("{", "["):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value
