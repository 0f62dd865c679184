"""A ledger's figures, and how they are printed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from winnow.records.ledger import read
from winnow.records.shown import PlainTable, shown
from winnow.report.composition import composition
from winnow.report.gate import gate_figures, sentences
from winnow.report.summary import cost_lines


def summarise(path: Path, top: int = 5) -> dict[str, Any]:
    """The figures of a ledger.

    Args:
        path: as for :func:`read`.
        top: how many of the most weighted examples to name.

    Returns:
        Counts, composition by source and by hidden label, means of loss and alignment of kept and rejected
        candidates (alignment also by target task, in the order of the targets, where that was computed), and the
        examples with the most weight in all; what a gate did, and what the run cost, in words.
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
        "gate": list(sentences(gate)) if (gate := gate_figures(path)) is not None else [],
        "cost": cost_lines(_budget(path)),
    }


def _budget(path: Path) -> dict[str, Any]:
    """Of the run's summary, where the ledger lies beside it and the run has finished."""
    file = (path if path.is_dir() else path.parent) / "summary.json"
    if not file.is_file():
        return {}
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")).get("budget", {})
    return found


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
    for line in [*figures["gate"], *figures["cost"]]:
        console.print(shown(line), highlight=False, markup=False, soft_wrap=True)
    table = PlainTable(title="most weight in all", title_justify="left")
    for column in ("id", "source", "weight", "times kept"):
        table.add_column(column, justify="left" if column in ("id", "source") else "right")
    for row in figures["heaviest"]:
        table.add_row(row["id"], row["source"], f"{row['sum']:.2f}", str(row["count"]))
    console.print(table)
