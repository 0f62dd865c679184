"""The picture of a gate: what it passed on over time, and what its predictions were worth."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from winnow.records.shown import plotted
from winnow.report.composition import ordered
from winnow.report.gate import STAGES, GateFigures
from winnow.report.plot import COLOURS, HATCHES, LABEL_COLOURS, MOST_SOURCES

TITLES = {"offered": "Offered", "passed": "Passed on by the gate", "kept": "Trained on"}


def plot_gate(figures: GateFigures, path: Path) -> Path:
    """Draw a gate's figures.

    Args:
        figures: of a run.
        path: where the picture goes; its ending says the format.

    Returns:
        The path.

    Raises:
        ValueError: the format is unknown.
    """
    path = Path(path)
    formats = FigureCanvasAgg.get_supported_filetypes()
    if path.suffix.lstrip(".") not in formats:
        raise ValueError(f"--gate-out {path}: the ending is one of {', '.join(sorted(formats))}")
    with mpl.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(15, 4.4), layout="constrained")
        panels = figure.subplots(1, len(STAGES) + 1, width_ratios=[1] * len(STAGES) + [1.1])
        names = _names(figures.over_time)
        for panel, stage in zip(panels, STAGES, strict=False):
            _draw_stage(panel, figures, stage, names)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, frameon=False, ncols=len(labels), loc="outside lower left", fontsize=8.5)
        _draw_calibration(panels[-1], figures)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    return path


def _names(shares: pd.DataFrame) -> list[str]:
    total = shares.groupby("label")["share"].sum()
    return ordered(total.nlargest(MOST_SOURCES).index)


def _draw_stage(axes: Axes, figures: GateFigures, stage: str, names: list[str]) -> None:
    shares = figures.over_time[figures.over_time["stage"] == stage]
    table = shares.pivot_table(index="tenth", columns="label", values="share", fill_value=0.0).reindex(columns=names)
    table = table.fillna(0.0)
    left, tenths = np.zeros(len(table)), table.index.to_numpy()
    for at, name in enumerate(names):
        axes.bar(
            tenths,
            table[name],
            bottom=left,
            width=0.92,
            color=LABEL_COLOURS.get(name, COLOURS[at % len(COLOURS)]),
            hatch=HATCHES.get(name),
            edgecolor="white",
            linewidth=0.3,
            label=plotted(name),
        )
        left = left + table[name].to_numpy()
    axes.set_title(TITLES[stage], loc="left")
    axes.set_xlabel("tenths of the run")
    axes.set_ylim(0, 1)
    axes.set_xticks(tenths[:: max(1, len(tenths) // 5)])
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))


def _draw_calibration(axes: Axes, figures: GateFigures) -> None:
    table = figures.calibration
    if len(table):
        axes.errorbar(
            table["predicted"], table["exact"], yerr=1.96 * table["error"], fmt="o", color=COLOURS[0], capsize=2
        )
        ends = [float(table[["predicted", "exact"]].min().min()), float(table[["predicted", "exact"]].max().max())]
        axes.plot(ends, ends, color="0.6", linewidth=1, linestyle="--")
    axes.set_title(f"Calibration (rank corr. {figures.correlation:.2f})", loc="left")
    axes.set_xlabel(f"predicted, of {figures.pairs} at random")
    axes.set_ylabel("exact score")
    axes.grid(alpha=0.25)
