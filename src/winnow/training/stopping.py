"""SIGTERM, SIGUSR1 and SIGINT: the pool at hand is finished and the state saved before a run leaves."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from types import FrameType
from typing import Any

from winnow.records.status import TERMINATED, Terminated

log = logging.getLogger(__name__)

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name))
LAUNCHERS = tuple(getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name))
"""By which a launcher has a job requeue itself: its own handler is called when the run has left."""
INTERRUPTED = 130
ECHO = 0.1
"""Seconds within which the same signal counts once: ``timeout`` sends it to a process and then to its group."""


class Stop:
    """A stop that was asked for; training obeys it between two pools, everything else at once.

    Args:
        waits: whether to wait for the end of the pool at hand.
    """

    def __init__(self, waits: bool = False) -> None:
        self.waits = waits
        self.asked: BaseException | None = None
        self.agree: Callable[[bool], bool] = bool
        """Makes one answer of all processes' answers; asked at the end and at the start of every pool."""
        self.before: dict[int, Any] = {}
        """Handlers that were there before, by signal."""
        self._came: list[tuple[int, float]] = []

    def due(self) -> bool:
        """Whether to leave now, between two pools; the one place where that is decided.

        Returns:
            Whether a stop was asked for, here or, by ``agree``, in another process.
        """
        return self.agree(self.asked is not None)

    def obey(self) -> None:
        """Leave if that is due.

        Raises:
            BaseException: ``Terminated`` or ``KeyboardInterrupt``, by the signal that came.
        """
        if self.due():
            raise self.asked or Terminated()

    def take(self) -> None:
        """Have the signals come here from now on; only a process's main thread can."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (*SIGNALS, *(one for one in LAUNCHERS if callable(signal.getsignal(one)))):
            before = signal.getsignal(number)
            if before != self.handle:
                self.before.setdefault(number, before)
                signal.signal(number, self.handle)

    def handle(self, number: int, frame: FrameType | None = None) -> None:
        """Take a signal: the first waits for the pool at hand, the second leaves at once.

        Args:
            number: of the signal.
            frame: unused.

        Raises:
            BaseException: ``Terminated`` or ``KeyboardInterrupt``, by the signal.
        """
        name, at = signal.Signals(number).name, monotonic()
        if self._came and self._came[-1][0] == number and at - self._came[-1][1] < ECHO:
            return
        self._came.append((number, at))
        # A second Ctrl-C still closes what is open; a scheduler that asks twice will not wait for that.
        if len(self._came) > (2 if number == signal.SIGINT else 1):
            _leave(name, INTERRUPTED if number == signal.SIGINT else TERMINATED)
        error = KeyboardInterrupt(name) if number == signal.SIGINT else Terminated(name)
        if self.asked is not None or not self.waits:
            raise error
        self.asked = error
        log.warning("%s: leaving after this pool; once more to leave at once", name)

    def hand_on(self) -> None:
        """Call the handler that a launcher had set for the signal that ended the run, as submitit does to requeue."""
        number = self._came[0][0] if self._came else None
        handler = self.before.get(number) if number in LAUNCHERS and number is not None else None
        if callable(handler):
            handler(number, None)


def _leave(name: str, code: int) -> None:
    os.write(2, f"{name} once more: leaving at once, without saving\n".encode())
    os._exit(code)  # an exit in good order may wait for what hangs


@contextmanager
def handled(stop: Stop) -> Iterator[None]:
    """Let ``stop`` take the signals; only a process's main thread can.

    Args:
        stop: what takes them.

    Yields:
        Nothing.
    """
    stop.take()
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in stop.before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)


def sole(trainer: Any) -> None:
    """Keep Lightning from taking the signals: its handlers save in the middle of a pool, or end with code 0.

    Args:
        trainer: about to fit.
    """
    connector = getattr(trainer, "_signal_connector", None)
    if connector is not None:
        connector.register_signal_handlers = lambda: None
