"""Which W&B run a run's folder is, so that a run that goes on there is the same one, and its steps go on."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import wraps
from pathlib import Path
from typing import Any

from winnow.records.strict_json import write_json

FILE = "tracking.json"
ID = r"[^/\\#?%:${}\x00-\x1f\x7f]{1,128}"
AHEAD = 10
"""Steps that are marked as used at a time, so that the file is seldom written; a run that was killed leaves a gap."""


@dataclass(frozen=True)
class Tracked:
    """A run elsewhere.

    Args:
        id: its id there.
        step: the next of its steps that is free for certain.
    """

    id: str
    step: int = 0

    def write(self, folder: Path) -> None:
        """Record it.

        Args:
            folder: the run's folder.
        """
        write_json(folder / FILE, asdict(self), durable=False)  # in the middle of logging


def tracked(folder: Path) -> Tracked | None:
    """What a run's folder records.

    Args:
        folder: the run's folder.

    Returns:
        The run elsewhere; None where there was none, or the record cannot be read.
    """
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
        # Of somebody else's folder it could be a path, or an interpolation that Hydra would fill in.
        return Tracked(str(found["id"]), int(found["step"])) if re.fullmatch(ID, str(found["id"])) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def continued(folder: Path, ckpt_path: str | None, asked: str | None) -> Tracked | None:
    """The run that a new one is to go on.

    Args:
        folder: the new run's folder.
        ckpt_path: the checkpoint it resumes from; it is the same run where that lies in its own folder.
        asked: an id that was given.

    Returns:
        None for a run of its own.
    """
    path = None if ckpt_path is None else Path(ckpt_path).resolve()
    before = None if path is None else tracked(path.parent.parent)
    if asked is not None:
        return before if before is not None and before.id == asked else Tracked(asked)
    same = path is not None and path.is_relative_to(folder.resolve())
    return before if same else None


def counted(log: Callable[..., Any], start: Tracked, folder: Path) -> Callable[..., Any]:
    """A run's ``log`` that keeps the folder's record ahead of it.

    Args:
        log: makes at most one step a call.
        start: where it begins.
        folder: the run's folder.

    Returns:
        The same function, counted.
    """
    used = marked = start.step

    @wraps(log)
    def call(*arguments: Any, **options: Any) -> Any:
        nonlocal used, marked
        used += 1
        if used > marked:
            marked = used + AHEAD
            Tracked(start.id, marked).write(folder)
        return log(*arguments, **options)

    return call
