"""Rows of fields to examples, and examples to a corpus: what `jsonl` and `hub` have in common."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from filelock import FileLock

from winnow.data.example import Corpus, Example, Score, Target
from winnow.data.fields import Fields, Row, check_texts
from winnow.data.overlap import check_disjoint
from winnow.data.progress import progress
from winnow.data.rejects import BadRow, Rejects
from winnow.data.scoring import scorer_for
from winnow.data.table import ExampleTable, Writer
from winnow.data.tally import Tally
from winnow.data.turn_keys import TurnKeys
from winnow.data.weight import say_weights, unweighted
from winnow.records.shown import shown
from winnow.records.strict_json import write_json

log = logging.getLogger(__name__)
T = TypeVar("T")

FORMAT = 3
"""Changes where the same file is read otherwise than before, so that nothing older is taken from the cache."""
CACHED_FROM = 1 << 24
"""Bytes of a split from which on what was read is kept in a file."""


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


@dataclass(frozen=True)
class Source:
    """Where the rows of a split come from.

    Args:
        rows: gives them from the first on; a fault stands for a row that cannot be read.
        size: bytes there are to read.
        fingerprint: of what is in it, so that it is read once; None keeps nothing.
    """

    rows: Callable[[], Iterable[Row | Fault]]
    size: int = 0
    fingerprint: Callable[[], str] | None = None


@dataclass(frozen=True)
class Fault:
    """A row that could not be read.

    Args:
        where: file and line.
        fault: what is wrong with it.
    """

    where: str
    fault: BadRow


@dataclass
class Reader:
    """Reads records into examples, and counts what it leaves out.

    Args:
        rejects: takes the rows that cannot be used.
        report: counts of what is left out for being empty, by reason.
        cache_dir: where what was read of large files is kept; None keeps it in memory.
        turns: keys of the turns read so far.
    """

    rejects: Rejects = field(default_factory=Rejects)
    report: Counter[str] = field(default_factory=Counter)
    cache_dir: Path | None = None
    turns: TurnKeys = field(default_factory=TurnKeys)

    def read(
        self, source: Source, fields: Fields, key: str, limit: int | None = None, weighed: bool = True
    ) -> ExampleTable:
        """Read a split; rows with an empty response or weight 0 are left out and counted.

        Args:
            source: its rows.
            fields: how they are read.
            key: the config key they come from, for messages and counts.
            limit: most examples to keep; None for all.
            weighed: whether rows may have a weight other than 0 and 1.

        Returns:
            The examples, ids distinct.

        Raises:
            ValueError: there is none.
            BadRows: rows cannot be used, and ``data.on_bad_row`` is ``error``.
        """
        found = self._cached(source, fields, key, limit)
        table = self._distinct(found, key)
        if not weighed:
            table = unweighted(table, key, self.rejects)
        self.rejects.settle(key)
        if not len(table):
            why = [
                f"{count} {reason.split(': ')[-1]}" for reason, count in self.report.items() if reason.startswith(key)
            ]
            why += [f"{self.rejects.of(key)} that cannot be used"] * bool(self.rejects.of(key))
            raise ValueError(f"{key} gives no examples{'; left out: ' if why else ''}{', '.join(why)}")
        say_weights(table, key)
        return table

    def _cached(self, source: Source, fields: Fields, key: str, limit: int | None) -> ExampleTable:
        if self.cache_dir is None or source.fingerprint is None or source.size < CACHED_FROM:
            return self._parse(source, fields, key, limit, None)[0]
        asked = json.dumps([FORMAT, source.fingerprint(), asdict(fields), limit])
        name = hashlib.blake2b(asked.encode(), digest_size=16).hexdigest()
        path, notes = self.cache_dir / f"{name}.examples.arrow", self.cache_dir / f"{name}.json"
        try:
            self.cache_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            log.warning("%s: read into memory, data.cache_dir=%s cannot be made: %s", key, self.cache_dir, error)
            return self._parse(source, fields, key, limit, None)[0]
        with FileLock(f"{path}.lock"):
            if path.is_file() and notes.is_file():
                log.info("%s: %s", key, f"read before, taken from {path}")
                tally = Tally.from_json(json.loads(notes.read_text(encoding="utf-8")))
                tally.tell(key, self.rejects, self.report)
                self.turns.join(tally.turns)
                return ExampleTable.mapped(path)
            table, tally = self._parse(source, fields, key, limit, path)
            write_json(notes, tally.to_json())
            return table

    def _parse(
        self, source: Source, fields: Fields, key: str, limit: int | None, path: Path | None
    ) -> tuple[ExampleTable, Tally]:
        tally = Tally()
        with Writer(path) as writer, progress(key) as done:
            for row in source.rows():
                if limit is not None and tally.kept >= limit:
                    break
                done()
                if isinstance(row, Fault):
                    tally.bad(row.where, row.fault)
                    continue
                try:
                    read = fields.read(row)
                    check_texts(read.example)
                except BadRow as fault:
                    tally.bad(row.where, fault)
                    continue
                if tally.takes(row, read):
                    writer.add(read.example, row.where)
        assert writer.table is not None
        tally.tell(key, self.rejects, self.report)
        self.turns.join(tally.turns)
        return writer.table, tally

    def _distinct(self, table: ExampleTable, key: str) -> ExampleTable:
        """The table without rows whose id was used before, which are noted."""
        numbers = table.numbers("key")
        _, first, inverse = np.unique(numbers, return_index=True, return_inverse=True)
        keep = np.ones(len(table), dtype=bool)
        for later in np.flatnonzero(first[inverse] != np.arange(len(table))).tolist():
            earlier = int(first[inverse[later]])
            name = table[later].id
            if name == table[earlier].id:
                keep[later] = False
                self.rejects.add(key, table.where(later), BadRow(
                    "the id was already used",
                    f"{shown(name)!r} at {table.where(earlier)}; ids must be unique: change one, or drop the `id` "
                    "field to have the examples numbered",
                ))  # fmt: skip
        return table if keep.all() else table.chosen(np.flatnonzero(keep))


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

    val: Source
    test: Source
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
    stream: Source,
    targets: Mapping[str, TargetRows],
    fields: Mapping[str, str | None] | None = None,
    on_overlap: str = "error",
    limit: int | None = None,
    on_bad_row: str = "error",
    cache_dir: str | None = None,
) -> Corpus:
    """Read a stream and its targets, and make sure that they do not overlap.

    Args:
        stream: records of the candidates.
        targets: records of each target, by name.
        fields: arguments of ``Fields``; None goes by the shape of each record.
        on_overlap: ``error``, or ``drop`` to leave overlapping examples out and count them.
        limit: most examples of the stream; None for all.
        on_bad_row: ``error``, or ``drop`` to leave rows out that cannot be used, and count them.
        cache_dir: where what was read of large files is kept; None keeps it in memory.

    Returns:
        The corpus; its ``report`` counts what was left out, and ``rejects`` holds rows that could not be used.

    Raises:
        ValueError: see ``Reader.read`` and ``check_disjoint``.
    """
    reader = Reader(Rejects(on_bad_row), cache_dir=None if cache_dir is None else Path(cache_dir).expanduser())
    examples = reader.read(stream, options(Fields, fields or {}, "data.corpus.fields"), "data.corpus.stream", limit)
    built = []
    for name, rows in targets.items():
        key = f"data.corpus.targets.{name}"
        how = options(Fields, {**(fields or {}), **(rows.fields or {})}, f"{key}.fields")
        val = reader.read(rows.val, how, f"{key}.val", weighed=False)
        test = reader.read(rows.test, how, f"{key}.test", weighed=False)
        built.append(Target(name, val, test, scorer_for(rows.score, test, key), rows.weight, rows.max_new_tokens))
    kept, built, dropped = check_disjoint(examples, built, on_overlap)
    return Corpus(Listed(kept), built, {**reader.report, **dropped}, reader.rejects, reader.turns)
