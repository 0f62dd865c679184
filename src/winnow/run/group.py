"""The processes of a run while it lasts: started, met, and seen to their end."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, cast

import torch
import torch.distributed as dist
from omegaconf import DictConfig, OmegaConf

from winnow.parallel import Ranks
from winnow.run.instantiate import plain
from winnow.run.processes import LONGEST, Place, place

log = logging.getLogger(__name__)

CUT = ("gloo", "NCCL", "Connection closed", "Connection reset", "Timed out waiting")
"""Words of errors that mean that another process does not answer."""


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
            self.store.wait([what], LONGEST)

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Say in words that another process is gone.

        Yields:
            Nothing.

        Raises:
            RuntimeError: whatever was raised; ProcessLost in place of what a broken connection raises.
        """
        try:
            yield
        except RuntimeError as error:
            found = lost(error, self.place.size - 1)
            raise found from error

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
        _end(started, folder, 2)
        raise
    else:
        _end(started, folder, 30)
    finally:
        os.environ.clear()
        os.environ.update(before)


def _start(rank: int, folder: Path, shared: Mapping[str, str]) -> subprocess.Popen[bytes]:
    env = {**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
    with (folder / f"process-{rank}.log").open("wb") as said:
        # In the run's own session, so that Ctrl-C and a scheduler's signals reach all of them.
        return subprocess.Popen([sys.executable, "-m", "winnow.run.member"], env=env, stdout=said, stderr=said)


def _end(started: list[subprocess.Popen[bytes]], folder: Path, within: float) -> None:
    """Nobody is left behind, and nothing of those that had nothing to say.

    Args:
        started: the others.
        folder: of the run.
        within: seconds in which they may end by themselves; they hold nothing that would be lost with them.
    """
    until = monotonic() + within
    for rank, process in enumerate(started, start=1):
        said = folder / f"process-{rank}.log"
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=max(0.0, until - monotonic()))
        if process.poll() is None:
            process.kill()
            process.wait()
            code = 0  # it only waited for the others
        else:
            code = process.returncode
        if code not in (0, 143, 130):
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
