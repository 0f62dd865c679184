"""Rows of fields to examples, and examples to a corpus: what `jsonl` and `hub` have in common."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import signature
from typing import Any, TypeVar

from winnow.data.example import Corpus, Example, Score, Target
from winnow.data.files import check_text
from winnow.data.overlap import check_disjoint
from winnow.data.scoring import scorer_for
from winnow.shown import shown

LABELS = ("group", "noise")
T = TypeVar("T")


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


class Listed:
    """A finite stream over a list of examples.

    Args:
        examples: the examples, in order.
    """

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples

    @property
    def size(self) -> int:
        """Number of examples."""
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        """The example at a position.

        Args:
            index: position, 0 <= index < size.

        Returns:
            The example.
        """
        return self.examples[index]


@dataclass
class Reader:
    """Reads records into examples and counts what it leaves out.

    Args:
        fields: how records are read.
        report: counts so far, by reason.
    """

    fields: Fields = field(default_factory=Fields)
    report: Counter[str] = field(default_factory=Counter)

    def read(self, rows: Iterable[Row], key: str, limit: int | None = None) -> list[Example]:
        """Read records; those with an empty response are left out and counted.

        Args:
            rows: the records.
            key: the config key they come from, for messages and counts.
            limit: most examples to keep; None for all.

        Returns:
            The examples, ids distinct.

        Raises:
            ValueError: there is none, an id occurs twice, or a record is not readable.
        """
        examples: list[Example] = []
        seen: dict[str, str] = {}
        for row in rows:
            if limit is not None and len(examples) >= limit:
                break
            example = self.fields.example(row)
            _check_text(example, row)
            if not example.response.strip():
                self.report[f"{key}: empty response"] += 1
                continue
            if example.id in seen:
                raise ValueError(
                    f"{row.where}: the id {example.id!r} was already used at {seen[example.id]} ({key}); "
                    "ids must be unique: change one, or drop the `id` field to have the examples numbered"
                )
            seen[example.id] = row.where
            examples.append(example)
        if not examples:
            left_out = self.report[f"{key}: empty response"]
            why = f"; {left_out} were left out for an empty response" if left_out else ""
            raise ValueError(f"{key} gives no examples{why}")
        return examples


@dataclass(frozen=True)
class TargetRows:
    """A target's records before they are read.

    Args:
        val: the target batches are drawn from these.
        test: looked at before and after training only.
        score: generation and example to a score in [0, 1], or its name; see :func:`winnow.data.scoring.scorer_for`.
        weight: share in the target gradient, relative to the other targets.
        max_new_tokens: length allowed to a generation.
        fields: how its records are read, where that differs from the stream's.
    """

    val: Iterable[Row]
    test: Iterable[Row]
    score: Score | str | None = None
    weight: float = 1.0
    max_new_tokens: int = 128
    fields: Mapping[str, str | None] | None = None


def options(cls: Callable[..., T], given: Any, key: str) -> T:
    """Build one of a corpus's parts from its config node.

    Args:
        cls: the dataclass of the part.
        given: its arguments by name, or the part itself.
        key: the config key, for messages.

    Returns:
        The part.

    Raises:
        ValueError: an argument is unknown or missing.
    """
    if not isinstance(given, Mapping):
        return given
    known = list(signature(cls).parameters.values())
    unknown = set(given) - {parameter.name for parameter in known}
    missing = [p.name for p in known if p.default is p.empty and given.get(p.name) is None]
    if unknown or missing:
        fault = f"has no {', '.join(sorted(unknown))}" if unknown else f"needs {', '.join(missing)}"
        raise ValueError(f"{key} {fault}; its keys are {', '.join(parameter.name for parameter in known)}")
    # A field set to null keeps its default.
    return cls(**({name: value for name, value in given.items() if value is not None} if cls is Fields else given))


def build_corpus(
    stream: Iterable[Row],
    targets: Mapping[str, TargetRows],
    fields: Mapping[str, str | None] | None = None,
    on_overlap: str = "error",
    limit: int | None = None,
) -> Corpus:
    """Read a stream and its targets, and make sure that they do not overlap.

    Args:
        stream: records of the candidates.
        targets: records of each target, by name.
        fields: arguments of ``Fields``; where the records differ from its defaults.
        on_overlap: ``error``, or ``drop`` to leave overlapping examples out and count them.
        limit: most examples of the stream; None for all.

    Returns:
        The corpus; its ``report`` counts what was left out.

    Raises:
        ValueError: see ``Reader.read`` and ``check_disjoint``.
    """
    report: Counter[str] = Counter()
    examples = Reader(options(Fields, fields or {}, "data.corpus.fields"), report).read(
        stream, "data.corpus.stream", limit
    )
    built = []
    for name, rows in targets.items():
        key = f"data.corpus.targets.{name}"
        reader = Reader(options(Fields, {**(fields or {}), **(rows.fields or {})}, f"{key}.fields"), report)
        val, test = reader.read(rows.val, f"{key}.val"), reader.read(rows.test, f"{key}.test")
        built.append(Target(name, val, test, scorer_for(rows.score, test, key), rows.weight, rows.max_new_tokens))
    examples, built, dropped = check_disjoint(examples, built, on_overlap)
    return Corpus(Listed(examples), built, {**report, **dropped})
