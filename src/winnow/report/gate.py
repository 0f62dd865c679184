"""What a gate did to its stream: composition over time, calibration, coverage, and the share of spoilt rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from winnow.records.ledger import read

STAGES = ("offered", "passed", "kept")
BINS = 10
"""Stretches of a run, and groups of predictions."""


@dataclass(frozen=True)
class GateFigures:
    """A gate's figures over a run.

    Args:
        correlation: Spearman's, of predictions with what was then found at candidates drawn at random; NaN without any.
        low: lower end of its 95 % interval (Fisher's z).
        high: upper end.
        pairs: how many such candidates there were.
        calibration: a row per tenth of those predictions: mean ``predicted``, mean ``exact``, its standard ``error``.
        entropy: in nats over sources, of what was offered, passed on and kept.
        spoilt: share of rows that the stream's hidden labels call spoilt, likewise; NaN where it has no labels.
        over_time: shares by label (the noise, or else the group, or else the source) in tenths of the run: columns
            ``stage``, ``tenth``, ``label`` and ``share``.
    """

    correlation: float
    low: float
    high: float
    pairs: int
    calibration: pd.DataFrame
    entropy: dict[str, float]
    spoilt: dict[str, float]
    over_time: pd.DataFrame


def gate_figures(path: Path) -> GateFigures | None:
    """Read a gate's figures from a run's ledger.

    Args:
        path: a ledger, or a run's folder.

    Returns:
        The figures; None for a run without a gate.
    """
    rows = read(path).to_pandas()
    if not rows["predicted"].notna().any():
        return None
    stages = {"offered": rows, "passed": rows[rows["passed"].fillna(True).astype(bool)], "kept": rows[rows["kept"]]}
    held = rows[rows["at_random"].fillna(False).astype(bool) & rows["exact"].notna()]
    correlation, low, high = _correlation(held["predicted"].to_numpy(), held["exact"].to_numpy())
    labelled = rows["noise"].notna().any() or rows["group"].notna().any()
    return GateFigures(
        correlation,
        low,
        high,
        len(held),
        _calibration(held),
        {name: _entropy(part["source"]) for name, part in stages.items()},
        {name: float(part["noise"].notna().mean()) if labelled else math.nan for name, part in stages.items()},
        pd.concat([_over_time(name, part, rows) for name, part in stages.items()], ignore_index=True),
    )


def _correlation(predicted: np.ndarray, exact: np.ndarray) -> tuple[float, float, float]:
    if len(predicted) < 4 or len(set(predicted)) == 1 or len(set(exact)) == 1:
        return math.nan, math.nan, math.nan
    found = float(stats.spearmanr(predicted, exact).statistic)
    reach = float(stats.norm.ppf(0.975)) * math.sqrt(1.06 / (len(predicted) - 3))
    middle = math.atanh(max(min(found, 1 - 1e-12), -1 + 1e-12))
    return found, math.tanh(middle - reach), math.tanh(middle + reach)


def _calibration(held: pd.DataFrame) -> pd.DataFrame:
    if len(held) < BINS:
        return pd.DataFrame({"predicted": [], "exact": [], "error": []})
    place = np.minimum(held["predicted"].rank(method="first").to_numpy() - 1, len(held) - 1) * BINS // len(held)
    grouped = held.groupby(place)
    return pd.DataFrame({
        "predicted": grouped["predicted"].mean(),
        "exact": grouped["exact"].mean(),
        "error": grouped["exact"].sem(),
    }).reset_index(drop=True)


def _entropy(names: pd.Series) -> float:
    shares = names.fillna("-").value_counts(normalize=True)
    return float(-(shares * np.log(shares)).sum()) if len(shares) else 0.0


def _over_time(stage: str, part: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    label = part["noise"].where(part["noise"].notna(), part["group"])
    label = label if rows["group"].notna().any() or rows["noise"].notna().any() else part["source"]
    steps = max(int(rows["step"].max()) + 1, 1)
    tenth = (part["step"] * min(BINS, steps) // steps).rename("tenth")
    shares = label.fillna("-").rename("label").groupby(tenth).value_counts(normalize=True).rename("share").reset_index()
    return shares.assign(stage=stage)


def sentences(figures: GateFigures) -> Sequence[str]:
    """A gate's figures in words.

    Args:
        figures: of a run.

    Returns:
        Lines of text.
    """
    entropies = " → ".join(f"{figures.entropy[name]:.2f}" for name in STAGES)
    found = [
        f"predictions against exact scores, {figures.pairs:,} candidates drawn at random: rank correlation "
        f"{figures.correlation:.2f} ({figures.low:.2f} to {figures.high:.2f})"
        if figures.correlation == figures.correlation
        else "predictions against exact scores: too few candidates drawn at random (gate.random_share)",
        f"entropy over sources, offered → passed on → kept: {entropies} nats",
    ]
    if figures.spoilt["offered"] == figures.spoilt["offered"]:
        shares = " → ".join(f"{100 * figures.spoilt[name]:.1f} %" for name in STAGES)
        found.append(f"spoilt rows, offered → passed on → kept: {shares}")
    return found
