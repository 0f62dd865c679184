"""From a row's fields to an example."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from winnow.data.example import Example
from winnow.data.files import check_text
from winnow.records.shown import shown

LABELS = ("group", "noise")


@dataclass(frozen=True)
class Row:
    """One record as it was read.

    Args:
        fields: its fields.
        where: where it stands, for messages ("train.jsonl, line 7").
        id: the example's id, unless the record has an ``id`` of its own.
        source: the example's source, unless the record has a ``source`` of its own.
    """

    fields: Mapping[str, Any]
    where: str
    id: str
    source: str


@dataclass(frozen=True)
class Fields:
    """Which fields of a record are the prompt, the response and the rest.

    Prompt and response are names of fields, or templates over them where they contain a brace:
    ``"Question: {question} Answer:"``. A dot reaches into an object: ``meta.answer``.
    A record that has the ``messages`` field is read as a chat and needs no prompt or response.

    Args:
        prompt: what the model is given.
        response: what it is trained to say.
        messages: a chat, as a list of ``{role, content}`` whose last turn is the assistant's.
        id: unique id.
        source: where the record came from, for composition tables.
        answer: what a scorer compares a generation with.
    """

    prompt: str = "prompt"
    response: str = "response"
    messages: str = "messages"
    id: str = "id"
    source: str = "source"
    answer: str = "answer"

    def example(self, row: Row) -> Example:
        """Read one record.

        Args:
            row: the record.

        Returns:
            The example; its response may be empty.

        Raises:
            ValueError: a field is missing or of the wrong kind; names the record, the field and the fix.
        """
        labels = {name: str(row.fields[name]) for name in LABELS if row.fields.get(name) not in (None, "")}
        answer = _find(row.fields, self.answer)
        if answer is None and self.answer == "answer":
            answer = _find(row.fields, "meta.answer")
        shared: dict[str, Any] = {
            "id": str(_default(_find(row.fields, self.id), row.id)),
            "source": str(_default(_find(row.fields, self.source), row.source)),
            "labels": labels,
            "answer": None if answer is None else str(answer),
        }
        messages = _find(row.fields, self.messages)
        if messages is None:
            return Example(prompt=self._text("prompt", row), response=self._text("response", row), **shared)
        turns = _turns(messages, row, self.messages)
        prompt = "\n".join(turn["content"] for turn in turns[:-1])
        return Example(prompt=prompt, response=turns[-1]["content"], messages=turns, **shared)

    def _text(self, role: str, row: Row) -> str:
        name = getattr(self, role)
        if "{" in name:
            return _Template().vformat(name, (), _Missing(row, self, role))
        value = _find(row.fields, name)
        if value is None:
            raise ValueError(_missing(row, name, role))
        if not isinstance(value, str):
            raise ValueError(f"{row.where}: field `{name}` must be text, got {type(value).__name__} {value!r:.60}")
        return value


class _Template(string.Formatter):
    """Formats whole field names only: no attribute or index access from a template."""

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        return kwargs[field_name], field_name


class _Missing(dict[str, Any]):
    """Looks template fields up in a record; one that is not there is an error that names it."""

    def __init__(self, row: Row, fields: Fields, role: str) -> None:
        super().__init__()
        self.row, self.role = row, role

    def __missing__(self, name: str) -> Any:
        value = _find(self.row.fields, name)
        if value is None:
            raise ValueError(_missing(self.row, name, self.role))
        return value


def _find(fields: Mapping[str, Any], name: str) -> Any:
    """A field by name, or by a path with dots; None where it is not there."""
    if name in fields:
        return fields[name]
    value: Any = fields
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value


def _default(value: Any, default: str) -> Any:
    return default if value is None else value


def _missing(row: Row, name: str, role: str) -> str:
    known = ", ".join(f"`{shown(key)}`" for key in row.fields) or "none"
    return (
        f"{row.where}: field `{name}` is missing or null (the record has {known}); "
        f"name the field that holds the {role} in data.corpus.fields.{role}, or give `messages`"
    )


def _turns(messages: Any, row: Row, name: str) -> tuple[dict[str, str], ...]:
    """A chat, checked: turns of text, the last one the assistant's."""
    if not isinstance(messages, Sequence) or isinstance(messages, str) or len(messages) < 2:
        raise ValueError(f"{row.where}: field `{name}` must be a list of at least two turns, got {messages!r:.80}")
    turns = []
    for number, turn in enumerate(messages, 1):
        if not isinstance(turn, Mapping) or not all(isinstance(turn.get(key), str) for key in ("role", "content")):
            raise ValueError(
                f"{row.where}: field `{name}`, turn {number}, must be an object with `role` and `content` as text, "
                f"got {turn!r:.80}"
            )
        turns.append({"role": turn["role"], "content": turn["content"]})
    if turns[-1]["role"] != "assistant":
        raise ValueError(
            f"{row.where}: the last turn of `{name}` is the response and must have the role `assistant`, "
            f"got {turns[-1]['role']!r}"
        )
    return tuple(turns)


def _check_text(example: Example, row: Row) -> None:
    texts = {"prompt": example.prompt, "response": example.response, "id": example.id, "source": example.source}
    texts |= {"answer": example.answer or "", **example.labels}
    # Roles reach the tokenizer, too: a chat template writes them.
    texts["messages"] = "".join(turn["role"] + turn["content"] for turn in example.messages or ())
    for name, text in texts.items():
        check_text(text, name, row.where)
