"""Runs side by side: methods over seeds, paired differences to a control, and whether it is a fair comparison."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from winnow.records.folder import flatten
from winnow.report.load import Run

LEVEL = 0.95
LAST_STEP = 0.05
"""By so much the last step of a run may go beyond its budget and still be as much as another's."""
# What runs may differ in and still be the same experiment but for the selector.
FREE = ("selector", "gate", "name", "out", "logger", "seed", "tags", "callbacks", "export", "ckpt_path")
FREE_KEYS = ("scoring.period", "scoring.between", "data.draw_size", "parallel.pool")
"""Of what is in front of the selector, which is half of a method, and whether it compares all candidates."""
GATES = {"NGrams": "ngrams", "Embeddings": "embedding", "Fields": "source"}
FREE_TRAINER = ("enable_progress_bar", "enable_model_summary", "log_every_n_steps")


@dataclass(frozen=True)
class Difference:
    """A method minus the control in one figure, paired by seed.

    Args:
        method: label of the method.
        figure: ``nll`` or ``accuracy`` (means over targets), or ``<target>/nll`` and the like.
        seeds: seeds that both have.
        mean: mean difference.
        low: lower end of the 95 % interval (Student's t); None with fewer than two seeds.
        high: upper end.
    """

    method: str
    figure: str
    seeds: tuple[int, ...]
    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Comparison:
    """What the report shows.

    Args:
        runs: all runs with the label of their method, unfinished ones included, methods in order of appearance.
        control: label of the control; None if there is none.
        differences: to the control, of finished runs.
        warnings: why figures may not be comparable.
    """

    runs: tuple[tuple[str, Run], ...]
    control: str | None
    differences: tuple[Difference, ...]
    warnings: tuple[str, ...]

    @property
    def methods(self) -> dict[str, list[Run]]:
        """Finished runs by method."""
        grouped: dict[str, list[Run]] = {}
        for label, run in self.runs:
            if run.finished:
                grouped.setdefault(label, []).append(run)
        return grouped


def compare(runs: Sequence[Run], control: str | None = None) -> Comparison:
    """Put runs side by side.

    Args:
        runs: finished or not; only finished ones enter means and differences.
        control: label of the method that others are compared to; ``random`` if it is among them.

    Returns:
        The comparison.

    Raises:
        ValueError: no such control, or two runs of one method with the same seed.
    """
    labels = label(runs)
    done = [(name, run) for name, run in zip(labels, runs, strict=True) if run.finished]
    for at, (name, run) in enumerate(done):
        for other, earlier in done[:at]:
            if (name, run.seed) == (other, earlier.seed):
                raise ValueError(
                    f"{earlier.folder} and {run.folder} are both {name} with seed {run.seed}: give one of them"
                )
    names = list(dict.fromkeys(name for name, _ in done))
    if control is None:
        control = "random" if "random" in names else None
    elif control not in names:
        raise ValueError(f"--control {control}: no finished run of that method; there are {', '.join(names) or 'none'}")
    ranked = list(dict.fromkeys(labels))
    pairs = sorted(zip(labels, runs, strict=True), key=lambda pair: (ranked.index(pair[0]), pair[1].seed))
    finished = [run for _, run in done]
    differences = tuple(_differences(done, control)) if control else ()
    return Comparison(tuple(pairs), control, differences, (*unfinished(runs), *protocol(finished)))


def label(runs: Sequence[Run]) -> list[str]:
    """A label for the method of each run: its name, and what tells its selector from others of that name.

    Args:
        runs: the runs.

    Returns:
        Labels such as ``filter_weight`` or, where several are compared, ``filter_weight filter_size=8``.
    """
    flat = [_settings(run) for run in runs]
    names = [_method(run) for run in runs]
    labels = []
    for name, settings in zip(names, flat, strict=True):
        same = [other for other, sibling in zip(flat, names, strict=True) if sibling == name]
        keys = sorted({key for other in same for key in other})
        differing = [key for key in keys if len({repr(other.get(key)) for other in same}) > 1]
        labels.append(" ".join([name, *(f"{key}={settings.get(key)}" for key in differing)]))
    return labels


def _settings(run: Run) -> dict[str, Any]:
    """What may tell runs of one method from one another."""
    found = dict(flatten(run.config.get("selector") or {}))
    gate = run.config.get("gate") or {}
    found |= {f"gate.{key}": value for key, value in flatten(gate) if gate}
    scoring, data = run.config.get("scoring") or {}, run.config.get("data") or {}
    period = scoring.get("period", 1)
    return found | ({"draw_size": data.get("draw_size")} if gate else {}) | ({} if period == 1 else {"period": period})


def _method(run: Run) -> str:
    """The run's name, what its stream was restricted to before, and the gate in front of it: they make the method."""
    gate = (run.config.get("gate") or {}).get("features") or {}
    if gate:
        features = str(gate.get("_target_", "")).rsplit(".", 1)[-1]
        return f"{GATES.get(features, features)} gate + {_chosen_before(run)}"
    return _chosen_before(run)


def _chosen_before(run: Run) -> str:
    data = run.config.get("data") or {}
    if not data.get("subset"):
        return run.name
    rank = "" if data.get("subset_by") == "score" else f" by {data.get('subset_order')} {data.get('subset_by')}"
    size = "" if data.get("subset_size") is None else f", {data['subset_size']}{rank}"
    return f"{run.name} of {Path(data['subset']).name}{size}"


def figures(run: Run, when: str) -> dict[str, float]:
    """The test figures of a run.

    Args:
        run: a finished run.
        when: ``before`` or ``after`` training.

    Returns:
        ``nll`` and ``accuracy``, means over the targets, and each target's own where there are several.
    """
    values = {name: float(value) for name, value in run.summary.get(when, {}).items() if value is not None}
    found: dict[str, float] = {}
    for kind in ("nll", "accuracy"):
        own = {name: value for name, value in values.items() if name.endswith(f"/{kind}")}
        if own:
            found[kind] = float(np.mean(list(own.values())))
        if len(own) > 1:
            found.update(own)
    return found


def interval(differences: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of a mean by Student's t.

    Args:
        differences: one per seed.

    Returns:
        Its ends; None for fewer than two.
    """
    count = len(differences)
    if count < 2:
        return None
    mean, spread = float(np.mean(differences)), float(np.std(differences, ddof=1))
    reach = float(stats.t.ppf((1 + LEVEL) / 2, count - 1)) * spread / math.sqrt(count)
    return mean - reach, mean + reach


def unfinished(runs: Sequence[Run]) -> list[str]:
    """Name the runs whose figures do not count.

    Args:
        runs: all runs.

    Returns:
        One message per run that did not finish.
    """
    return [
        f"{run.folder} did not finish (state: {run.state}{f', {run.error}' if run.error else ''}); it is left out of "
        "means, differences and the plot"
        for run in runs
        if not run.finished
    ]


def protocol(runs: Sequence[Run]) -> list[str]:
    """Whether runs differ in anything but the selector.

    Args:
        runs: finished runs.

    Returns:
        One message per kind of difference: configuration, budget, code and versions.
    """
    if len(runs) < 2:
        return []
    messages = []
    configs = [dict(_comparable(run)) for run in runs]
    for key in sorted({key for config in configs for key in config}):
        values = list(dict.fromkeys(repr(config.get(key)) for config in configs))
        if len(values) > 1:
            messages.append(f"not the same protocol: {key} is {' or '.join(values)}")
    messages += _budgets(runs)
    origins: dict[str, set[Any]] = {
        "commit": {(run.provenance.get("git") or {}).get("commit") for run in runs},
        "torch": {(run.provenance.get("packages") or {}).get("torch") for run in runs},
        "gpu": {run.provenance.get("gpu") for run in runs},
    }
    for name, found in origins.items():
        if len(found) > 1:
            messages.append(f"not made by the same {name}: {' or '.join(sorted(map(str, found)))}")
    if any((run.provenance.get("git") or {}).get("dirty") for run in runs):
        messages.append("made with uncommitted changes to the code (provenance.json: git.dirty)")
    return messages


def _budgets(runs: Sequence[Run]) -> list[str]:
    """Whether runs that were to spend as much have: examples, or what ``budget`` bounds."""
    bounds = [{name for name, value in (run.config.get("budget") or {}).items() if value is not None} for run in runs]
    name, least = "examples", 0.0
    if set.intersection(*bounds) == {"flops"}:
        name, least = "flops", LAST_STEP
    spent = [spending(run)[name] for run in runs]
    low, high = min(spent), max(spent)
    if high <= low * (1 + least):
        return []
    of = {"examples": f"{low:,.0f} to {high:,.0f} examples trained on", "flops": f"{low:.3g} to {high:.3g} operations"}
    return [f"not the same budget: from {of[name]} ({100 * (high / max(low, 1) - 1):.1f} % more)"]


def spending(run: Run) -> dict[str, float]:
    """What a finished run has spent.

    Args:
        run: the run.

    Returns:
        ``examples`` trained on, and ``flops`` of training.
    """
    budget = run.summary["budget"]
    parts = [value for name, value in budget.items() if name.startswith("flops_") and name != "flops_evaluation"]
    flops = math.nan if None in parts else sum(parts)
    return {"examples": float(budget["examples_trained"]), "flops": float(flops)}


def _differences(done: Sequence[tuple[str, Run]], control: str) -> Iterator[Difference]:
    reference = {run.seed: figures(run, "after") for name, run in done if name == control}
    for method in dict.fromkeys(name for name, _ in done if name != control):
        own = {run.seed: figures(run, "after") for name, run in done if name == method}
        for figure in dict.fromkeys(key for values in own.values() for key in values):
            seeds = tuple(s for s in sorted(own) if figure in own[s] and figure in reference.get(s, {}))
            if seeds:
                gaps = [own[seed][figure] - reference[seed][figure] for seed in seeds]
                low, high = interval(gaps) or (None, None)
                yield Difference(method, figure, seeds, float(np.mean(gaps)), low, high)


def _comparable(run: Run) -> Iterator[tuple[str, Any]]:
    for key, value in flatten(run.config):
        parts = key.split(".")
        if parts[0] in FREE or (parts[0] == "trainer" and parts[1:2] and parts[1] in FREE_TRAINER):
            continue
        if key in FREE_KEYS or key.startswith("data.subset"):  # which data is what such methods choose
            continue
        if parts[-1] in ("seed", "sketch_seed") and value == run.seed:  # drawn from the run's own seed
            continue
        yield key, value
