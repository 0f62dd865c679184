"""A bar while rows are gone through."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from winnow.records.shown import shown


@contextmanager
def progress(what: str, total: int | None = None) -> Iterator[Callable[..., None]]:
    """A bar on the terminal while rows are gone through; nothing where there is no terminal.

    Args:
        what: what is gone through.
        total: rows; None where nobody knows.

    Yields:
        A function to call after a row, or with a number of rows.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda rows=1: None
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        TextColumn("{task.completed:,} rows"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, refresh_per_second=4) as bar:
        task = bar.add_task(shown(what), total=total)
        yield lambda rows=1: bar.advance(task, rows)
