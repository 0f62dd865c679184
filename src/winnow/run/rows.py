"""What a configuration says of rows: what carries loss, which day it is for templates, what becomes of bad ones."""

from __future__ import annotations

import json
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from winnow.data.encode import Encoding
from winnow.data.rejects import BadRows, Rejects

REJECTS = "rejects.jsonl"
"""File of a run's folder that lists rows which were not used."""


def encoding_of(options: MutableMapping[str, Any]) -> Encoding:
    """How examples become tokens.

    Args:
        options: the ``data`` node; what says so is taken out of it.

    Returns:
        The encoding.

    Raises:
        ValueError: an option is unknown, or the date is none.
    """
    options.pop("on_bad_row", None)
    names = [field.name for field in fields(Encoding)]
    made = Encoding(**{name: options.pop(name) for name in names if name in options})
    if made.date is not None:
        try:
            datetime.fromisoformat(made.date)
        except (TypeError, ValueError):
            raise ValueError(f"data.date must be a day such as 2026-11-26, or null; got {made.date!r}") from None
    return made


def settle_date(cfg: DictConfig, *folders: Path) -> None:
    """Give a run the day it began on, so that a chat template which writes the date writes the same one ever after.

    Args:
        cfg: the composed configuration; ``data.date`` is set where it is null.
        *folders: of runs that go on: the first that has records gives the date.
    """
    if cfg.data.get("date", ...) is not None:  # a data configuration of the user's own may have no such key
        if not isinstance(cfg.data.get("date", ""), str):
            cfg.data.date = str(cfg.data.date)
        return
    for folder in folders:
        if (folder / "config.json").is_file():
            try:
                recorded = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            except ValueError:
                continue
            cfg.data.date = (recorded.get("data") or {}).get("date")
            return
    cfg.data.date = datetime.now(UTC).astimezone().date().isoformat()


@contextmanager
def rejects_written(path: Path) -> Iterator[list[Rejects]]:
    """Write the rows that were not used to a file, whether they end the run or not.

    Args:
        path: the file.

    Yields:
        A list to put rejects into once there are some.

    Raises:
        BadRows: as the block raises it, with the file in its message.
    """
    found: list[Rejects] = []
    try:
        yield found
    except BadRows as error:
        error.rejects.write(path)
        raise
    for rejects in found:
        rejects.write(path)
