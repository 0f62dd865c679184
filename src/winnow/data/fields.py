"""From a record to an example: by the fields that were named, or by the shape of the record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from winnow.data.calls import tools_of
from winnow.data.chat import spoken, turns_of
from winnow.data.example import Example
from winnow.data.files import check_text
from winnow.data.named import Missing, Template, default, find, missing, names, unescaped
from winnow.data.rejects import BadRow
from winnow.data.shapes import COMMON, Shaped, recognised
from winnow.data.weight import row_weight

LABELS = ("group", "noise")
RESERVED = frozenset({
    "self", "conversation", "tools", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize",
    "padding", "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask",
    "tokenizer_kwargs", "sanitize_control_tokens",
})  # fmt: skip
"""Arguments of ``apply_chat_template``: a row may give its template variables, and neither bring a template nor say how
it is written."""


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
class Read:
    """A record that became an example.

    Args:
        example: the example.
        shape: how it was read, in words.
        used: keys of the record that were looked at.
    """

    example: Example
    shape: str
    used: frozenset[str]


@dataclass(frozen=True)
class Fields:
    r"""Which fields of a record are the prompt, the response and the rest; None: found by the record's shape.

    Prompt and response are names of fields, or templates over them where they contain a brace:
    ``"Question: {question} Answer:"``, in which ``\n`` and ``\t`` stand for a line break and a tab. A dot reaches
    into an object: ``meta.answer``. What is named is read, whatever shape the record has besides.

    Args:
        prompt: what the model is given.
        response: what it is trained to say.
        messages: a chat: a list of turns (``role``/``content``, or ``from``/``value``) that ends with the assistant's.
        text: plain text, trained on as a whole.
        system: a system turn that stands before a chat.
        tools: descriptions of tools for the chat template.
        id: unique id.
        source: where the record came from, for composition tables.
        answer: what a scorer compares a generation with.

    Raises:
        ValueError: more than one of prompt and response, messages, and text is named.
    """

    prompt: str | None = None
    response: str | None = None
    messages: str | None = None
    text: str | None = None
    system: str | None = None
    tools: str | None = None
    id: str | None = None
    source: str | None = None
    answer: str | None = None

    def __post_init__(self) -> None:
        named = [name for name in ("messages", "text") if getattr(self, name) is not None]
        if self.prompt is not None or self.response is not None:
            named.insert(0, "prompt" if self.prompt is not None else "response")
        if len(named) > 1:
            keys = " and ".join(f"data.corpus.fields.{name}" for name in named)
            raise ValueError(f"{keys} contradict each other: a record is read in one way; set all but one to null")

    def example(self, row: Row) -> Example:
        """Read one record.

        Args:
            row: the record.

        Returns:
            The example; its response may be empty.

        Raises:
            BadRow: a field is missing or of the wrong kind; names the field and the fix.
        """
        return self.read(row).example

    def read(self, row: Row) -> Read:
        """Read one record, and say how.

        Args:
            row: the record.

        Returns:
            The example, the shape and the keys that were looked at.

        Raises:
            BadRow: as for :meth:`example`.
        """
        record = row.fields
        weight = row_weight(record)
        shaped = self._named(record) or recognised(record)
        answer = find(record, self.answer or "answer")
        if answer is None and self.answer is None:
            answer = find(record, "meta.answer")
        shared: dict[str, Any] = {
            "id": str(default(find(record, self.id or "id"), row.id)),
            "source": str(default(find(record, self.source or "source"), row.source)),
            "labels": {name: str(record[name]) for name in LABELS if record.get(name) not in (None, "")},
            "answer": None if answer is None else str(answer),
            "weight": weight,
        }
        named = {getattr(self, name) or name for name in ("id", "source", "answer")}
        beside = {self.system or "system", self.tools or "tools", "chat_template_kwargs"}
        if shaped.chat is None and shaped.prompt and any(find(record, key) for key in beside):
            # What a template is to write beside the turns makes a chat of a prompt and a response.
            turns = [{"role": "user", "content": shaped.prompt}, {"role": "assistant", "content": shaped.response}]
            shaped = replace(shaped, chat=turns, field="prompt")
        if shaped.chat is not None:
            named |= beside
        used = shaped.used | COMMON | {name.split(".")[0] for name in named}
        return Read(_example(shaped, record, self, shared), shaped.name, frozenset(used))

    def _named(self, record: Mapping[str, Any]) -> Shaped | None:
        if self.messages is not None:
            chat = find(record, self.messages)
            if chat is None:
                raise missing(record, self.messages, "messages")
            return Shaped(f"chats ({self.messages})", {self.messages.split(".")[0]}, chat=chat, field=self.messages)
        if self.text is not None:
            return Shaped(f"plain text ({self.text})", {self.text.split(".")[0]}, "", self._text(record, "text"))
        if self.prompt is not None or self.response is not None:
            pair = ("prompt", "response")
            texts = {name: self._text(record, name) for name in pair}
            used = set().union(*(names(getattr(self, name) or name) for name in pair))
            return Shaped("prompt and response (data.corpus.fields)", used, texts["prompt"], texts["response"])
        return None

    def _text(self, record: Mapping[str, Any], role: str) -> str:
        name = getattr(self, role)
        if name is None:
            name = role
        if not name:
            return ""
        if "{" in name:
            return Template().vformat(unescaped(name), (), Missing(record, role))
        value = find(record, name)
        if value is None:
            raise missing(record, name, role)
        if not isinstance(value, str):
            raise BadRow(f"field `{name}` must be text", f"got {type(value).__name__} {value!r:.60}")
        return value


def _example(shaped: Shaped, record: Mapping[str, Any], named: Fields, shared: dict[str, Any]) -> Example:
    if shaped.chat is None:
        return Example(prompt=shaped.prompt, response=shaped.response, **shared)
    system = shaped.system if shaped.system is not None else find(record, named.system or "system")
    if system is not None and not isinstance(system, str):
        raise BadRow(f"field `{named.system or 'system'}` must be text", f"got {type(system).__name__} {system!r:.60}")
    variables = record.get("chat_template_kwargs") or {}
    if not isinstance(variables, Mapping):
        raise BadRow("field `chat_template_kwargs` must be an object", f"got {variables!r:.60}")
    if taken := sorted(RESERVED & variables.keys()):
        raise BadRow("field `chat_template_kwargs` sets more than variables of the template", ", ".join(taken))
    turns = turns_of(shaped.chat, shaped.field, system)
    tools = tools_of(find(record, named.tools or "tools"), named.tools or "tools")
    prompt = "\n".join(text for text in (spoken(turn) for turn in turns[:-1]) if text)
    return Example(
        prompt=prompt, response=spoken(turns[-1]), messages=turns, tools=tools, template=dict(variables), **shared
    )


def check_texts(example: Example) -> None:
    """Refuse text that no tokenizer and no file takes, wherever in an example it stands.

    Args:
        example: the example.

    Raises:
        BadRow: there is half of a surrogate pair in it.
    """
    texts = {"prompt": example.prompt, "response": example.response, "id": example.id, "source": example.source}
    texts |= {"answer": example.answer or "", **example.labels}
    for name, text in texts.items():
        check_text(text, name)
    if example.messages is not None or example.tools or example.template:
        # Roles and tools reach the tokenizer, too: a chat template writes them.
        check_text("".join(_leaves((example.messages, example.tools, example.template))), "messages")


def _leaves(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [leaf for key, one in value.items() for leaf in (str(key), *_leaves(one))]
    return [leaf for one in value for leaf in _leaves(one)] if isinstance(value, list | tuple) else []
