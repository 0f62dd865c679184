"""Processes that help with a task of many parts, and load nothing that it does not need.

A process that multiprocessing starts first imports the program's main module, and with it PyTorch and Lightning. These
import what the task's pickle names, which for the checking of rows is the tokenizer.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import Any, TypeVar

P = TypeVar("P")
R = TypeVar("R")
HELPER = "WINNOW_HELPER"
"""The variable that is set in the environment of these processes."""
SERVE = "from winnow.data.helpers import serve; serve()"


class NotTaken(RuntimeError):
    """A task that another process cannot be given: a class of it is known to this one alone."""


class Helper:
    """A process that does parts of a task, one after another.

    Args:
        task: as a pickle; called with each part.
    """

    def __init__(self, task: bytes) -> None:
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        environment = {**os.environ, "PYTHONPATH": paths, "TOKENIZERS_PARALLELISM": "false", HELPER: "1"}
        # -P: the folder the program was started in is not to be searched before the libraries, unless it is here.
        command = [sys.executable, "-P", "-c", SERVE]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        self._task: bytes | None = task

    def ask(self, part: Any) -> Any:
        """Have a part done.

        Args:
            part: the part.

        Returns:
            What the task gives for it.

        Raises:
            ChildProcessError: the process has ended.
        """
        asked, answers = self._process.stdin, self._process.stdout
        assert asked is not None and answers is not None
        try:
            if self._task is not None:
                pickle.dump(self._task, asked)
                self._task = None
            pickle.dump(part, asked)
            asked.flush()
            done, answer = pickle.load(answers)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            code = self._process.wait()
            why = "; it was killed, as where memory runs out" if code < 0 else ""
            raise ChildProcessError(f"a process that helped with the rows ended with code {code}{why}") from error
        if not done:
            raise answer
        return answer

    def stop(self) -> None:
        """Have the process end, whatever it does."""
        self._process.terminate()

    def close(self) -> None:
        """Wait for its end."""
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(OSError):  # it has ended with something unread
                pipe.close()


@contextmanager
def helping(task: Callable[[P], R], count: int) -> Iterator[Callable[[Sequence[P]], Iterator[R]]]:
    """Processes for the parts of a task, as long as the block lasts.

    Args:
        task: what is done with a part; it and the parts can be pickled.
        count: processes.

    Yields:
        A function of parts to what the task gives for each, in their order. It raises what the task raised.

    Raises:
        NotTaken: the task cannot be pickled; where it cannot be unpickled, the yielded function raises it.
    """
    try:
        pickled = pickle.dumps(task)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise NotTaken(str(error)) from error
    helpers = [Helper(pickled) for _ in range(count)]
    free: SimpleQueue[Helper] = SimpleQueue()
    for helper in helpers:
        free.put(helper)

    def ask(part: P) -> R:
        helper = free.get()
        try:
            answer: R = helper.ask(part)
            return answer
        finally:
            free.put(helper)

    threads = ThreadPoolExecutor(count)
    try:
        yield lambda parts: threads.map(ask, parts)
    finally:
        for helper in helpers:
            helper.stop()
        threads.shutdown(cancel_futures=True)
        for helper in helpers:
            helper.close()


def serve() -> None:
    """Do parts of the task that comes in first, until no more come: what a helper's process runs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt reaches all processes; who asks ends this one
    asked, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not stand among the answers
    task: Callable[[Any], Any] | None = None
    while True:
        try:
            given = pickle.load(asked)
        except EOFError:
            return
        if task is None:
            task = _taken(given)
            continue
        try:
            answer = pickle.dumps((True, task(given)))
        except Exception as error:
            answer = pickle.dumps((False, _portable(error)))
        answers.write(answer)
        answers.flush()


def _taken(pickled: bytes) -> Callable[[Any], Any]:
    try:
        task: Callable[[Any], Any] = pickle.loads(pickled)
    except Exception as error:
        said = f"{type(error).__name__}: {error}"

        def refuse(part: Any) -> None:
            raise NotTaken(said)

        return refuse
    return task


def _portable(error: Exception) -> Exception:
    """An error that another process can unpickle."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError("".join(traceback.format_exception(error)))
    return error
