"""python -m benchmarks [--quick | --profile WORDS | --costs | --context PNG | --processes N]."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks import context, costs, processes
from benchmarks.cases import Bench, Case, Size, cases, gpu_cases
from benchmarks.measure import choosing, fidelity, machine, peak, spread, timed
from winnow.run.allocator import keep_freed_memory


def arguments() -> argparse.Namespace:
    """The command line.

    Returns:
        Parsed options.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small shapes, under a minute; bars do not apply")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    parser.add_argument("--rounds", type=int, help="rounds that count (default 5; 3 with --quick)")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    parser.add_argument(
        "--profile", metavar="CASE", help="where the time of a case goes, by torch's profiler, and nothing else"
    )
    parser.add_argument("--costs", action="store_true", help="the cost model of mode auto against the clock")
    parser.add_argument("--context", type=Path, metavar="PNG", help="T from 256 to 4096, plotted")
    parser.add_argument("--gpu", action="store_true", help="a 0.5 B model in bfloat16 on a GPU, with tokens per second")
    parser.add_argument("--processes", type=int, metavar="N", help="one pool over N processes, against DDP and FSDP2")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", help="of the model: float32 or bfloat16")
    parser.add_argument("--hidden", type=int, help="width of the model")
    parser.add_argument("--layers", type=int, help="blocks of the model")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    options = arguments()
    if options.processes:
        words = [word for word in ("--quick", "--gpu") if getattr(options, word[2:])]
        words += [f"--only={options.only}", f"--rounds={options.rounds or 5}"]
        words += [f"--json={options.json}"] * bool(options.json)
        sys.exit(processes.started(options.processes, words))
    size = Size(hidden=192, layers=3, vocab=2048) if options.quick else Size()
    if options.gpu:
        size, options.device, options.dtype = Size(hidden=1536, layers=16, vocab=32000), "cuda", "bfloat16"
    size = Size(options.hidden or size.hidden, options.layers or size.layers, size.vocab)
    kept = keep_freed_memory()  # as train.py does
    if options.costs:
        print("\n".join(costs.table(costs.measured())))
        return
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    rounds = options.rounds or (3 if options.quick else 5)
    listed = context.cases() if options.context else gpu_cases() if options.gpu else cases(options.quick)
    chosen = [case for case in listed if (options.profile or options.only) in case.name]
    if options.profile:
        for case in chosen:
            profile(case, size, device, dtype)
        return
    report: dict[str, Any] = {"machine": machine(device), "keeps_freed_memory": kept, "model": asdict(size)}
    report |= {"rounds": rounds, "cases": []}
    print(" · ".join(f"{name} {value}" for name, value in report["machine"].items()))
    print(f"{'case':46}{'min':>7}{'median':>8}{'max':>7}{'floor':>7}{'bar':>6}   plain s  select s  memory")
    steps: dict[str, float] = {}
    for case in chosen:
        bench = Bench(case, size, device, dtype)
        found = timed(bench, rounds, device)
        memory = None if options.no_memory else peak(bench, device, 1 if options.quick else 3)
        sketched = fidelity(bench) if not options.gpu else None
        del bench
        report["cases"].append({**asdict(case), "floor": case.floor, **found, "peak_mib": memory, "sketch": sketched})
        medians = {name: spread(values)["median"] for name, values in found["seconds"].items()}
        steps[case.name] = medians["select"]
        ratio = found["ratio"]
        print(
            f"{case.name:46}{ratio['min']:7.2f}{ratio['median']:8.2f}{ratio['max']:7.2f}"
            f"{_number(case.floor):>7}{_number(case.bar):>6}{medians['plain']:10.3f}{medians['select']:10.3f}"
            f"{_number(memory and memory['ratio']):>8}",
            flush=True,
        )
        if case.period is not None:
            print(f"    {found['gate_share']:.2%} of it the gate's, its features included (bar 2 %)", flush=True)
        if options.gpu:
            peaks = "" if memory is None else f", peak {memory['plain']:.0f} and {memory['select']:.0f} MiB"
            print(
                f"    {found['tokens_per_second']:.0f} tokens/s, {found['choosing_share']:.0%} of it choosing{peaks}",
                flush=True,
            )
        if sketched is not None:
            print(
                f"    error of b {sketched['error_of_b']:.1%}, of K {sketched['error_of_k']:.1%}; "
                f"rank correlation of b with the exact {sketched['rank_of_b']:.2f}",
                flush=True,
            )
    if options.context:
        context.plot(report["cases"], options.context)
    elif not options.only and not options.gpu:
        _choosing(report, rounds, steps)
    report["load_after"] = machine(device)["load"]
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _choosing(report: dict[str, Any], rounds: int, steps: dict[str, float]) -> None:
    seconds = spread(choosing(max(rounds, 5), 256, 64))
    # A step over 256 candidates takes at least as many times the step over 16 that was measured.
    whole = 16 * steps["full, exact, AdamW"]
    report["filter_and_weight"] = {"pool": 256, "keep": 64, "seconds": seconds, "share": seconds["median"] / whole}
    print(
        f"filter and weight alone, B=256, k=64: {1000 * seconds['median']:.1f} ms "
        f"({1000 * seconds['min']:.1f} to {1000 * seconds['max']:.1f}), "
        f"{seconds['median'] / whole:.2%} of 16 steps of the first case (bar 3 %)"
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def profile(case: Case, size: Size, device: torch.device, dtype: torch.dtype) -> None:
    """Print where the time of both sides of a case goes.

    Args:
        case: the case.
        size: the model's.
        device: where it runs.
        dtype: of the model.
    """
    bench = Bench(case, size, device, dtype)
    for side in (bench.plain, bench.select):
        side()
        with torch.profiler.profile() as profiler:
            side()
        print(f"{case.name}: {side.__name__}")
        print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=14, max_name_column_width=40))


if __name__ == "__main__":
    main()
