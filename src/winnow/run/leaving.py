"""How a process ends that a scheduler ends, and what it says last: the command that goes on."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from winnow.run.again import AUTO, FOLDER, quoted

TERMINATED = 143  # as winnow.records.status has it, which brings torch


def again(folder: Path, line: Sequence[str] | None = None) -> str:
    """The command that goes on with a run.

    Args:
        folder: of the run.
        line: the command that began it, as its process was started; this one's by default.

    Returns:
        One line for a shell.
    """
    words = list(sys.orig_argv if line is None else line)
    place = os.path.relpath(folder) if Path(folder).resolve().is_relative_to(Path.cwd()) else str(folder)
    more = [] if any(word.startswith(f"{FOLDER}=") for word in words) else [f"{FOLDER}={quoted(place)}"]
    more += [] if AUTO in words else [AUTO]
    values = [at for at, word in enumerate(words) if "=" in word and not word.startswith("-")]
    end = values[-1] + 1 if values else len(words)  # all KEY=VALUE have to stand together
    return shlex.join([*words[:end], *more, *words[end:]])


def way_on(folder: Path, checkpoint: Path | None, swept: bool) -> str:
    """What to say last of a run that was broken off.

    Args:
        folder: of the run.
        checkpoint: what it can go on from, if there is one.
        swept: whether it is a job of a sweep.

    Returns:
        A line with the command to give.
    """
    command = "the same sweep command once more" if swept else again(folder)
    if checkpoint is None:
        return (
            f"Nothing of this run was saved: no pool was through, or callbacks.last=null. It begins afresh by {command}"
        )
    return f"This run can go on from {checkpoint}: {command}"


@contextmanager
def ended_by_schedulers() -> Iterator[None]:
    """Have a scheduler's signal end the process with one code from the start, while there is nothing to save yet.

    Yields:
        Nothing.
    """
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]
    before = {
        number: signal.getsignal(number) for number in numbers if threading.current_thread() is threading.main_thread()
    }
    for number in before:
        signal.signal(number, lambda *_: sys.exit(TERMINATED))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
