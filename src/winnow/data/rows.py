"""Rows of fields to examples, and examples to a corpus: what `jsonl` and `hub` have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import signature
from typing import Any, TypeVar

from winnow.data.example import Corpus, Example, Score, Target
from winnow.data.fields import Fields, Row, _check_text
from winnow.data.overlap import check_disjoint
from winnow.data.scoring import scorer_for

T = TypeVar("T")


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
