"""The plot: target NLL against what was spent, and what the kept examples were made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from winnow.records.shown import plotted
from winnow.report.compare import Comparison
from winnow.report.composition import Composition, all_usable, labelled, ordered, shares
from winnow.report.equal import AXES
from winnow.report.load import Run, offering

# Okabe and Ito's colours, told apart by the colour-blind; yellow is left out, too pale for lines on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# Clean groups are blues, dark to light with the distance from the target; spoilt ones are warm and hatched.
LABEL_COLOURS = {
    "in": "#08519C",
    "near": "#4A90C8",
    "far": "#BFD7EA",
    "wrong": "#D55E00",
    "shuffled": "#E69F00",
    "duplicate": "#F3D9A4",
}
HATCHES = {"wrong": "///", "shuffled": "xxx", "duplicate": "..."}
MOST_SOURCES = 7


def plot(comparison: Comparison, path: Path) -> Path:
    """Draw the comparison's finished runs.

    Args:
        comparison: what to draw.
        path: where the picture goes; its ending says the format (png, pdf, svg).

    Returns:
        The path.

    Raises:
        ValueError: no finished run has measured the target during training, or the format is unknown.
    """
    drawn = {axis: _curves(comparison, axis) for axis in AXES}
    drawn = {axis: curves for axis, curves in drawn.items() if curves}
    if not drawn:
        raise ValueError("nothing to plot: no finished run has target/val_nll in its metrics.csv")
    path = Path(path)
    formats = FigureCanvasAgg.get_supported_filetypes()
    if path.suffix.lstrip(".") not in formats:
        raise ValueError(f"--out {path}: the ending is one of {', '.join(sorted(formats))}")
    compositions = _compositions(comparison)
    with mpl.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        height = 4.6 + (0.45 * len(compositions) + 1.9 if compositions else 0)
        figure = Figure(figsize=(4.4 * max(len(drawn), 2), height), layout="constrained")
        parts: Any = figure.subfigures(2, 1, height_ratios=(4.6, height - 4.6)) if compositions else (figure, None)
        above, below = parts
        panels = above.subplots(1, len(drawn), sharey=True, squeeze=False)[0]
        for panel, (axis, curves) in zip(panels, drawn.items(), strict=True):
            _draw_curves(panel, curves, comparison, axis, first=panel is panels[0])
        if below is not None:
            _draw_composition(below.subplots(), compositions)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    return path


def _curves(comparison: Comparison, axis: str) -> dict[str, pd.DataFrame]:
    """By method, where every run has counted what the axis is of."""
    curves = {name: _over_seeds(runs, axis) for name, runs in comparison.methods.items()}
    return {name: curve for name, curve in curves.items() if len(curve)}


def _over_seeds(runs: Sequence[Run], axis: str) -> pd.DataFrame:
    """Mean over seeds at every measurement that all of them have and at their ends, with the lowest and highest."""
    rows = pd.concat([run.curve.dropna(subset=[axis]) for run in runs])
    ends = [run.curve["step"].max() for run in runs]
    if len(set(ends)) > 1:  # runs that end with a budget: a last step each
        last = rows["step"].isin(ends) & (rows["step"] > min(rows["step"].max(), min(ends)) - 1)
        rows = pd.concat([
            rows[~last],
            *[run.curve.dropna(subset=[axis]).tail(1).assign(step=max(ends)) for run in runs],
        ])
    grouped = rows.groupby("step")
    table = grouped.agg(cost=(axis, "mean"), nll=("nll", "mean"), low=("nll", "min"), high=("nll", "max"))
    return table[grouped.size() == len(runs)]


def _draw_curves(
    axes: Axes, curves: Mapping[str, pd.DataFrame], comparison: Comparison, axis: str, first: bool
) -> None:
    several = False
    for at, (name, curve) in enumerate(curves.items()):
        count = len(comparison.methods[name])
        several |= count > 1
        colour, marker = COLOURS[at % len(COLOURS)], MARKERS[at % len(MARKERS)]
        axes.plot(
            curve["cost"],
            curve["nll"],
            color=colour,
            marker=marker,
            markersize=4.5,
            linewidth=1.8,
            linestyle="--" if name == comparison.control else "-",
            label=plotted(f"{name} ({count} seeds)" if count > 1 else name),
        )
        if count > 1:
            axes.fill_between(curve["cost"], curve["low"], curve["high"], color=colour, alpha=0.18, linewidth=0)
    axes.set_xlabel(AXES[axis])
    if first:
        axes.set_ylabel("target validation NLL (nats per token)")
        axes.set_title("Target loss" + (", mean of seeds; band: lowest to highest" if several else ""), loc="left")
    axes.xaxis.set_major_locator(MaxNLocator(integer=axis == "examples", nbins=5))
    axes.set_xlim(left=0)
    axes.grid(alpha=0.25)
    if first:
        axes.legend(frameon=False)


def _compositions(comparison: Comparison) -> dict[str, dict[str, float]]:
    """Shares by bar: the stream as offered, then what each method kept, seeds together."""
    methods = {name: [run.composition for run in runs] for name, runs in comparison.methods.items()}
    methods = {name: found for name, found in methods.items() if all(found)}
    if not methods:
        return {}
    bars = {name: _pooled(found, "kept") for name, found in methods.items()}
    plain = [run.composition for run in offering([run for runs in comparison.methods.values() for run in runs])]
    stream, whole = _pooled(plain, "usable"), all(map(all_usable, plain))
    return {"stream" if whole else "could be chosen": stream, **bars}


def _pooled(compositions: Sequence[Composition], count: str) -> dict[str, float]:
    names = ordered(name for one in compositions for name in one)
    usable = [{name: {"usable": row["seen"], **row} for name, row in one.items()} for one in compositions]
    total = {name: {count: sum(one[name][count] for one in usable if name in one)} for name in names}
    found = shares(total, count)
    if labelled(total) or len(found) <= MOST_SOURCES:
        return found
    largest = sorted(found, key=lambda name: -found[name])[: MOST_SOURCES - 1]
    return {**{name: found[name] for name in largest}, "other": 1 - sum(found[name] for name in largest)}


def _draw_composition(axes: Axes, bars: Mapping[str, Mapping[str, float]]) -> None:
    names = ordered(name for bar in bars.values() for name in bar)
    places = list(range(len(bars)))
    left = [0.0] * len(bars)
    for at, name in enumerate(names):
        widths = [bar.get(name, 0.0) for bar in bars.values()]
        colour = LABEL_COLOURS.get(name, COLOURS[at % len(COLOURS)])
        label = f"spoilt: {name}" if name in HATCHES else f"clean: {name}" if name in LABEL_COLOURS else name
        axes.barh(
            places,
            widths,
            left=left,
            height=0.62,
            color=colour,
            edgecolor="white",
            hatch=HATCHES.get(name),
            label=plotted(label),
        )
        for place, start, width in zip(places, left, widths, strict=True):
            if width >= 0.06:
                dark = name in {"in", "near"} or name not in LABEL_COLOURS
                axes.text(
                    start + width / 2,
                    place,
                    f"{100 * width:.0f}",
                    ha="center",
                    va="center",
                    fontsize=8.5,
                    color="white" if dark else "black",
                    bbox={"facecolor": colour, "edgecolor": "none", "pad": 1.0},
                )
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set_yticks(places, [plotted(name.replace(" ", "\n")) for name in bars])
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("share of examples")
    axes.set_title("What was offered and what was kept", loc="left")
    axes.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.45, -0.16), fontsize=8.5)
