"""The part of a stream that a file of scores names: data-side selection, made once before training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from winnow.data.example import Corpus, Example, Stream
from winnow.data.rows import Listed
from winnow.records.shown import shown
from winnow.records.table import read_table

ORDERS = ("highest", "lowest")
DEFAULT_BY = "score"
"""Column that winnow.score writes; a list of ids need not have it."""
SHOWN = 3


def restricted(
    corpus: Corpus,
    subset: str | None = None,
    subset_size: int | float | None = None,
    subset_by: str = DEFAULT_BY,
    subset_order: str = "highest",
) -> Corpus:
    """A corpus whose stream is the part of it that a file chooses.

    Args:
        corpus: the whole.
        subset: file of ids, with scores or without; None for the whole stream.
        subset_size: how many of them to take by score, or what share of them; None for all.
        subset_by: the file's column to rank by.
        subset_order: ``highest`` | ``lowest`` scores first.

    Returns:
        The corpus, the same where no file is named.

    Raises:
        ValueError: see :func:`restrict`; or a size is given and no file.
    """
    if subset is not None:
        return replace(corpus, stream=restrict(corpus.stream, subset, subset_size, subset_by, subset_order))
    if subset_size is not None:
        raise ValueError(f"data.subset_size={subset_size} is a size of data.subset, which names no file")
    return corpus


def restrict(
    stream: Stream, subset: str, size: int | float | None = None, by: str = DEFAULT_BY, order: str = "highest"
) -> Listed:
    """Leave of a stream what a file chooses.

    Args:
        stream: the candidates. Of an endless one the file must have the column ``position``, which
            ``python -m winnow.score`` writes.
        subset: file with a column ``id`` (.parquet, .csv, .jsonl); ``data.subset``.
        size: how many to take by their score: a whole number, or a share of the file's rows below 1; None takes
            every row; ``data.subset_size``.
        by: the column to rank by; ``data.subset_by``.
        order: ``highest`` | ``lowest`` first; ``data.subset_order``.

    Returns:
        A finite stream, in the order of the whole one.

    Raises:
        ValueError: the file cannot be read, has an id twice or too few scores, or names ids that the stream does
            not have; these are counted.
    """
    if order not in ORDERS:
        raise ValueError(f"data.subset_order must be one of {', '.join(ORDERS)}; got {order!r}")
    table = read_table(subset, "data.subset", ("id",))
    twice = table["id"].duplicated()
    if twice.any():
        some = ", ".join(map(shown, table["id"][twice][:SHOWN]))
        raise ValueError(f"data.subset={subset} has {int(twice.sum())} ids more than once ({some})")
    if by not in table.columns and (size is not None or by != DEFAULT_BY):
        raise ValueError(
            f"data.subset={subset} has no column {by} to rank by; set data.subset_by to one of "
            f"{', '.join(shown(name) for name in table.columns if name != 'id')}"
        )
    if size is not None:
        table = _best(table, subset, size, by, order)
    if not len(table):
        raise ValueError(f"data.subset={subset} names no candidate")
    found = _by_position(stream, table) if "position" in table else {}
    left = [name for name in table["id"] if name not in found]
    if left and stream.size is not None:
        wanted = set(left)
        for position in range(stream.size):
            example = stream[position]
            if example.id in wanted:
                found[example.id] = (position, example)
        left = [name for name in left if name not in found]
    if left:
        endless = (
            "; the stream is endless, so the file must have the column position, as python -m winnow.score writes it"
            if stream.size is None and "position" not in table
            else ": were they scored with the same data and seed?"
        )
        raise ValueError(
            f"{len(left)} of the {len(table)} ids of data.subset={subset} are not in the stream "
            f"({', '.join(map(shown, left[:SHOWN]))}){endless}"
        )
    ordered: Sequence[tuple[int, Example]] = sorted(found.values(), key=lambda pair: pair[0])
    return Listed([example for _, example in ordered])


def _best(table: pd.DataFrame, subset: str, size: int | float, by: str, order: str) -> pd.DataFrame:
    """The rows of the best scores; ties go to the earlier row."""
    if isinstance(size, bool) or not (0 < size < 1 or (size >= 1 and int(size) == size)):
        raise ValueError(f"data.subset_size must be a whole number >= 1, or a share between 0 and 1; got {size!r}")
    if not pd.api.types.is_numeric_dtype(table[by]):
        raise ValueError(f"data.subset_by={by}: that column of data.subset={subset} does not hold numbers")
    count = int(size) if size >= 1 else max(1, round(size * len(table)))
    scored = table[table[by].notna()]
    if count > len(scored):
        raise ValueError(
            f"data.subset_size={size} asks for {count} candidates, and data.subset={subset} has {len(scored)} with a "
            f"{by}, of {len(table)}"
        )
    return scored.sort_values(by, ascending=order == "lowest", kind="stable").head(count)


def _by_position(stream: Stream, table: pd.DataFrame) -> dict[str, tuple[int, Example]]:
    """The examples that stand where the file says, by id."""
    found = {}
    for name, position in zip(table["id"], table["position"], strict=True):
        if position != position or position < 0 or (stream.size is not None and position >= stream.size):
            continue
        example = stream[int(position)]
        if example.id == name:
            found[name] = (int(position), example)
    return found
