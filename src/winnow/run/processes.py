"""Several processes for one run: who is who, what they can do together, and what each of them leaves out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from omegaconf import DictConfig

from winnow.lm.shards import rows_of
from winnow.parallel import Ranks, Stratified
from winnow.parallel.ranks import check_wire
from winnow.parallel.stratified import check_pool
from winnow.selectors import Selector
from winnow.selectors.abilities import Sized, Stateful
from winnow.training.sharded import ShardedStrategy

LONGEST = timedelta(days=7)
"""Others wait as long as this for the first process to read the data."""


@dataclass(frozen=True)
class Place:
    """Which of several processes this is.

    Args:
        rank: among all.
        size: how many there are.
        local: among those of this machine.
        machines: how many machines there are.
    """

    rank: int
    size: int
    local: int
    machines: int = 1


def place() -> Place | None:
    """Where torchrun or Slurm has put this process.

    Returns:
        None where it is the only one.
    """
    env = os.environ
    if "RANK" not in env and int(env.get("SLURM_NTASKS", 1)) > 1 and "SLURM_PROCID" in env:
        _as_torchrun(env)
    size = int(env.get("WORLD_SIZE", 1)) if "RANK" in env else 1
    if size == 1:
        return None
    here = int(env.get("LOCAL_WORLD_SIZE", size))
    return Place(int(env["RANK"]), size, int(env.get("LOCAL_RANK", env["RANK"])), max(1, size // here))


def _as_torchrun(env: Any) -> None:
    """Slurm's variables in torchrun's words, for ``srun python train.py``."""
    from lightning.fabric.plugins.environments import SLURMEnvironment

    # A port that other jobs of this machine do not take, the same in all processes of this one.
    env.setdefault("MASTER_PORT", str(15000 + int(env.get("SLURM_JOB_ID", "0")[-4:])))
    env.setdefault("MASTER_ADDR", SLURMEnvironment.resolve_root_node_address(env.get("SLURM_NODELIST", "127.0.0.1")))
    env["RANK"], env["WORLD_SIZE"] = env["SLURM_PROCID"], env["SLURM_NTASKS"]
    env["LOCAL_RANK"], env["NODE_RANK"] = env["SLURM_LOCALID"], env["SLURM_NODEID"]
    nodes = int(env.get("SLURM_NNODES", env.get("SLURM_JOB_NUM_NODES", 1)))
    env["LOCAL_WORLD_SIZE"] = str(int(env["SLURM_NTASKS"]) // nodes)


def asked(trainer: Mapping[str, Any]) -> int:
    """How many processes the configuration asks for.

    Args:
        trainer: the group ``trainer``.

    Returns:
        One, or the devices of this machine.
    """
    wanted = trainer.get("devices")
    if isinstance(wanted, list):
        return len(wanted)
    if wanted in ("auto", -1, "-1"):
        return max(1, torch.cuda.device_count()) if trainer.get("accelerator") != "cpu" else 1
    return int(str(wanted)) if str(wanted).isdigit() else 1


def check(cfg: DictConfig, count: int, sweeps: bool) -> None:
    """Refuse what several processes cannot do, before any is started.

    Args:
        cfg: the composed configuration.
        count: processes that it asks for.
        sweeps: whether this is a job of a sweep.

    Raises:
        ValueError: an option of ``parallel`` is out of range or needs several processes where there is one, or jobs of
            a sweep would each be several processes.
    """
    check_wire(cfg.parallel.wire)
    check_pool(cfg.parallel.pool)
    if cfg.parallel.pool == "per_rank" and count == 1 and place() is None:
        raise ValueError(
            "parallel.pool=per_rank has every process choose from its own candidates, and there is one process: leave "
            "parallel.pool=global, or set trainer.devices=N"
        )
    if cfg.parallel.base not in ("whole", "sharded"):
        raise ValueError(f"parallel.base must be whole or sharded, got {cfg.parallel.base!r}")
    if cfg.parallel.base == "sharded" and count == 1 and place() is None:
        raise ValueError(
            "parallel.base=sharded splits the model among several processes, and there is one: set "
            "trainer.devices=N, or leave it out"
        )
    minutes = cfg.parallel.timeout
    longest = LONGEST.total_seconds() / 60
    if not isinstance(minutes, int | float) or isinstance(minutes, bool) or not 0 < minutes < longest:
        raise ValueError(f"parallel.timeout must be a number of minutes above 0, got {minutes!r}")
    if sweeps and (count > 1 or place() is not None):
        raise ValueError(
            "-m runs its jobs one after the other in this process, and several processes cannot share them: give one "
            "command for each job (for selector in a b; do python train.py trainer.devices=2 selector=$selector; "
            "done), or trainer.devices=1"
        )


def pooled(cfg: DictConfig, selector: Selector, pool_size: int, ranks: Ranks | None) -> Selector:
    """The selector as ``parallel.pool`` has it asked.

    Args:
        cfg: the composed configuration.
        selector: as configured.
        pool_size: candidates in a pool.
        ranks: the processes; None for one.

    Returns:
        It, or what asks it for a part of every process's candidates.

    Raises:
        ValueError: with ``per_rank``, the selector cannot be asked for parts, or k is no multiple of the processes.
    """
    if ranks is None or cfg.parallel.pool == "global":
        return selector
    name, way_on = type(selector).__name__, "leave parallel.pool=global, or take another selector"
    if not isinstance(selector, Sized):
        raise ValueError(
            f"parallel.pool=per_rank has every process keep its share of selector.filter_size, and {name} has none: "
            f"{way_on}"
        )
    if isinstance(selector, Stateful):
        raise ValueError(
            f"parallel.pool=per_rank asks for each process's candidates by themselves, and {name} goes by earlier "
            f"pools, too: {way_on}"
        )
    stratified = Stratified(selector, ranks.size)
    last = rows_of(ranks.size - 1, ranks.size, pool_size)
    if last.stop - last.start < selector.filter_size // ranks.size:
        raise ValueError(
            f"parallel.pool=per_rank: of data.pool_size={pool_size} candidates the last of {ranks.size} processes has "
            f"{last.stop - last.start}, and keeps {selector.filter_size // ranks.size}: set a data.pool_size that is a "
            f"multiple of {ranks.size}"
        )
    return stratified


def devices(trainer: Mapping[str, Any], own: Place | None, base: str = "whole") -> dict[str, Any]:
    """What Lightning is told of several processes.

    Args:
        trainer: the group ``trainer``.
        own: which of them this is; None for one.
        base: ``whole`` | ``sharded``.

    Returns:
        Arguments of ``lightning.Trainer``.
    """
    if own is None:
        return {}
    strategy = trainer.get("strategy") or "auto"
    return {
        "devices": own.size // own.machines,
        "num_nodes": own.machines,
        "strategy": ShardedStrategy() if base == "sharded" else "ddp" if strategy == "auto" else strategy,
        "use_distributed_sampler": False,  # every process has the whole pool, in the same order
    }


def unwritten(callbacks: DictConfig | None) -> DictConfig | None:
    """Callbacks of a process that is not the first: all but those of ours that write, print or log.

    Args:
        callbacks: the group.

    Returns:
        The same, with entries set to null.
    """
    kept = callbacks.copy() if callbacks else callbacks
    for name, one in (kept or {}).items():
        target = str(one.get("_target_", "")) if one else ""
        if kept is not None and target.startswith("winnow.callbacks.") and not target.endswith("LastCheckpoint"):
            kept[name] = None
    return kept
