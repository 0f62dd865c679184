"""SIGTERM and SIGINT: the pool at hand is finished and the state saved before a run leaves."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from winnow.records.status import Terminated

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """A stop that was asked for; training obeys it between two pools, everything else at once.

    Args:
        waits: whether to wait for the end of the pool at hand.
    """

    def __init__(self, waits: bool = False) -> None:
        self.waits = waits
        self.asked: BaseException | None = None

    def obey(self) -> None:
        """Leave if that was asked for.

        Raises:
            BaseException: ``Terminated`` or ``KeyboardInterrupt``, by the signal that came.
        """
        if self.asked is not None:
            raise self.asked

    def take(self) -> None:
        """Have the signals come here from now on; only a process's main thread can."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self.handle)

    def handle(self, number: int, frame: FrameType | None = None) -> None:
        """Take a signal: the first waits for the pool at hand, the second leaves at once.

        Args:
            number: of the signal.
            frame: unused.

        Raises:
            BaseException: ``Terminated`` or ``KeyboardInterrupt``, by the signal.
        """
        error = Terminated() if number == signal.SIGTERM else KeyboardInterrupt(signal.Signals(number).name)
        if self.asked is not None or not self.waits:
            raise error
        self.asked = error
        log.warning(
            "%s: leaving after this pool, with a checkpoint; once more to leave at once", signal.Signals(number).name
        )


@contextmanager
def handled(stop: Stop) -> Iterator[None]:
    """Let ``stop`` take SIGTERM and SIGINT; only a process's main thread can.

    Args:
        stop: what takes them.

    Yields:
        Nothing.
    """
    before: dict[signal.Signals, Any] = {number: signal.getsignal(number) for number in SIGNALS}
    stop.take()
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)
