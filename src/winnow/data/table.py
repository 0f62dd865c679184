"""Examples in a table of columns: in memory while they are few, mapped from a file where they are many."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from winnow.data.alike import content_of, digest
from winnow.data.example import Example

BATCH = 5_000
"""Rows that are held back until they are written."""
SCHEMA = pa.schema([
    *(
        (name, pa.large_string())
        for name in ("id", "source", "prompt", "response", "chat", "answer", "labels", "where")
    ),
    ("weight", pa.float64()),
    ("content", pa.int64()),
    ("key", pa.int64()),
])


class Writer:
    """Writes examples into a table.

    Args:
        path: the file, which appears when all is written; None keeps the table in memory.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        # One name: what a killed process left is written over by the next, which holds the lock.
        self._aside = None if path is None else path.with_name(f"{path.name}.part")
        if self._aside is not None:
            self._aside.parent.mkdir(parents=True, exist_ok=True)
        self._buffer = pa.BufferOutputStream() if self._aside is None else None
        self._file = pa.ipc.new_file(self._buffer or str(self._aside), SCHEMA)
        self._rows: list[tuple[Any, ...]] = []
        self.table: ExampleTable | None = None

    def add(self, example: Example, where: str) -> None:
        """Add one.

        Args:
            example: the example.
            where: file and line, for messages.
        """
        chat = None
        if example.messages is not None:
            chat = json.dumps([example.messages, example.tools, dict(example.template)], ensure_ascii=False)
        labels = json.dumps(dict(example.labels)) if example.labels else None
        self._rows.append((
            example.id, example.source, example.prompt, example.response, chat, example.answer, labels, where,
            example.weight, digest(content_of(example)), digest(example.id),
        ))  # fmt: skip
        if len(self._rows) >= BATCH:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            columns = [
                pa.array(column, part.type) for column, part in zip(zip(*self._rows, strict=True), SCHEMA, strict=True)
            ]
            self._file.write_batch(pa.record_batch(columns, schema=SCHEMA))
            self._rows = []

    def __enter__(self) -> Writer:
        """Itself; ``table`` is there once the block has ended."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish the table, or remove what was written of it."""
        if kind is None:
            self._flush()
        self._file.close()
        if kind is not None:
            if self._aside is not None:
                self._aside.unlink(missing_ok=True)
            return
        if self._buffer is not None:
            self.table = ExampleTable(pa.ipc.open_file(self._buffer.getvalue()).read_all())
        elif self._aside is not None and self.path is not None:
            os.replace(self._aside, self.path)
            self.table = ExampleTable.mapped(self.path)


class ExampleTable(Sequence[Example]):
    """Examples of a table, made when they are asked for.

    Args:
        table: columns of ``SCHEMA``.
        path: the file they are mapped from; None where they are in memory.
        rows: which of its rows, in order; None for all.
    """

    def __init__(self, table: pa.Table, path: Path | None = None, rows: np.ndarray | None = None) -> None:
        self.table, self.path, self.rows = table, path, rows

    @classmethod
    def mapped(cls, path: Path) -> ExampleTable:
        """A table of a file, of which memory holds only what is looked at.

        Args:
            path: the file that a writer made.

        Returns:
            The table.
        """
        return cls(pa.ipc.open_file(pa.memory_map(str(path))).read_all(), path)

    def __reduce__(self) -> tuple[Any, ...]:
        """A worker process maps the file itself."""
        if self.path is None:
            return ExampleTable, (self.table, None, self.rows)
        return _mapped, (self.path, self.rows)

    def __len__(self) -> int:
        return self.table.num_rows if self.rows is None else len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> ExampleTable: ...
    def __getitem__(self, index: int | slice) -> Example | ExampleTable:
        """The example at a position, or a table of some.

        Args:
            index: position or slice.

        Returns:
            Example or table.

        Raises:
            IndexError: there is no such position.
        """
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if self.rows is None and step == 1:
                return ExampleTable(self.table.slice(start, max(0, stop - start)))
            return self.chosen(np.arange(len(self))[index])
        if not -len(self) <= index < len(self):
            raise IndexError(f"position {index} of {len(self)} examples")
        return next(self._examples(self._row(index % len(self)), 1))

    def _row(self, position: int) -> int:
        return position if self.rows is None else int(self.rows[position])

    def _examples(self, start: int, count: int) -> Iterator[Example]:
        names = [*SCHEMA.names[:7], "weight"]
        columns = [self.table.column(name).slice(start, count).to_pylist() for name in names]
        for id_, source, prompt, response, chat, answer, labels, weight in zip(*columns, strict=True):
            messages, tools, template = (None, None, {}) if chat is None else json.loads(chat)
            yield Example(
                id_, source, prompt, response,
                messages=None if messages is None else tuple(messages),
                labels=json.loads(labels) if labels else {},
                answer=answer,
                tools=None if tools is None else tuple(tools),
                template=template,
                weight=weight,
            )  # fmt: skip

    def __iter__(self) -> Iterator[Example]:
        """All of them, read in pieces."""
        for start in range(0, len(self), BATCH):
            if self.rows is None:
                yield from self._examples(start, BATCH)
            else:
                yield from ExampleTable(self.table.take(self.rows[start : start + BATCH]))

    def where(self, position: int) -> str:
        """File and line of an example.

        Args:
            position: its position.

        Returns:
            For messages.
        """
        return str(self.table.column("where")[self._row(position)].as_py())

    def chosen(self, positions: np.ndarray) -> ExampleTable:
        """Some of the examples.

        Args:
            positions: in the order wanted.

        Returns:
            A table over the same columns.
        """
        return ExampleTable(self.table, self.path, positions if self.rows is None else self.rows[positions])

    def numbers(self, column: str) -> np.ndarray:
        """Digests or weights of all examples.

        Args:
            column: ``content``, of what two are the same by, ``key``, of the id, or ``weight``.

        Returns:
            As many 64-bit numbers as examples.
        """
        values = self.table.column(column).to_numpy()
        return values if self.rows is None else values[self.rows]


def _mapped(path: Path, rows: np.ndarray | None) -> ExampleTable:
    return ExampleTable(ExampleTable.mapped(path).table, path, rows)
