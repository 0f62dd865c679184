"""Methods at equal cost, on every axis that cost is counted on: examples trained on, operations, seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from winnow.report.compare import Comparison, interval
from winnow.report.load import Run

AXES = {"examples": "examples trained on", "flops": "operations (FLOPs)", "seconds": "seconds, loading included"}


@dataclass(frozen=True)
class Equal:
    """A method at the cost that every run has spent, on one axis.

    Args:
        axis: ``examples`` | ``flops`` | ``seconds``.
        at: the cost: what the cheapest run has spent in all.
        method: label of the method.
        nll: mean over seeds of the target's validation NLL there, between two measurements by linear interpolation.
        difference: to the control with the same seed; None for the control itself, or without one.
        low: lower end of its 95 % interval (Student's t); None with fewer than two seeds.
        high: upper end.
        reached: share of its own cost at which the control's last NLL was reached, mean over seeds; None if some seed
            never did.
    """

    axis: str
    at: float
    method: str
    nll: float
    difference: float | None
    low: float | None
    high: float | None
    reached: float | None


def equal_costs(comparison: Comparison) -> list[Equal]:
    """Compare methods at equal cost.

    Args:
        comparison: of finished runs; those that measured the target fewer than twice are passed over.

    Returns:
        A row per axis and method, best first on every axis; nothing for fewer than two methods.
    """
    found = []
    for axis in AXES:
        methods = {
            name: {run.seed: run for run in runs if _counted(run, axis)} for name, runs in comparison.methods.items()
        }
        methods = {name: runs for name, runs in methods.items() if runs}
        if len(methods) < 2:
            continue
        at = min(float(run.curve[axis].max()) for runs in methods.values() for run in runs.values())
        rows = [_row(axis, at, name, methods, comparison.control) for name in methods]
        found += sorted(rows, key=lambda row: row.nll)
    return found


def _counted(run: Run, axis: str) -> bool:
    return len(run.curve) > 1 and bool(run.curve[axis].notna().all())


def _row(axis: str, at: float, name: str, methods: dict[str, dict[int, Run]], control: str | None) -> Equal:
    own, other = methods[name], methods.get(control or "", {})
    nll = float(np.mean([_nll(run, axis, at) for run in own.values()]))
    seeds = [seed for seed in own if seed in other]
    if name == control or not seeds:
        return Equal(axis, at, name, nll, None, None, None, None)
    gaps = [_nll(own[seed], axis, at) - _nll(other[seed], axis, at) for seed in seeds]
    low, high = interval(gaps) or (None, None)
    reached = [_reached(own[seed], other[seed], axis) for seed in seeds]
    known = [share for share in reached if share is not None]
    share = float(np.mean(known)) if len(known) == len(reached) else None
    return Equal(axis, at, name, nll, float(np.mean(gaps)), low, high, share)


def _nll(run: Run, axis: str, at: float) -> float:
    return float(np.interp(at, run.curve[axis], run.curve["nll"]))


def _reached(run: Run, control: Run, axis: str) -> float | None:
    """Cost at which a run first was where the control ended, over what the control had spent by then."""
    goal, spent = float(control.curve["nll"].iloc[-1]), float(control.curve[axis].iloc[-1])
    costs, losses = run.curve[axis].to_numpy(), run.curve["nll"].to_numpy()
    below = np.flatnonzero(losses <= goal)
    if not len(below) or spent <= 0:
        return None
    last = int(below[0])
    if last == 0:
        return float(costs[0]) / spent
    (x0, x1), (y0, y1) = costs[last - 1 : last + 1], losses[last - 1 : last + 1]
    return float(x0 + (x1 - x0) * (y0 - goal) / (y0 - y1)) / spent


def winners(rows: Sequence[Equal]) -> list[str]:
    """Who has the lowest NLL on every axis, in words.

    Args:
        rows: from :func:`equal_costs`.

    Returns:
        A sentence per axis.
    """
    found = []
    for axis, words in AXES.items():
        own = [row for row in rows if row.axis == axis]
        if not own:
            continue
        best, control = own[0], next((row for row in own if row.difference is None), None)
        sure = best.high is not None and best.high < 0
        if control is None or best is control:
            found.append(f"at equal {words}: {best.method} is lowest")
        else:
            doubt = "" if sure else "; the interval holds zero" if best.high is not None else "; one seed says little"
            found.append(
                f"at equal {words}: {best.method} is lowest, {best.difference:+.4f} to {control.method}{doubt}"
            )
    return found
