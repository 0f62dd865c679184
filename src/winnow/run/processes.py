"""Several processes for one run: who is who, how they find one another, and how the others are started."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from omegaconf import DictConfig, OmegaConf

from winnow.parallel import Ranks
from winnow.parallel.ranks import check_wire
from winnow.run.instantiate import plain

log = logging.getLogger(__name__)

LONG = timedelta(days=7)
"""Others wait as long as this for the first process to read the data and to measure the model."""


CUT = ("gloo", "NCCL", "Connection closed", "Connection reset", "Timed out waiting")
"""Words of errors that mean that another process does not answer."""


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
        ValueError: an option of ``parallel`` is out of range, or jobs of a sweep would each be several processes.
    """
    check_wire(cfg.parallel.wire)
    if cfg.parallel.base not in ("whole", "sharded"):
        raise ValueError(f"parallel.base must be whole or sharded, got {cfg.parallel.base!r}")
    if cfg.parallel.base == "sharded" and count == 1 and place() is None:
        raise ValueError(
            "parallel.base=sharded splits the frozen base among several processes, and there is one: set "
            "trainer.devices=N, or leave it out"
        )
    minutes = cfg.parallel.timeout
    longest = LONG.total_seconds() / 60
    if not isinstance(minutes, int | float) or isinstance(minutes, bool) or not 0 < minutes < longest:
        raise ValueError(f"parallel.timeout must be a number of minutes above 0, got {minutes!r}")
    if sweeps and (count > 1 or place() is not None):
        raise ValueError(
            "-m runs its jobs one after the other in this process, and several processes cannot share them: give one "
            "command for each job (for selector in a b; do python train.py trainer.devices=2 selector=$selector; "
            "done), or trainer.devices=1"
        )


@dataclass
class Group:
    """The processes of a run while it lasts.

    Args:
        ranks: what they tell one another by.
        store: where the first one leaves word for those that wait.
        place: which of them this is.
    """

    ranks: Ranks
    store: Any
    place: Place

    def first(self, what: str) -> None:
        """The first process has done something, for which the others wait however long it takes.

        Args:
            what: a word for it.
        """
        if self.place.rank == 0:
            self.store.set(what, "1")
        else:
            self.store.wait([what], LONG)

    def configured(self, cfg: DictConfig | None = None) -> DictConfig:
        """The first process's configuration, and from now on what it says of sending and waiting.

        Args:
            cfg: of the first process.

        Returns:
            The same everywhere, interpolations resolved.
        """
        text = "" if cfg is None else OmegaConf.to_yaml(OmegaConf.create(plain(cfg)))
        found = cast(DictConfig, OmegaConf.create(self.ranks.everywhere(text)))
        self.ranks = Ranks.alone(found.parallel.wire, 60 * float(found.parallel.timeout))
        return found


def join(own: Place) -> Group:
    """Meet the other processes.

    Args:
        own: which of them this is.

    Returns:
        The group.
    """
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(own.local)
    store, _, _ = next(iter(dist.rendezvous("env://", own.rank, own.size)))
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        store=dist.PrefixStore("default", store), rank=own.rank, world_size=own.size,
    )  # fmt: skip
    return Group(Ranks(), store, own)


@contextmanager
def together(cfg: DictConfig, count: int, folder: Path) -> Iterator[Group | None]:
    """The processes of a run: those that torchrun or Slurm has started, or as many as are asked for, started here.

    Args:
        cfg: the composed configuration, which the others are given.
        count: how many it asks for.
        folder: the run's; what the others print goes to ``process-<rank>.log`` there.

    Yields:
        The group; None for a single process.
    """
    own, started = place(), list[subprocess.Popen[bytes]]()
    if own is None and count == 1:
        yield None
        return
    before = dict(os.environ)
    if own is None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count), "NODE_RANK": "0"}
        os.environ |= {**shared, "RANK": "0", "LOCAL_RANK": "0"}
        started = [_start(rank, folder, shared) for rank in range(1, count)]
        own = Place(0, count, 0)
    try:
        group = join(own)
        group.configured(cfg)
        yield group
        dist.destroy_process_group()
    except BaseException:
        for process in started:
            process.terminate()
        raise
    finally:
        _end(started, folder)
        os.environ.clear()
        os.environ.update(before)


def _start(rank: int, folder: Path, shared: Mapping[str, str]) -> subprocess.Popen[bytes]:
    env = {**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
    with (folder / f"process-{rank}.log").open("wb") as said:
        # In the run's own session, so that Ctrl-C and a scheduler's signals reach all of them.
        return subprocess.Popen([sys.executable, "-m", "winnow.run.member"], env=env, stdout=said, stderr=said)


def _end(started: list[subprocess.Popen[bytes]], folder: Path) -> None:
    """Nobody is left behind, and nothing of those that had nothing to say."""
    for rank, process in enumerate(started, start=1):
        said = folder / f"process-{rank}.log"
        try:
            code = process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        if code not in (0, 143, 130, -15):
            log.error("process %d ended with code %d; what it said last is in %s", rank, code, said)
        elif said.is_file():
            said.unlink()


class ProcessLost(RuntimeError):
    """Another process of the run has ended, or does not answer."""


def lost(error: RuntimeError, others: int) -> RuntimeError:
    """Say in words what a broken connection means.

    Args:
        error: that was raised in training.
        others: how many processes there are beside this one.

    Returns:
        The same error, or one that says that another process is gone.
    """
    text = str(error)
    if not others or not (isinstance(error, dist.DistError) or any(word in text for word in CUT)):
        return error
    which = "the other process" if others == 1 else f"one of the other {others} processes"
    where = "" if "TORCHELASTIC_RUN_ID" in os.environ else " (process-1.log and the like, in the run's folder)"
    return ProcessLost(
        f"{which} of this run has ended or does not answer (parallel.timeout): what it said last is in its own "
        f"output{where}. All of them have to go on together: start the same command again with resume=auto"
    )


def devices(trainer: Mapping[str, Any], group: Group | None) -> dict[str, Any]:
    """What Lightning is told of several processes.

    Args:
        trainer: the group ``trainer``.
        group: the processes; None for one.

    Returns:
        Arguments of ``lightning.Trainer``.
    """
    if group is None:
        return {}
    strategy = trainer.get("strategy") or "auto"
    return {
        "devices": group.place.size // group.place.machines,
        "num_nodes": group.place.machines,
        "strategy": "ddp" if strategy == "auto" else strategy,
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
