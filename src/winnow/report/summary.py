"""The short table at the end of a run."""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from winnow.records.shown import PlainTable, shown
from winnow.report.composition import CLEAN, SPOILT, all_usable, labelled, ordered, shares

log = logging.getLogger(__name__)


def print_summary(summary: Mapping[str, Any], folder: Path, console: Console | None = None) -> None:
    """Print what a run achieved, what it kept and what it spent.

    Args:
        summary: as written to ``summary.json``: ``before``, ``after``, ``budget``, ``composition``, ``seconds``.
        folder: the run's folder, named at the end.
        console: where to print; a new one if omitted.
    """
    console = console or Console()
    console.print(f"\n{shown(summary['name'])}, seed {shown(summary['seed'])}", highlight=False, markup=False)
    table = _table("target, on its test split", "before", "after")
    for name, after in summary["after"].items():
        before = summary["before"].get(name)
        show = percent if name.endswith("accuracy") else nats
        label = name.replace("/nll", ": answer NLL, nats per token").replace("/accuracy", ": exact match")
        table.add_row(label, show(before), show(after))
    console.print(table)
    if summary.get("composition"):
        console.print(_kept(summary["composition"]))
    budget = summary["budget"]
    table = _table("budget", "examples", "response tokens")
    table.add_row("seen", f"{budget['examples_seen']:,}", f"{budget['tokens_seen']:,}")
    table.add_row("trained on", f"{budget['examples_trained']:,}", f"{budget['tokens_trained']:,}")
    console.print(table)
    for line in cost_lines(budget):
        console.print(shown(line), highlight=False, markup=False)
    if summary.get("preparation"):
        console.print(shown(prepared(summary["preparation"])), soft_wrap=True, highlight=False, markup=False)
    for name, what in (("examples_excluded", "could not be chosen"), ("examples_truncated", "were cut to max_length")):
        if budget[name]:
            console.print(f"{budget[name]:,} candidates {what}", highlight=False)
    console.print(
        _seconds(summary), f"Records in {shown(folder)}", sep="\n", soft_wrap=True, highlight=False, markup=False
    )


def show(printer: Callable[..., None], *arguments: Any) -> None:
    """Print what is recorded already: a terminal that is gone, a full disk or an odd label fails no run.

    Args:
        printer: prints to standard output.
        *arguments: what to.
    """
    try:
        printer(*arguments)
        sys.stdout.flush()
    except (Exception, SystemExit) as error:  # rich answers a broken pipe with exit(1)
        log.warning("the result is recorded and could not be printed: %s: %s", type(error).__name__, error)
        with suppress(OSError, ValueError, AttributeError):  # or the interpreter fails at its end, for the same reason
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def percent(value: float | None) -> str:
    """A share as text.

    Args:
        value: between 0 and 1; None or NaN if it was not measured.

    Returns:
        Percent with one decimal, or a dash.
    """
    return "-" if value is None or value != value else f"{100 * value:.1f} %"


def nats(value: float | None) -> str:
    """An NLL as text.

    Args:
        value: in nats per token; None or NaN if it was not measured.

    Returns:
        Four decimals, or a dash.
    """
    return "-" if value is None or value != value else f"{value:.4f}"


def prepared(preparation: Mapping[str, Any]) -> str:
    """What was spent before training, as text.

    Args:
        preparation: from :func:`winnow.offline.preparation`.

    Returns:
        One line.
    """
    text = (
        f"before training: {preparation['examples']:,} examples, {preparation['tokens']:,} response tokens and "
        f"{preparation['seconds']:.0f} s"
    )
    parts = ", ".join(f"{part['what']} {part['seconds']:.0f} s" for part in preparation["parts"])
    text += f" ({parts})" if parts else ""
    unknown = preparation["unknown"]
    return text + (f"; what {' and '.join(unknown)} cost is not known" if unknown else "")


def cost_lines(budget: Mapping[str, Any]) -> list[str]:
    """What a run cost beside examples: operations by what they were for, tokens through the model, and the gate.

    Args:
        budget: of the run; runs of earlier versions counted none of it.

    Returns:
        Lines of text.
    """
    # Numbers that are not known are null in a summary.
    known = {name: math.nan if value is None else value for name, value in budget.items()}
    parts = {name.removeprefix("flops_"): value for name, value in known.items() if name.startswith("flops_")}
    evaluation = parts.pop("evaluation", 0.0)
    total, found = sum(parts.values()), []
    if budget.get("examples_drawn", 0) > budget.get("examples_seen", 0):
        found.append(
            f"the gate passed on {budget['examples_seen']:,} of {budget['examples_drawn']:,} raw candidates, and "
            f"{budget['steps_scored']:,} of {budget['steps']:,} pools were scored; it took "
            f"{budget['seconds_gate'] + budget.get('seconds_features', 0.0):.1f} s"
        )
    if total != total:
        found.append("floating-point operations are not known: this model's could not be counted")
    elif total:
        shares = ", ".join(f"{name} {100 * value / total:.0f} %" for name, value in parts.items() if value)
        found.append(f"{total:.3g} floating-point operations ({shares}); evaluation {evaluation:.2g}")
    elif evaluation > 0:
        found.append(f"nothing was trained; evaluation took {evaluation:.3g} floating-point operations")
    if total:
        found.append(
            f"{budget['tokens_forwarded']:,} tokens forward, {budget['tokens_backwarded']:,} backward through the model"
        )
    return found


def _kept(composition: Mapping[str, Mapping[str, Any]]) -> Table:
    known = labelled(composition)
    offered = "of the stream" if all_usable(composition) else "of what could be chosen"
    table = _table("clean by group, spoilt by noise" if known else "source", offered, "of the kept", "of the weight")
    columns = [shares(composition, count) for count in ("usable", "kept", "weight")]
    names = ordered(composition)
    for at, name in enumerate(names):
        following = names[at + 1] if at + 1 < len(names) else ""
        table.add_row(
            f"{_kind(name)}: {name}" if known and _kind(name) else name,
            *(percent(column[name]) for column in columns),
            end_section=known and bool(following) and _kind(following) != _kind(name),
        )
    return table


def _kind(name: str) -> str:
    """What a label of the embedded stream says; a stream of the user's may have labels of its own."""
    if name in CLEAN:
        return "clean"
    return "spoilt" if name in SPOILT else ""


def _seconds(summary: Mapping[str, Any]) -> str:
    budget = summary["budget"]
    share = budget["seconds_selecting"] / budget["seconds"] if budget["seconds"] else 0.0
    text = (
        f"{budget['seconds']:.0f} s in {budget['steps']} steps, {budget['seconds_selecting']:.0f} s "
        f"({100 * share:.0f} %) of them scoring and selecting"
    )
    # A resumed run's steps may have taken longer than its own process did.
    if summary["seconds"] > budget["seconds"]:
        text += f"; {summary['seconds']:.0f} s with start, validation and evaluation"
    return text


def _table(first: str, *numbers: str) -> Table:
    table = PlainTable()
    table.add_column(first)
    for name in numbers:
        table.add_column(name, justify="right")
    return table
