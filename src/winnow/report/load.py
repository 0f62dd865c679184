"""Reads a run's folder back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from winnow.report.composition import composition

CURVE = {"budget/examples_trained": "examples", "target/val_nll": "nll"}
COSTS = {"budget/flops": "flops", "time/seconds": "seconds"}
"""What runs of earlier versions may not have counted."""
LOADING = "time/loading"


@dataclass(frozen=True)
class Run:
    """One run, as its folder tells it.

    Args:
        folder: where it is.
        name: of the method: the run's ``name``, which is the selector's unless it was set.
        seed: its seed.
        state: ``finished``, ``failed``, ``interrupted`` or ``running`` (also of a run that was killed).
        config: the configuration as resolved.
        provenance: versions, commit and machine.
        summary: of a finished run; empty for another.
        curve: target val NLL (``nll``, nats per token) against ``examples`` trained on, by ``step``, and against
            ``flops`` and ``seconds``, in steps and loading, where they were counted (NaN where not).
        composition: what was seen and kept, by hidden label or source; empty without a ledger.
        error: what broke it off, if it says so.
    """

    folder: Path
    name: str
    seed: int
    state: str
    config: Mapping[str, Any]
    provenance: Mapping[str, Any]
    summary: Mapping[str, Any]
    curve: pd.DataFrame
    composition: Mapping[str, Mapping[str, Any]]
    error: str = field(default="")

    @property
    def finished(self) -> bool:
        """Whether it came to its end, so that its figures may be compared."""
        return self.state == "finished"


def load(folder: Path) -> Run:
    """Read a run.

    Args:
        folder: of the run.

    Returns:
        The run, finished or not.

    Raises:
        FileNotFoundError: it is not a run's folder, or a finished run lacks its summary.
        ValueError: one of its files is not what a run writes.
    """
    folder = Path(folder)
    for name in ("config.json", "status.json"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} is not a run's folder: it has no {name}")
    config, status = _json(folder / "config.json"), _json(folder / "status.json")
    state = str(status.get("state", "unknown"))
    if state == "finished" and not (folder / "summary.json").is_file():
        raise FileNotFoundError(f"{folder} says it finished, but has no summary.json")
    return Run(
        folder=folder,
        name=str(config.get("name", folder.name)),
        seed=int(config.get("seed", 0)),
        state=state,
        config=config,
        provenance=_json(folder / "provenance.json") if (folder / "provenance.json").is_file() else {},
        summary=_json(folder / "summary.json") if state == "finished" else {},
        curve=_curve(folder / "metrics.csv"),
        composition=_composition(folder),
        error=str(status.get("error", "")),
    )


def offering(runs: Sequence[Run]) -> list[Run]:
    """Runs whose pools tell what the stream offers: those without a gate, or all where each has one.

    Args:
        runs: any.

    Returns:
        Of those with a ledger.
    """
    known = [run for run in runs if run.composition]
    return [run for run in known if not run.config.get("gate")] or known


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__}, not an object")
    return content


def _curve(path: Path) -> pd.DataFrame:
    names = ["step", *CURVE.values(), *COSTS.values()]
    empty = pd.DataFrame({name: [] for name in names}, dtype=float)
    if not path.is_file():
        return empty
    rows = pd.read_csv(path)
    if not {"step", *CURVE} <= set(rows.columns):
        return empty
    if {"time/seconds", LOADING} <= set(rows.columns):  # a gate's features are computed where data is loaded
        rows["time/seconds"] += rows[LOADING].fillna(0.0)
    rows = rows.rename(columns=CURVE | COSTS).reindex(columns=names)
    return rows.dropna(subset=["step", *CURVE.values()]).reset_index(drop=True)


def _composition(folder: Path) -> dict[str, dict[str, int | float]]:
    try:
        return composition(folder)
    except FileNotFoundError:
        return {}
