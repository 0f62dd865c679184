"""torchrun --nproc-per-node=N -m benchmarks.processes: one pool over N processes, against DDP and FSDP2."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from benchmarks.cases import Bench, Case, Size
from benchmarks.measure import machine, spread, timed
from winnow.lm.losses import example_losses
from winnow.lm.shards import in_rows
from winnow.parallel import ParallelScorer, Ranks
from winnow.parallel.base import shard_model
from winnow.parallel.part import part_of


def listed(size: int, few: bool) -> list[tuple[Case, bool]]:
    """What is measured, and whether the model is in shards; pool and target grow with the processes.

    Args:
        size: processes.
        few: short examples.

    Returns:
        The cases.
    """
    shape: dict[str, Any] = {"pool": 16 * size, "target": 8 * size, "keep": 8 * size, "tokens": 64 if few else 256}
    full, lora = Case("full, exact, AdamW", **shape), Case("LoRA r=8, exact, AdamW", lora=8, **shape)
    sketched = replace(full, name="full, sketched, AdamW", scoring={"mode": "sketch"}, match="target")
    return [(full, False), (sketched, False), (lora, False), (full, True), (lora, True)]


class Shared(Bench):
    """A case whose pool and target all processes share; plain training is of each one's own examples.

    Args:
        case: the case.
        size: the model's.
        device: this process's.
        dtype: of the model.
        ranks: the processes.
        sharded: the model in shards: FSDP2 in place of DDP.
    """

    def __init__(
        self, case: Case, size: Size, device: torch.device, dtype: torch.dtype, ranks: Ranks, sharded: bool
    ) -> None:
        super().__init__(case, size, device, dtype)
        self.ranks = ranks
        if sharded:
            shard_model(self.model, init_device_mesh(device.type, (ranks.size,)), ranks)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5)
        self.scorer = ParallelScorer(
            self.model, self.optimizer, ranks=ranks, update="one_pass", verify=False, **case.scoring
        )
        self.own = part_of(self.whole, ranks)
        self.run: nn.Module = self.model if sharded else DistributedDataParallel(self.model)
        # The wrapper takes whatever it is given, and the loss asks what the model takes.
        object.__setattr__(self.run, "_orig_mod", self.model)
        copies = [parameter for parameter in trained if not in_rows(parameter)]
        held = sum(parameter.numel() * parameter.element_size() for parameter in copies)
        self.averaged = 2 * (ranks.size - 1) / ranks.size * held
        """Bytes that a process sends to average the gradients it has whole, as DDP does."""
        self.sent: dict[str, list[float]] = {"plain": [], "select": []}
        """Bytes of each step of either side."""

    def select(self) -> None:
        """As of one process, over all of them."""
        before = self.ranks.bytes
        super().select()
        self.sent["select"].append(self.ranks.bytes - before)

    def plain(self) -> None:
        """Forward, backward and step over this process's examples, gradients averaged by DDP or FSDP2.

        FSDP2 leaves those of an adapter alone; what averaging them would send is counted.
        """
        before = self.ranks.bytes
        example_losses(self.run, self.own).mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.sent["plain"].append(self.ranks.bytes - before + self.averaged)


def measured(options: argparse.Namespace, ranks: Ranks) -> list[dict[str, Any]]:
    """Every case, in all processes.

    Args:
        options: of the command.
        ranks: the processes.

    Returns:
        Name, ratio of seconds and megabytes a step sends on either side, as this process has them.
    """
    device = ranks.device
    size = Size(hidden=192, layers=3, vocab=2048) if options.quick else Size()
    dtype = torch.float32
    if options.gpu:
        size, dtype = Size(hidden=1536, layers=16, vocab=32000), torch.bfloat16
    found = []
    for case, sharded in listed(ranks.size, options.quick):
        if options.only not in case.name:
            continue
        bench = Shared(case, size, device, dtype, ranks, sharded)
        times = timed(bench, options.rounds, device)
        sent, plain = (statistics.median(bench.sent[side]) / 1e6 for side in ("select", "plain"))
        name = f"{case.name}, {'in shards (FSDP2)' if sharded else 'whole (DDP)'}"
        found.append({"name": name, "ratio": times["ratio"], "megabytes": sent, "megabytes_plain": plain})
        if ranks.rank == 0:
            ratio = times["ratio"]
            print(
                f"{name:46}{ratio['min']:7.2f}{ratio['median']:8.2f}{ratio['max']:7.2f}{sent:12.1f}"
                f"{plain:12.1f}{spread(times['seconds']['plain'])['median']:10.3f}",
                flush=True,
            )
    return found


def command(argv: list[str] | None = None) -> None:
    """Measure in one of several processes, and print in the first."""
    parser = argparse.ArgumentParser(prog="torchrun -m benchmarks.processes", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small shapes")
    parser.add_argument("--gpu", action="store_true", help="a 0.5 B model in bfloat16, a GPU for each process")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    options = parser.parse_args(argv)
    if options.gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
    dist.init_process_group("nccl" if options.gpu else "gloo")
    ranks = Ranks()
    if ranks.rank == 0:
        print(" · ".join(f"{name} {value}" for name, value in machine(ranks.device).items()))
        print(f"{ranks.size} processes{'':34}{'min':>7}{'median':>8}{'max':>7}{'MB a step':>12}{'plain':>12}   plain s")
    found = measured(options, ranks)
    if options.json and ranks.rank == 0:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        report = {"machine": machine(ranks.device), "processes": ranks.size, "cases": found}
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    dist.destroy_process_group()


def started(count: int, arguments: list[str]) -> int:
    """Run this module in several processes of this machine.

    Args:
        count: how many.
        arguments: of the command.

    Returns:
        torchrun's exit code.
    """
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    return subprocess.run([*torchrun, "-m", "benchmarks.processes", *arguments], check=False).returncode


if __name__ == "__main__":
    command()
