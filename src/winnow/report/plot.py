"""The plot: target NLL against examples trained on, and what the kept examples were made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from winnow.records.shown import plotted
from winnow.report.compare import Comparison
from winnow.report.composition import Composition, all_usable, labelled, ordered, shares
from winnow.report.load import Run

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
    curves = {name: _over_seeds(runs) for name, runs in comparison.methods.items()}
    curves = {name: curve for name, curve in curves.items() if len(curve)}
    if not curves:
        raise ValueError("nothing to plot: no finished run has target/val_nll in its metrics.csv")
    path = Path(path)
    formats = FigureCanvasAgg.get_supported_filetypes()
    if path.suffix.lstrip(".") not in formats:
        raise ValueError(f"--out {path}: the ending is one of {', '.join(sorted(formats))}")
    compositions = _compositions(comparison)
    with mpl.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(11, 4.6) if compositions else (6.8, 4.6), layout="constrained")
        if compositions:
            left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
            _draw_composition(right, compositions)
        else:
            left = figure.subplots()
        _draw_curves(left, curves, comparison)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    return path


def _over_seeds(runs: Sequence[Run]) -> pd.DataFrame:
    """Mean over seeds at every measurement that all of them have, with the lowest and highest."""
    rows = pd.concat([run.curve for run in runs])
    grouped = rows.groupby("step")
    table = grouped.agg(examples=("examples", "mean"), nll=("nll", "mean"), low=("nll", "min"), high=("nll", "max"))
    return table[grouped.size() == len(runs)]


def _draw_curves(axes: Axes, curves: Mapping[str, pd.DataFrame], comparison: Comparison) -> None:
    several = False
    for at, (name, curve) in enumerate(curves.items()):
        count = len(comparison.methods[name])
        several |= count > 1
        colour, marker = COLOURS[at % len(COLOURS)], MARKERS[at % len(MARKERS)]
        axes.plot(
            curve["examples"],
            curve["nll"],
            color=colour,
            marker=marker,
            markersize=4.5,
            linewidth=1.8,
            linestyle="--" if name == comparison.control else "-",
            label=plotted(f"{name} ({count} seeds)" if count > 1 else name),
        )
        if count > 1:
            axes.fill_between(curve["examples"], curve["low"], curve["high"], color=colour, alpha=0.18, linewidth=0)
    axes.set_xlabel("examples trained on")
    axes.set_ylabel("target validation NLL (nats per token)")
    axes.set_title("Target loss" + (", mean of seeds; band: lowest to highest" if several else ""), loc="left")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.set_xlim(left=0)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)


def _compositions(comparison: Comparison) -> dict[str, dict[str, float]]:
    """Shares by bar: the stream as offered, then what each method kept, seeds together."""
    methods = {name: [run.composition for run in runs] for name, runs in comparison.methods.items()}
    methods = {name: found for name, found in methods.items() if all(found)}
    if not methods:
        return {}
    bars = {name: _pooled(found, "kept") for name, found in methods.items()}
    stream = _pooled([one for found in methods.values() for one in found], "usable")
    whole = all(all_usable(one) for found in methods.values() for one in found)
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
