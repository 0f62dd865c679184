"""The short table at the end of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def print_summary(summary: Mapping[str, Any], folder: Path, console: Console | None = None) -> None:
    """Print what a run achieved, what it kept and what it spent.

    Args:
        summary: as written to ``summary.json``: ``before``, ``after``, ``budget``, ``composition``, ``seconds``.
        folder: the run's folder, named at the end.
        console: where to print; a new one if omitted.
    """
    console = console or Console()
    table = Table(title=f"{summary['name']}, seed {summary['seed']}", title_justify="left")
    for column in ("target test split", "before", "after"):
        table.add_column(column, justify="left" if column.startswith("target") else "right")
    for name, after in summary["after"].items():
        before = summary["before"].get(name)
        show = (lambda v: f"{100 * v:.1f} %") if name.endswith("accuracy") else (lambda v: f"{v:.4f}")
        label = name.replace("/nll", " answer NLL (nats/token)").replace("/accuracy", " exact match")
        table.add_row(label, "-" if before is None else show(before), show(after))
    console.print(table)

    rows = summary.get("composition") or {}
    if rows:
        table = Table(title="what was kept", title_justify="left")
        for column in ("group or noise", "seen", "kept", "share of kept"):
            table.add_column(column, justify="left" if column.startswith("group") else "right")
        kept_total = sum(counts["kept"] for counts in rows.values()) or 1
        for name, counts in sorted(rows.items(), key=lambda item: -item[1]["kept"]):
            table.add_row(name, str(counts["seen"]), str(counts["kept"]), f"{100 * counts['kept'] / kept_total:.1f} %")
        console.print(table)

    budget = summary["budget"]
    table = Table(title="budget", title_justify="left")
    for column in ("", "examples", "tokens"):
        table.add_column(column, justify="right")
    table.add_row("seen", f"{budget['examples_seen']:,}", f"{budget['tokens_seen']:,}")
    table.add_row("trained", f"{budget['examples_trained']:,}", f"{budget['tokens_trained']:,}")
    console.print(table)
    console.print(
        f"{summary['seconds']:.0f} s in all, {budget['seconds_selecting']:.0f} s of them selecting; records in {folder}",
        soft_wrap=True,
        highlight=False,
    )
