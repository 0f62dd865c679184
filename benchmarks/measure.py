"""Time with the sides alternating, peak memory of each, and the machine they ran on."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import statistics
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import transformers
from scipy.stats import spearmanr

from benchmarks.cases import Bench, sides
from winnow.scorer import Scorer
from winnow.selectors import FilterWeight
from winnow.signals import Signals
from winnow.version import __version__


def synchronise(device: torch.device) -> None:
    """Wait for a GPU.

    Args:
        device: where the work runs.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(bench: Bench, rounds: int, device: torch.device) -> dict[str, Any]:
    """Seconds of both sides and their ratio, round by round; one round before does not count.

    Args:
        bench: the case.
        rounds: how many count.
        device: where it runs.

    Returns:
        Seconds by side and of the choosing in ``select``, (minimum, median, maximum) of the ratio of each round, and
        tokens of pool and target per second of ``select``.
    """
    seconds: dict[str, list[float]] = {"plain": [], "select": [], "choosing": []}
    for number in range(rounds + 1):
        order = list(sides(bench).items())
        for name, run in reversed(order) if number % 2 else order:
            synchronise(device)
            start = perf_counter()
            run()
            synchronise(device)
            if number:
                seconds[name].append(perf_counter() - start)
            if number and name == "select":
                seconds["choosing"].append(max(0.0, bench.chosen_at - start))
    ratios = [select / plain for select, plain in zip(seconds["select"], seconds["plain"], strict=True)]
    tokens = bench.whole["input_ids"].numel()
    return {
        "seconds": seconds,
        "ratio": spread(ratios),
        "tokens_per_second": tokens / statistics.median(seconds["select"]),
        "gate_share": bench.in_gate / seconds["select"][-1],
        "choosing_share": statistics.median(seconds["choosing"]) / statistics.median(seconds["select"]),
    }


def fidelity(bench: Bench) -> dict[str, float] | None:
    """How far K and b of sketches are from the exact ones, at the state of the model and the optimizer.

    Args:
        bench: a case after a few steps.

    Returns:
        Relative errors of b and K in Frobenius norm, and Spearman's rank correlation of b, which asks more where
        candidates hardly differ, as those of random tokens; None where nothing is sketched.
    """
    if bench.case.scoring.get("mode") != "sketch":
        return None
    exact = Scorer(bench.model, bench.optimizer, pool_micro_batch=bench.case.micro)
    found, truth = (one(bench.pool, bench.target, bench.selector.needs) for one in (bench.scorer, exact))
    rank = spearmanr(found.alignment.cpu(), truth.alignment.cpu()).statistic
    errors = {
        f"error_of_{letter}": float((got - true).norm() / true.norm())
        for letter, got, true in (("b", found.alignment, truth.alignment), ("k", found.gram, truth.gram))
    }
    return {"rank_of_b": float(rank), **errors}


def spread(values: list[float]) -> dict[str, float]:
    """Minimum, median and maximum.

    Args:
        values: numbers.

    Returns:
        The three by name.
    """
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def choosing(rounds: int, size: int, keep: int) -> list[float]:
    """Seconds that filter and weight alone take on a pool of random gradients.

    Args:
        rounds: how often.
        size: candidates.
        keep: how many are kept.

    Returns:
        Seconds of each round.
    """
    torch.manual_seed(0)
    target = torch.randn(4096)
    g = torch.randn(size, 4096) + 0.1 * torch.rand(size, 1) * target
    signals = Signals(
        valid=torch.ones(size, dtype=torch.bool), tokens=torch.full((size,), 9), alignment=g @ target, gram=g @ g.T
    )
    selector, found = FilterWeight(filter_size=keep), []
    for _ in range(rounds + 1):
        start = perf_counter()
        selector(signals, torch.Generator().manual_seed(0))
        found.append(perf_counter() - start)
    return found[1:]


def peak(bench: Bench, device: torch.device, times: int) -> dict[str, float] | None:
    """Peak memory of each side in MiB: what a step adds at its worst, and what is held between steps.

    Args:
        bench: the case, after a step of each side.
        device: where it runs.
        times: how often each side is measured; on a CPU the peak differs by a tenth from step to step.

    Returns:
        Median MiB by side, and their ratio; None where the system does not say.
    """
    found: dict[str, list[float]] = {"plain": [], "select": []}
    for _ in range(times):
        for name, run in sides(bench).items():
            added = _added(run, device)
            if added is None:
                return None
            found[name].append(added + (0 if device.type == "cuda" else _held(bench)))
    plain, select = (statistics.median(values) for values in found.values())
    return {"plain": plain, "select": select, "ratio": select / plain}


def _added(run: Callable[[], None], device: torch.device) -> float | None:
    """MiB at the worst of a call: on a GPU in all, on a CPU above what was resident before."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # give back what earlier steps freed
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak so far
    except OSError:
        return None
    before = _resident("VmRSS")
    run()
    return _resident("VmHWM") - before


def _resident(key: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def _held(bench: Bench) -> float:
    """MiB of parameters and optimizer state, which both sides hold."""
    held = list(bench.model.parameters())
    held += [value for state in bench.optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    return sum(tensor.numel() * tensor.element_size() for tensor in held) / 2**20


def machine(device: torch.device) -> dict[str, Any]:
    """Where the numbers come from.

    Args:
        device: where it runs.

    Returns:
        Processor, cores, threads, load and versions.
    """
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "processor": gpu or (names or [platform.processor()])[0],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "winnow": __version__,
    }
