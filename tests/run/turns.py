"""Three processes on two machines load a model, and fail to: ``python turns.py OUT``."""

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard  # noqa: F401  (what takes memory to import is there before)

from winnow.parallel.base import shard_model
from winnow.run.allocator import keep_freed_memory
from winnow.run.group import Group, join
from winnow.run.loading import attend, in_turn
from winnow.run.processes import Place

PLACES = [Place(0, 3, 0, 2), Place(1, 3, 1, 2), Place(2, 3, 0, 2)]
LAYERS, WIDTH = 40, 1024
WHOLE = LAYERS * WIDTH * (WIDTH + 1) * 4
"""Bytes of the model."""


class Blocks(nn.Module):
    """A model of some size."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)])


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def equipped(group: Group, word: str, load: Callable[[], Any]) -> Any:
    """What a run does: the first process begins, and lets the others."""
    if group.place.rank:
        group.first(word)
        return in_turn(group, load)
    loaded = in_turn(group, load)
    group.first(word)
    attend(group)
    return loaded


def said(group: Group, word: str, load: Callable[[], Any]) -> str:
    """How it ends where one process cannot load."""
    try:
        equipped(group, word, load)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def main(out: Path, own: Place) -> None:
    """Load, fail in the second process, and lose it."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "RANK": str(own.rank), "WORLD_SIZE": str(own.size)}
    keep_freed_memory()
    group, found = join(own), dict[str, Any]()

    def load() -> nn.Module:
        found["begun"], found["before"] = time.monotonic(), resident()
        model = Blocks()
        time.sleep(0.3)
        shard_model(model, init_device_mesh("cpu", (own.size,)), group.ranks)
        found["ended"] = time.monotonic()
        return model

    def refused() -> None:
        if own.rank == 1:
            raise ValueError("no such model")

    model = equipped(group, "loaded", load)
    found["grown"] = (resident() - found["before"]) / WHOLE
    found["rows"] = sum(held.to_local().numel() for held in model.parameters()) * 4 / WHOLE
    found["refused"] = said(group, "refused", refused)
    if own.rank == 1:
        (out / f"{own.rank}.json").write_text(json.dumps(found))
    found["lost"] = said(group, "lost", lambda: os._exit(9) if own.rank == 1 else None)
    (out / f"{own.rank}.json").write_text(json.dumps(found))
    os._exit(0)  # nothing can be taken down together any more


if __name__ == "__main__":
    fork = multiprocessing.get_context("fork")
    started = [fork.Process(target=main, args=(Path(sys.argv[1]), own)) for own in PLACES]
    for process in started:
        process.start()
    for process in started:
        process.join()
    sys.exit([process.exitcode for process in started] != [0, 9, 0])
