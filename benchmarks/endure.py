"""A long run, watched from outside: its memory, its open files and its pace must not change with time."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.jobs import Job, Launcher

EVERY = 2.0
"""Seconds between two looks."""
BEGINNING = 0.3
"""Share of the run that is left out: caches fill, the gate learns its first words."""
GROWTH = 2.0
"""Megabytes per 1,000 steps that a run may grow beyond noise, which is twice the standard error."""


def endure(launcher: Launcher, options: Sequence[str], folder: Path, steps: int) -> dict[str, Any]:
    """Train for long with gate and selection.

    Args:
        launcher: starts the run.
        options: of the run.
        folder: for what it writes.
        steps: pools.

    Returns:
        Slopes with their standard errors, and ``problems``.
    """
    run = folder / "long"
    line = [
        *options, "gate=ngrams", "scoring.period=4", f"trainer.max_steps={steps}", "trainer.val_check_interval=500",
        "callbacks.last.every=500", f"hydra.run.dir={run}",
    ]  # fmt: skip
    begun = time.monotonic()
    job = launcher.start(line, folder / "log")
    looks = []
    while job.poll() is None:
        seen = _look(job, run)
        if seen is not None:
            looks.append((time.monotonic() - begun, *seen))
        time.sleep(EVERY)
    found = judged(np.array(looks, dtype=float).reshape(-1, 4), steps)
    if job.poll():
        found["problems"].append(f"the long run ended with code {job.poll()}")
    return found | {"seconds": round(time.monotonic() - begun, 1), "looks": len(looks)}


def judged(looks: np.ndarray, steps: int) -> dict[str, Any]:
    """What a series of looks says.

    Args:
        looks: seconds, steps, megabytes and open files, a row each.
        steps: that the run was to make.

    Returns:
        Slopes per 1,000 steps, each with its standard error, and ``problems``.
    """
    training = looks[(looks[:, 1] > BEGINNING * steps) & (looks[:, 1] < steps)] if len(looks) else looks
    if len(training) < 8:
        return {"problems": [f"the run was too short to judge: {len(training)} looks at it"]}
    memory, error = _slope(training[:, 1], training[:, 2])
    files = training[:, 3]
    middle = len(training) // 2
    pace = [np.diff(half[:, 1]).sum() / np.diff(half[:, 0]).sum() for half in (training[:middle], training[middle:])]
    problems = []
    if memory - 2 * error > 0 and memory > GROWTH:
        problems.append(f"memory grows by {memory:.2f} MB per 1,000 steps")
    if files[-5:].mean() > files[:5].mean() + 1:
        problems.append(f"open files grow from {files[:5].mean():.0f} to {files[-5:].mean():.0f}")
    return {
        "steps": steps,
        "megabytes": {"first": float(training[0, 2]), "last": float(training[-1, 2]), "most": float(looks[:, 2].max())},
        "megabytes_per_1000_steps": round(memory, 3),
        "standard_error": round(error, 3),
        "open_files": {"first": int(files[0]), "last": int(files[-1]), "most": int(looks[:, 3].max())},
        "steps_per_second": {"first_half": round(float(pace[0]), 2), "second_half": round(float(pace[1]), 2)},
        "problems": problems,
    }


def _slope(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope per 1,000 and its standard error, by least squares."""
    x = x / 1000
    centred = x - x.mean()
    square = float((centred**2).sum())
    slope = float((centred * y).sum() / square)
    rest = y - y.mean() - slope * centred
    return slope, float(np.sqrt((rest**2).sum() / max(len(x) - 2, 1) / square))


def _look(job: Job, run: Path) -> tuple[int, float, int] | None:
    """Steps, resident megabytes and open files of a run that trains."""
    try:
        with open(run / "metrics.csv", "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            last = [line.split(b",")[0] for line in file.read().splitlines()[1:] if line]
        pages = int(Path(f"/proc/{job.pid}/statm").read_text().split()[1])
        files = len(list(Path(f"/proc/{job.pid}/fd").iterdir()))
        return int(last[-1]) + 1, pages * os.sysconf("SC_PAGE_SIZE") / 2**20, files
    except (OSError, ValueError, IndexError):
        return None
