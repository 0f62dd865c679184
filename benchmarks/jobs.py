"""Runs as processes that can be killed: each a command of its own, or forked off a process that has imported all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

TIMEOUT = 900.0


class Job(Protocol):
    """A run under way."""

    pid: int

    def poll(self) -> int | None:
        """Its code, -n after signal n; None while it runs."""

    def kill(self, number: signal.Signals) -> None:
        """Send a signal to it, and to the processes of its own where it has some."""


class Launcher(Protocol):
    """Starts runs."""

    def start(self, arguments: Sequence[str], log: Path) -> Job:
        """Begin one.

        Args:
            arguments: of ``train.py``.
            log: takes what it prints.
        """


def ended(job: Job, within: float = TIMEOUT) -> int:
    """Wait for a run.

    Args:
        job: the run.
        within: seconds it may take.

    Returns:
        Its code.

    Raises:
        TimeoutError: it takes longer; it is killed.
    """
    deadline = time.monotonic() + within
    while (code := job.poll()) is None:
        if time.monotonic() > deadline:
            job.kill(signal.SIGKILL)
            while job.poll() is None:
                time.sleep(0.01)
            raise TimeoutError(f"a run was still there after {within:.0f} s")
        time.sleep(0.01)
    return code


@dataclass
class Command:
    """A run by its command line, such as ``[python, train.py]`` or ``[torchrun, ..., train.py]``.

    Args:
        words: what comes before the run's own arguments.
        environment: of the process.
    """

    words: Sequence[str]
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))

    def start(self, arguments: Sequence[str], log: Path) -> Job:
        """Begin a run in a group of its own."""
        with open(log, "ab") as out:
            line = [*self.words, *arguments]
            return _Spawned(
                subprocess.Popen(line, env=self.environment, stdout=out, stderr=out, start_new_session=True)
            )


@dataclass
class _Spawned:
    process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        return self.process.pid

    def poll(self) -> int | None:
        return self.process.poll()

    def kill(self, number: signal.Signals) -> None:
        # Of many processes each is killed; one that is told to go is told by its launcher.
        send = os.killpg if number == signal.SIGKILL else os.kill
        send(self.process.pid, number)


class Forked:
    """Runs of one process, forked off this one, which has imported everything: a start takes no ten seconds.

    This process must have no threads: it trains nothing, and looks at results ``apart`` as well.
    """

    def __init__(self) -> None:
        import winnow.run.execute  # noqa: F401  # all that a run imports

    def start(self, arguments: Sequence[str], log: Path) -> Job:
        """Begin a run."""

        def work() -> None:
            from winnow.run.cli import main
            from winnow.train import conf_dir, train

            sys.argv = ["train.py", *arguments]
            main(train, config_dir=conf_dir(), config_name="train")

        return _fork(work, log)


@dataclass
class _Child:
    pid: int
    code: int | None = None

    def poll(self) -> int | None:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code

    def kill(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def _fork(work: Callable[[], None], log: Path) -> _Child:
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return _Child(pid)
    code = 1
    try:
        with open(log, "ab") as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
        work()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code & 0xFF)


def apart(work: Callable[[], None], log: Path) -> bool:
    """Do something that may start threads, in a process of its own.

    Args:
        work: what to do; an error is a no.
        log: takes what it prints.

    Returns:
        Whether it came to its end.
    """
    return ended(_fork(work, log)) == 0
