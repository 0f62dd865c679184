"""Tables with a row per candidate: scores and reference losses by id."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from winnow.records.shown import shown

if TYPE_CHECKING:
    import pandas as pd

TABLES = {".parquet": "read_parquet", ".csv": "read_csv", ".jsonl": "read_json"}
"""Endings of tables, and the functions of pandas that read them."""


def read_table(path: str, key: str, columns: tuple[str, ...]) -> pd.DataFrame:
    """A table with a row per candidate.

    Args:
        path: .parquet, .csv or .jsonl; relative to the folder the program was started in.
        key: the config key that names it, for messages.
        columns: columns it must have.

    Returns:
        The table, ids as text.

    Raises:
        ValueError: there is no such file, it is none of these, it cannot be read, or it lacks a column.
    """
    import pandas as pd  # only runs with such a file pay for it

    file_path = Path(path).expanduser()
    if file_path.suffix not in TABLES:
        raise ValueError(f"{key}={path} must end in one of {', '.join(TABLES)}")
    if not file_path.is_file():
        raise ValueError(f"{key}={path}: no such file")
    options: dict[str, Any] = {".jsonl": {"lines": True, "dtype": {"id": str}}, ".csv": {"dtype": {"id": str}}}
    try:
        table: pd.DataFrame = getattr(pd, TABLES[file_path.suffix])(file_path, **options.get(file_path.suffix, {}))
    except (ValueError, OSError) as error:
        raise ValueError(f"{key}={path} cannot be read as {file_path.suffix}: {str(error).splitlines()[0]}") from error
    if not set(columns) <= set(table.columns):
        held = ", ".join(map(shown, table.columns))
        raise ValueError(f"{key}={path} needs columns {' and '.join(columns)}; it has {held}")
    return table.assign(id=table["id"].astype(str)) if "id" in columns else table
