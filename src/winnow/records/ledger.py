"""The ledger: a row per candidate and step, in parquet."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from winnow.records.whole import UNFINISHED, replacing
from winnow.selection import Selection

RESUMED = "ledger-resumed.parquet"
"""Rows that an earlier run left, until they are the first part."""
FLOATS = pa.list_(pa.float32())

SCHEMA = pa.schema([
    ("step", pa.int64()),
    ("id", pa.string()),
    ("source", pa.string()),
    ("group", pa.string()),
    ("noise", pa.string()),
    ("loss", pa.float32()),
    ("alignment", pa.float32()),
    ("task_alignment", FLOATS),
    ("kept", pa.bool_()),
    ("weight", pa.float32()),
    ("valid", pa.bool_()),
    ("passed", pa.bool_()),
    ("predicted", pa.float32()),
    ("at_random", pa.bool_()),
    ("exact", pa.float32()),
])


@dataclass(frozen=True)
class Gated:
    """What a gate made of a pool's draw, for the records.

    Args:
        predicted: of the pool's candidates.
        at_random: which of them were passed on irrespective of that.
        exact: what was then found, as the gate learns it; NaN for nothing.
        rejected: ``id``, ``source``, ``group`` and ``noise`` of the candidates that were not passed on.
        rejected_predicted: of those.
    """

    predicted: Float[Tensor, " pool"]
    at_random: Bool[Tensor, " pool"]
    exact: Float[Tensor, " pool"]
    rejected: Mapping[str, Sequence[str]]
    rejected_predicted: Float[Tensor, " rejected"]


class Ledger:
    """Writes the ledger of a run, in parts that are each whole on disk, merged at the end.

    The first part written replaces what an earlier run left in the folder, unless it was resumed from.

    Args:
        folder: the run's folder; parts are kept in ``ledger/``, the merged file is ``ledger.parquet``.
        flush_every: pools buffered before a part is written.

    Raises:
        ValueError: ``flush_every`` is less than one.
    """

    def __init__(self, folder: Path, flush_every: int = 100) -> None:
        if flush_every < 1:
            raise ValueError(f"a ledger is flushed every 1 or more pools, got {flush_every}")
        self.folder, self.flush_every = Path(folder), flush_every
        self._buffer: list[pa.RecordBatch] = []
        self._parts = self._pools = 0

    def append(
        self,
        step: int,
        meta: Mapping[str, Sequence[str]],
        losses: Tensor,
        alignment: Tensor | None,
        selection: Selection,
        task_alignment: Tensor | None = None,
        valid: Tensor | None = None,
        gated: Gated | None = None,
    ) -> None:
        """Add the rows of one pool, and of what a gate did not let into it.

        Args:
            step: pools seen before it.
            meta: ``id``, ``source``, ``group`` and ``noise`` of each candidate.
            losses: per-example losses, NaN where unknown.
            alignment: first-order utilities, if they were computed.
            selection: what was kept.
            task_alignment: first-order utilities for each target task, a row per task, if they were computed.
            valid: which candidates could be chosen; unknown if omitted.
            gated: what a gate made of the draw; None for pools as they come.
        """
        size = len(meta["id"])
        kept = torch.zeros(size, dtype=torch.bool)
        kept[selection.index.cpu()] = True
        columns = [
            pa.array([step] * size, pa.int64()),
            *(
                pa.array([value if name == "id" else value or None for value in meta[name]], pa.string())
                for name in ("id", "source", "group", "noise")
            ),
            _numbers(losses),
            _numbers(torch.full((size,), torch.nan) if alignment is None else alignment),
            pa.array(
                [None] * size if task_alignment is None else task_alignment.detach().float().cpu().T.tolist(), FLOATS
            ),
            pa.array(kept.tolist(), pa.bool_()),
            _numbers(selection.dense(size)),
            pa.array([None] * size if valid is None else valid.tolist(), pa.bool_()),
            pa.array([True] * size, pa.bool_()),
            *_of_gate(gated, size),
        ]
        self._buffer.append(pa.record_batch(columns, schema=SCHEMA))
        if gated is not None and len(gated.rejected["id"]):
            self._buffer.append(_rejected(step, gated))
        self._pools += 1
        if self._pools >= self.flush_every:
            self.flush()

    def flush(self) -> None:
        """Bring buffered rows to disk as one more part."""
        if self._buffer:
            if not self._parts:
                (self.folder / RESUMED).unlink(missing_ok=True)
                self._clear()
            table = pa.Table.from_batches(self._buffer, SCHEMA)
            _write(table, self._part())
            self._parts += 1
            self._buffer, self._pools = [], 0

    def resume(self, run: Path, step: int) -> None:
        """Begin with the rows of an earlier run.

        Args:
            run: its folder; may be the same one.
            step: the last step whose rows are kept.
        """
        rows = read(run).filter(pc.field("step") <= step).combine_chunks()
        self._buffer, self._parts = [], 0
        # Whole on disk before the old rows go, which may be the same folder's; while it is there it is what is read.
        begun = self.folder / RESUMED
        _write(rows, begun)
        self._clear()
        (self.folder / "ledger").mkdir(parents=True)
        os.replace(begun, self._part())
        self._parts = 1

    def close(self) -> None:
        """Merge all parts into ``ledger.parquet``; does nothing if there is nothing new."""
        self.flush()
        if (self.folder / "ledger").is_dir():
            _write(read(self.folder).combine_chunks(), self.folder / "ledger.parquet")
            self._drop_parts()

    def _part(self) -> Path:
        return self.folder / "ledger" / f"part-{self._parts:06d}.parquet"

    def _clear(self) -> None:
        self._drop_parts()
        (self.folder / "ledger.parquet").unlink(missing_ok=True)

    def _drop_parts(self) -> None:
        """All of them at one stroke: some of them alone would be taken for the whole."""
        if (self.folder / "ledger").is_dir():
            aside = self.folder / f"ledger{UNFINISHED}"
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(self.folder / "ledger", aside)
            shutil.rmtree(aside, ignore_errors=True)


def _of_gate(gated: Gated | None, size: int) -> list[pa.Array]:
    if gated is None:
        return [pa.nulls(size, kind) for kind in (pa.float32(), pa.bool_(), pa.float32())]
    return [_numbers(gated.predicted), pa.array(gated.at_random.tolist(), pa.bool_()), _numbers(gated.exact)]


def _rejected(step: int, gated: Gated) -> pa.RecordBatch:
    """Rows of candidates that were not passed on: all that is known of them is what the gate thought."""
    size = len(gated.rejected["id"])
    known = {
        "step": pa.array([step] * size, pa.int64()),
        **{
            name: pa.array([one if name == "id" else one or None for one in gated.rejected[name]], pa.string())
            for name in ("id", "source", "group", "noise")
        },
        "kept": pa.array([False] * size, pa.bool_()),
        "weight": pa.array([0.0] * size, pa.float32()),
        "passed": pa.array([False] * size, pa.bool_()),
        "predicted": _numbers(gated.rejected_predicted),
    }
    return pa.record_batch([known.get(one.name, pa.nulls(size, one.type)) for one in SCHEMA], schema=SCHEMA)


def _numbers(values: Tensor) -> pa.Array:
    return pa.array(values.detach().float().cpu().numpy(), pa.float32(), from_pandas=True)


def _write(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        pq.write_table(table, temporary)


def read(path: Path) -> pa.Table:
    """A ledger from a file or a run's folder, merged or still in parts.

    Args:
        path: ``ledger.parquet`` or the folder of a run.

    Returns:
        All rows, in order.

    Raises:
        FileNotFoundError: there is no ledger.
    """
    path = Path(path)
    whole = [path] if path.is_file() else [one for one in (path / RESUMED,) if one.is_file()]
    files = whole or sorted((path / "ledger").glob("part-*.parquet"))
    if not files and (path / "ledger.parquet").is_file():
        files = [path / "ledger.parquet"]
    if not files:
        raise FileNotFoundError(f"no ledger in {path}: give a run's folder or its ledger.parquet")
    return pa.concat_tables([pq.read_table(file, schema=SCHEMA) for file in files])
