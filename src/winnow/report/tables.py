"""A comparison as tables in the terminal, and as plain containers for JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from winnow.records.shown import PlainTable, shown
from winnow.report.compare import Comparison, figures
from winnow.report.composition import all_usable, labelled, ordered, shares
from winnow.report.equal import AXES, Equal, equal_costs, winners
from winnow.report.gate import gate_figures, sentences
from winnow.report.load import Run, offering
from winnow.report.summary import nats, percent

MOST_WARNINGS = 12
MOST_COLUMNS = 4
"""Finished runs, one of each method, that are printed as columns; more of them, or several seeds, are rows."""


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print runs, differences to the control, compositions and warnings.

    Args:
        comparison: what to print.
        console: where to.
    """
    single = all(len(runs) == 1 for runs in comparison.methods.values())
    few = single and len(comparison.runs) <= MOST_COLUMNS and all(run.finished for _, run in comparison.runs)
    console.print(_side_by_side(comparison) if few else _runs(comparison))
    if comparison.differences:
        console.print(_differences(comparison))
    rows = equal_costs(comparison)
    if rows:
        console.print(_equal(rows, comparison.control))
        for sentence in winners(rows):
            console.print(shown(sentence), highlight=False, markup=False, soft_wrap=True)
    composition = _compositions(comparison)
    if composition is not None:
        console.print(composition)
    for name, run in comparison.runs:
        figures_of_gate = gate_figures(run.folder) if run.finished and run.composition else None
        if figures_of_gate is not None:
            for sentence in sentences(figures_of_gate):
                line = f"{name}, seed {run.seed}: {sentence}"
                console.print(shown(line), highlight=False, markup=False, soft_wrap=True)
    for warning in comparison.warnings[:MOST_WARNINGS]:
        console.print(f"! {shown(warning)}", style="yellow", highlight=False, markup=False, soft_wrap=True)
    if len(comparison.warnings) > MOST_WARNINGS:
        console.print(f"! and {len(comparison.warnings) - MOST_WARNINGS} more", style="yellow", highlight=False)


def as_dict(comparison: Comparison) -> dict[str, Any]:
    """The comparison as plain containers.

    Args:
        comparison: what to give.

    Returns:
        ``runs``, ``control``, ``differences``, ``equal_costs`` and ``warnings``.
    """
    return {
        "runs": [_run(name, run) for name, run in comparison.runs],
        "control": comparison.control,
        "differences": [asdict(difference) for difference in comparison.differences],
        "equal_costs": [asdict(row) for row in equal_costs(comparison)],
        "warnings": list(comparison.warnings),
    }


def _run(name: str, run: Run) -> dict[str, Any]:
    return {
        "folder": str(run.folder),
        "method": name,
        "seed": run.seed,
        "state": run.state,
        "before": figures(run, "before"),
        "after": figures(run, "after"),
        "budget": run.summary.get("budget"),
        "preparation": run.summary.get("preparation"),
        "seconds": run.summary.get("seconds"),
        "composition": run.composition,
    }


def _side_by_side(comparison: Comparison) -> Table:
    """Runs as columns: a few of them fit a narrow terminal that way."""
    table = PlainTable(title="side by side; target on its test split", title_justify="left")
    table.add_column("")
    for name, run in comparison.runs:
        table.add_column(f"{name}\nseed {run.seed}", justify="right")
    runs = [run for _, run in comparison.runs]
    for label, figure, show in (("answer NLL, nats/token", "nll", nats), ("exact match", "accuracy", percent)):
        pairs = [(figures(run, "before").get(figure), figures(run, "after").get(figure)) for run in runs]
        if any(after is not None for _, after in pairs):
            table.add_row(label, *(f"{show(before)} → {show(after)}" for before, after in pairs))
    budgets = [run.summary["budget"] for run in runs]
    for label, trained, seen in (
        ("examples trained on, of seen", "examples_trained", "examples_seen"),
        ("response tokens trained on, of seen", "tokens_trained", "tokens_seen"),
    ):
        table.add_row(label, *(f"{budget[trained]:,} of {budget[seen]:,}" for budget in budgets))
    if any(run.summary.get("preparation") for run in runs):
        for label, figure in (("examples", "examples"), ("response tokens", "tokens"), ("seconds", "seconds")):
            table.add_row(f"{label} before training", *(_before(run, figure) for run in runs))
    table.add_row("seconds in steps", *(f"{budget['seconds']:.0f}" for budget in budgets))
    table.add_row("seconds scoring and selecting", *(f"{budget['seconds_selecting']:.0f}" for budget in budgets))
    return table


def _runs(comparison: Comparison) -> Table:
    accuracy = any("accuracy" in figures(run, "after") for _, run in comparison.runs)
    table = PlainTable(title="target, on its test split", title_justify="left")
    table.add_column("method")
    before_training = any(run.summary.get("preparation") for _, run in comparison.runs)
    columns = ["seed", "answer NLL\n(nats/token)", *(["exact match"] if accuracy else [])]
    columns += ["examples\ntrained/seen", "tokens\ntrained/seen", "s in steps", "s selecting"]
    for column in [*columns, *(["examples, s\nbefore training"] if before_training else [])]:
        table.add_column(column, justify="right")
    previous = None
    for name, run in comparison.runs:
        if previous not in {None, name}:
            table.add_section()
        shown, previous = name if name != previous else "", name
        if not run.finished:
            table.add_row(shown, str(run.seed), f"not finished: {run.state}", style="yellow")
            continue
        before, after, budget = figures(run, "before"), figures(run, "after"), run.summary["budget"]
        cells = [f"{nats(before.get('nll'))} → {nats(after.get('nll'))}"]
        if accuracy:
            cells.append(f"{percent(before.get('accuracy'))} → {percent(after.get('accuracy'))}")
        table.add_row(
            shown,
            str(run.seed),
            *cells,
            f"{budget['examples_trained']:,} / {budget['examples_seen']:,}",
            f"{budget['tokens_trained']:,} / {budget['tokens_seen']:,}",
            f"{budget['seconds']:.0f}",
            f"{budget['seconds_selecting']:.0f}",
            *([f"{_before(run, 'examples')}, {_before(run, 'seconds')}"] if before_training else []),
        )
        if len(comparison.methods[name]) > 1 and run is comparison.methods[name][-1]:
            table.add_row(*_mean(comparison.methods[name], accuracy), style="bold")
    return table


def _before(run: Run, figure: str) -> str:
    """What a run's files cost before training; a question mark where one does not say."""
    preparation = run.summary.get("preparation")
    if not preparation:
        return "0"
    return f"{preparation[figure]:,.0f}" + ("+?" if preparation["unknown"] else "")


def _mean(runs: Sequence[Run], accuracy: bool) -> list[str]:
    def mean(when: str, figure: str) -> float | None:
        values = [figures(run, when).get(figure) for run in runs]
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if len(known) == len(runs) else None

    cells = ["", "mean", f"{nats(mean('before', 'nll'))} → {nats(mean('after', 'nll'))}"]
    if accuracy:
        cells.append(f"{percent(mean('before', 'accuracy'))} → {percent(mean('after', 'accuracy'))}")
    totals = [run.summary["budget"] for run in runs]

    def spent(name: str) -> str:
        return f"{sum(budget[name] for budget in totals) / len(totals):,.0f}"

    return [
        *cells,
        f"{spent('examples_trained')} / {spent('examples_seen')}",
        f"{spent('tokens_trained')} / {spent('tokens_seen')}",
        spent("seconds"),
        spent("seconds_selecting"),
    ]


def _differences(comparison: Comparison) -> Table:
    table = PlainTable(
        title=f"after training, minus {comparison.control} with the same seed (95 % interval over seeds)",
        title_justify="left",
    )
    table.add_column("method")
    for column in ("figure", "seeds", "difference", "95 % interval"):
        table.add_column(column, justify="left" if column == "figure" else "right")
    previous = None
    for difference in comparison.differences:
        share = difference.figure.endswith("accuracy")
        show = (lambda v: f"{100 * v:+.1f} points") if share else (lambda v: f"{v:+.4f}")
        low, high = difference.low, difference.high
        label = difference.figure.replace("accuracy", "exact match").replace("nll", "answer NLL")
        table.add_row(
            difference.method if difference.method != previous else "",
            label,
            str(len(difference.seeds)),
            show(difference.mean),
            "needs two seeds" if low is None or high is None else f"{show(low)} to {show(high)}",
        )
        previous = difference.method
    return table


def _equal(rows: Sequence[Equal], control: str | None) -> Table:
    """Methods at equal cost, an axis after the other."""
    table = PlainTable(
        title="target on its validation split, where every run has spent as much"
        + (f"; minus {control} with the same seed" if control else ""),
        title_justify="left",
    )
    table.add_column("at equal cost")
    for column in ("answer NLL", "difference", "95 % interval", f"{control}'s end\nreached at" if control else ""):
        table.add_column(column, justify="right")
    previous = None
    for row in rows:
        if row.axis != previous:
            if previous is not None:
                table.add_section()
            table.add_row(f"{AXES[row.axis]}: {row.at:,.0f}" if row.at < 1e6 else f"{AXES[row.axis]}: {row.at:.3g}")
        previous = row.axis
        table.add_row(
            f"  {row.method}",
            nats(row.nll),
            "" if row.difference is None else f"{row.difference:+.4f}",
            "" if row.low is None or row.high is None else f"{row.low:+.4f} to {row.high:+.4f}",
            "" if row.difference is None else "never" if row.reached is None else percent(row.reached),
        )
    return table


def _compositions(comparison: Comparison) -> Table | None:
    rows: list[tuple[str, Mapping[str, float]]] = []
    for name, runs in comparison.methods.items():
        rows += [(f"{name}, seed {run.seed}", shares(run.composition, "kept")) for run in runs if run.composition]
    if not rows:
        return None
    plain = offering([run for runs in comparison.methods.values() for run in runs])
    streams = dict.fromkeys(tuple(shares(run.composition, "usable").items()) for run in plain)
    whole = all(all_usable(run.composition) for run in plain)
    title = "stream" if whole else "what could be chosen"
    title = title if len(streams) == 1 else f"{title}, one of its seeds"
    rows.insert(0, (title, dict(next(iter(streams)))))
    names = ordered(name for _, row in rows for name in row)
    known = labelled(names)
    table = PlainTable(
        title="what was kept: clean by group (in, near, far), spoilt by noise" if known else "what was kept, by source",
        title_justify="left",
    )
    table.add_column("share of examples")
    for name in names:
        table.add_column(name, justify="right")
    for at, (name, row) in enumerate(rows):
        table.add_row(name, *(percent(row.get(key, 0.0)) for key in names), end_section=at == 0)
    return table
