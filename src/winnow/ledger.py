"""The ledger: a row per candidate and step, in parquet.

python -m winnow.ledger outputs/filter_weight/<time>            # a summary of what was kept
python -m winnow.ledger outputs/filter_weight/<time> --json
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from rich.console import Console
from torch import Tensor

from winnow.provenance import replacing, to_json
from winnow.selection import Selection
from winnow.shown import PlainTable

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
])


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
        self._parts = 0

    def append(
        self,
        step: int,
        meta: Mapping[str, Sequence[str]],
        losses: Tensor,
        alignment: Tensor | None,
        selection: Selection,
        task_alignment: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> None:
        """Add the rows of one pool.

        Args:
            step: pools seen before it.
            meta: ``id``, ``source``, ``group`` and ``noise`` of each candidate.
            losses: per-example losses, NaN where unknown.
            alignment: first-order utilities, if they were computed.
            selection: what was kept.
            task_alignment: first-order utilities for each target task, a row per task, if they were computed.
            valid: which candidates could be chosen; unknown if omitted.
        """
        size = len(meta["id"])
        kept = torch.zeros(size, dtype=torch.bool)
        kept[selection.index.cpu()] = True
        columns = [
            pa.array([step] * size, pa.int64()),
            *(
                pa.array([value or None for value in meta[name]], pa.string())
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
        ]
        self._buffer.append(pa.record_batch(columns, schema=SCHEMA))
        if len(self._buffer) >= self.flush_every:
            self.flush()

    def flush(self) -> None:
        """Bring buffered rows to disk as one more part."""
        if self._buffer:
            if not self._parts:
                self._clear()
            table = pa.Table.from_batches(self._buffer, SCHEMA)
            _write(table, self._part())
            self._parts += 1
            self._buffer = []

    def resume(self, run: Path, step: int) -> None:
        """Begin with the rows of an earlier run.

        Args:
            run: its folder; may be the same one.
            step: the last step whose rows are kept.
        """
        rows = read(run).filter(pc.field("step") <= step).combine_chunks()
        self._buffer, self._parts = [], 0
        # Whole on disk before the old rows go: they may be the same folder's.
        begun = self.folder / "ledger-resumed.parquet"
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
            shutil.rmtree(self.folder / "ledger")

    def _part(self) -> Path:
        return self.folder / "ledger" / f"part-{self._parts:06d}.parquet"

    def _clear(self) -> None:
        shutil.rmtree(self.folder / "ledger", ignore_errors=True)
        (self.folder / "ledger.parquet").unlink(missing_ok=True)


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
    files = [path] if path.is_file() else sorted((path / "ledger").glob("part-*.parquet"))
    if not files and (path / "ledger.parquet").is_file():
        files = [path / "ledger.parquet"]
    if not files:
        raise FileNotFoundError(f"no ledger in {path}: give a run's folder or its ledger.parquet")
    return pa.concat_tables([pq.read_table(file, schema=SCHEMA) for file in files])


def composition(path: Path, by: str | None = None) -> dict[str, dict[str, int | float]]:
    """What was seen and kept.

    Args:
        path: as for :func:`read`.
        by: a column; by default the hidden labels where the stream has them (the noise, or else the
            group), and the source where it has none.

    Returns:
        For each value, how many rows were ``seen``, could be chosen (``usable``) and were ``kept``, and their
        ``weight`` in all.
    """
    rows = read(path).to_pandas()
    if by is None:
        label = rows["noise"].where(rows["noise"].notna(), rows["group"])
        rows["of"] = label if label.notna().any() else rows["source"]
        by = "of"
    rows["usable"] = rows["valid"].fillna(True).astype(bool)  # ledgers of earlier versions do not say
    grouped = rows.assign(**{by: rows[by].fillna("-")}).groupby(by)
    sums = {name: grouped[name].sum() for name in ("usable", "kept", "weight")}
    table = pd.DataFrame({"seen": grouped.size(), **sums})
    return {
        str(name): {
            **{count: int(row[count]) for count in ("seen", "usable", "kept")},
            "weight": float(row["weight"]),
        }
        for name, row in table.iterrows()
    }


def summarise(path: Path, top: int = 5) -> dict[str, Any]:
    """The figures of a ledger.

    Args:
        path: as for :func:`read`.
        top: how many of the most weighted examples to name.

    Returns:
        Counts, composition by source and by hidden label, means of loss and alignment of kept and rejected
        candidates (alignment also by target task, in the order of the targets, where that was computed), and the
        examples with the most weight in all.
    """
    rows = read(path).to_pandas()
    kept, left = rows[rows["kept"]], rows[~rows["kept"]]
    heavy = kept.groupby(["id", "source"])["weight"].agg(["sum", "count"]).nlargest(top, "sum").reset_index()
    return {
        "steps": int(rows["step"].nunique()),
        "seen": len(rows),
        "kept": len(kept),
        "distinct_kept": int(kept["id"].nunique()),
        "loss": {"kept": float(kept["loss"].mean()), "rejected": float(left["loss"].mean())},
        "alignment": {"kept": float(kept["alignment"].mean()), "rejected": float(left["alignment"].mean())},
        "task_alignment": {"kept": _by_task(kept), "rejected": _by_task(left)},
        "by_source": composition(path, "source"),
        "by_label": composition(path),
        "heaviest": heavy.to_dict("records"),
    }


def _by_task(rows: pd.DataFrame) -> list[float]:
    """Means over rows of the alignment with every task, in the order of the targets; empty where there is none."""
    known = rows["task_alignment"].dropna()
    return pd.DataFrame(known.tolist()).mean().tolist() if len(known) else []


def print_ledger(figures: Mapping[str, Any], console: Console) -> None:
    """Print the figures of a ledger as tables.

    Args:
        figures: from :func:`summarise`.
        console: where to.
    """
    console.print(
        f"{figures['steps']} steps, {figures['seen']} candidates seen, {figures['kept']} kept "
        f"({100 * figures['kept'] / max(figures['seen'], 1):.1f} %), {figures['distinct_kept']} of them distinct"
    )
    table = PlainTable()
    for column in ("mean", "kept", "rejected"):
        table.add_column(column, justify="left" if column == "mean" else "right")
    for name in ("loss", "alignment"):
        cells = [figures[name][side] for side in ("kept", "rejected")]
        table.add_row(name, *("not computed" if cell != cell else f"{cell:.4g}" for cell in cells))
    sides = [figures["task_alignment"][side] for side in ("kept", "rejected")]
    for number, means in enumerate(zip(*sides, strict=False), 1):
        table.add_row(f"alignment, target {number}", *(f"{mean:.4g}" for mean in means))
    console.print(table)
    tables = {"source": figures["by_source"], "hidden label": figures["by_label"]}
    if figures["by_label"] == figures["by_source"]:  # a stream without hidden labels
        del tables["hidden label"]
    for title, rows in tables.items():
        table = PlainTable()
        for column in (title, "seen", "could be chosen", "kept", "kept of those", "share of weight"):
            table.add_column(column, justify="left" if column == title else "right")
        weight = sum(row["weight"] for row in rows.values()) or 1.0
        for name, row in sorted(rows.items(), key=lambda item: -item[1]["weight"]):
            table.add_row(
                name,
                str(row["seen"]),
                str(row["usable"]),
                str(row["kept"]),
                f"{100 * row['kept'] / max(row['usable'], 1):.1f} %",
                f"{100 * row['weight'] / weight:.1f} %",
            )
        console.print(table)
    table = PlainTable(title="most weight in all", title_justify="left")
    for column in ("id", "source", "weight", "times kept"):
        table.add_column(column, justify="left" if column in ("id", "source") else "right")
    for row in figures["heaviest"]:
        table.add_row(row["id"], row["source"], f"{row['sum']:.2f}", str(row["count"]))
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Summarise a ledger.

    Args:
        arguments: command line, the process's own if omitted.

    Returns:
        Exit code: 0, or 2 if there is no ledger that can be read.
    """
    parser = argparse.ArgumentParser(
        prog="python -m winnow.ledger", description="What a run kept, and with what weight."
    )
    parser.add_argument("path", type=Path, help="a run's folder or its ledger.parquet")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--top", type=int, default=5, help="how many of the most weighted examples to name")
    options = parser.parse_args(arguments)
    try:
        figures = summarise(options.path, options.top)
    except (FileNotFoundError, pa.ArrowInvalid) as error:
        text = f"{options.path}: {error}"
        Console(stderr=True).print(text, style="red", highlight=False, markup=False, soft_wrap=True)
        return 2
    if options.json:
        print(to_json(figures))
    else:
        print_ledger(figures, Console())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
