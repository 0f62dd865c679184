"""Compare runs: a table in the terminal, a plot, JSON.

python -m winnow.report outputs/demo/filter_weight outputs/demo/random --out compare.png
python -m winnow.report outputs/multirun/<sweep>/* --control random --json compare.json
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from winnow.records.shown import shown
from winnow.records.strict_json import to_json
from winnow.report.compare import Comparison, compare
from winnow.report.gate import gate_figures
from winnow.report.gate_plot import plot_gate
from winnow.report.load import load
from winnow.report.plot import plot
from winnow.report.tables import as_dict, print_comparison


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare runs.

    Args:
        arguments: command line, the process's own if omitted.

    Returns:
        Exit code: 0; 1 if none of the runs finished; 2 if one cannot be read, or the plot not be made.
    """
    parser = argparse.ArgumentParser(
        prog="python -m winnow.report",
        description="Runs side by side: target figures before and after, budget, time, and what was kept.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder: outputs/<name>/<time>")
    parser.add_argument("--control", help="method the others are compared to, seed by seed (default: random)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="save a plot of target NLL and composition")
    parser.add_argument("--gate-out", type=Path, metavar="FILE", help="save a picture of what the first run's gate did")
    parser.add_argument("--json", type=Path, metavar="FILE", help="save everything shown as JSON")
    options = parser.parse_args(arguments)
    console, errors = Console(), Console(stderr=True)
    try:
        # A multirun's folder also holds multirun.yaml, which RUN/* brings along.
        comparison = compare([load(path) for path in options.runs if path.suffix != ".yaml"], options.control)
        print_comparison(comparison, console)
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(to_json(as_dict(comparison)) + "\n", encoding="utf-8")
        if not comparison.methods:
            errors.print("none of these runs finished: nothing to compare", style="red")
            return 1
        if options.gate_out:
            console.print(
                f"gate: {shown(_plot_gate(comparison, options.gate_out))}",
                soft_wrap=True,
                highlight=False,
                markup=False,
            )
        if options.out:
            console.print(
                f"plot: {shown(plot(comparison, options.out))}", soft_wrap=True, highlight=False, markup=False
            )
    except (FileNotFoundError, ValueError) as error:
        errors.print(shown(error, keep="\n"), style="red", soft_wrap=True, highlight=False, markup=False)
        return 2
    return 0


def _plot_gate(comparison: Comparison, path: Path) -> Path:
    for _, run in comparison.runs:
        figures = gate_figures(run.folder) if run.finished and run.composition else None
        if figures is not None:
            return plot_gate(figures, path)
    raise ValueError("--gate-out: none of these runs has a gate and a ledger")


if __name__ == "__main__":
    raise SystemExit(main())
